"""`r2kg VERB ...`: the verb's own module is imported, and that imports torch, Ray and the like only inside `main`.

So help and a mistyped word are answered at once, and no library speaks before we do.
"""

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version

import typer

from r2kg import STACK, __version__
from shards.errors import CheckpointError, ConfigError, DataError, RetryableError

VERBS = {
    "shard": "raw dataset → shards + manifest",
    "shards": "verify shards, or show one study of them",
    "subgraphs": "the studies' triples, or their part of a graph, beside the shards",
    "triples": "what systems that write triples have to write, beside the shards",
    "graph": "annotate the training reports, make a graph of that, look at it",
    "features": "what a frozen encoder makes of the films, beside the shards",
    "recipes": "list the recipes",
    "show": "print the resolved run of a recipe",
    "train": "train a recipe; a run whose name exists is continued",
    "generate": "write a trained run's reports on a split",
    "nearest": "the baseline that copies the nearest training film's report",
    "report": "print the report of the films of one study",
    "evaluate": "score a predictions file",
    "cases": "a page of studies: films, both reports, what is hit, missed, invented",
    "compare": "differences of runs, with intervals and p-values",
    "protocols": "list the protocols, or print one",
    "pictures": "what films and words took of the knowledge matrix, drawn",
    "sweep": "train and score a paper's table, rows and seeds; without a name, list the tables",
    "table": "what came out of a sweep, beside the paper's figures",
    "track": "send a run's records to MLflow, which was away",
    "demo": "all of it on drawn films, on this machine",
}
EXIT_CODES = {ConfigError: 2, DataError: 3, CheckpointError: 4, RetryableError: 75}


def main() -> None:
    """Entry point of the console script."""
    sys.path.append(os.getcwd())  # recipes and sources of one's own, their.module:name, lie where one works
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in VERBS:
        sys.argv = [f"r2kg {verb}", *sys.argv[2:]]
        module = importlib.import_module(f"jobs.{verb}")
        run(*getattr(module, "JOBS", [getattr(module, "main", None)]))
    if verb == "--version":
        print(f"r2kg {__version__} ({', '.join(f'{name} {version(name)}' for name in STACK)})")
        sys.exit(0)
    if verb not in ("--help", "-h"):
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ": `r2kg --help` lists them"
        print(f"no verb {verb!r}{hint}", file=sys.stderr)
        sys.exit(2)
    print("usage: r2kg VERB ...   (r2kg VERB --help tells more)\n")
    print("\n".join(f"  {name:10} {what}" for name, what in VERBS.items()))
    sys.exit(0)


def run(*jobs: Callable) -> None:
    """Run a job on the command line; an error of ours is one sentence and an exit code, not a traceback.

    Of several jobs the next word on the command line names one.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    for job in jobs:
        app.command()(job)
    with one_sentence():
        app()


def without_gpu_warning(gpus: bool) -> None:
    """Spare a run on CPUs DeepSpeed's warning that it found nothing else; before its import."""
    if not gpus:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _stop(number: int, *_: object) -> None:
    """End the verb; `r2kg train` has a way of its own."""
    print("Stopped. What is finished is kept: the same command goes on behind it.", file=sys.stderr, flush=True)
    sys.exit(128 + number)


@contextmanager
def one_sentence(**codes: int) -> Iterator[None]:
    """End the process on an error of ours, in one sentence and with its exit code; `codes` has others by name."""
    try:
        yield
    except tuple(EXIT_CODES) as error:
        name = type(error).__name__
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        sys.exit(codes.get(name) or next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind)))


if __name__ == "__main__":
    main()
