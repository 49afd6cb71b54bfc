"""Train a recipe on the Ray cluster at hand."""

import sys
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Annotated

import typer

from jobs.cli import one_sentence, run, without_gpu_warning
from r2kg.attempts.supervise import WAITED, supervise
from r2kg.config.overrides import parse_overrides
from r2kg.config.protocol import protocols_of
from r2kg.config.run import Run, load_run
from r2kg.recipes import find_recipe
from shards.errors import ConfigError
from shards.session import connect_ray
from tune.ablations import PREFIX, find_ablation


def main(
    recipe: Annotated[
        str,
        typer.Argument(help="a name from `r2kg recipes`, their.module:function, ablation:RECIPE:NAME, or a run.json"),
    ],
    changes: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. data.shards=films")] = None,
) -> None:
    """Train a run; one whose name exists is continued from its newest good checkpoint.

    Ended by a loss (of a worker, of Ray's head, of the driver) it starts over, at most train.max_restarts times, and
    exits with 75 after that: submit it again then.
    """
    sys.exit(supervise(with_shards(resolve(recipe, changes or [])), attempt))


def attempt(saved: str, name: str, restarts: int) -> None:
    """One attempt at a run, in a process of its own: train, choose the best checkpoint, say what came out."""
    resolved = Run.model_validate_json(saved)
    without_gpu_warning(resolved.train.gpus)
    # seconds of torch and transformers, which pass while Ray's processes start
    libraries = Thread(target=import_module, args=("r2kg.modules.vision",), daemon=True)
    libraries.start()
    with one_sentence(WaitedError=WAITED):
        connect_ray(resolved.directory)
        libraries.join()
        from r2kg.scoring.choose import choose_checkpoint, refuse_choice
        from r2kg.training import launch

        refuse_choice(resolved)
        summary = launch.attempt(resolved, name, restarts)
        if "stopped" in summary:
            return
        choose_checkpoint(resolved.directory)
    loss = "" if summary["loss"] is None else f" Training loss {summary['loss']:.3f}."
    validation = "" if summary["validation_loss"] is None else f" Validation loss {summary['validation_loss']:.3f}."
    print(f"{resolved.name} is trained: {summary['step']} steps.{loss}{validation}")
    for key, cause in summary["unread"].items():
        print(f"Not seen: {key}: {cause}")
    print(resolved.directory)


def resolve(recipe: str, changes: list[str]) -> Run:
    """The run of a recipe, an ablation or a saved run.json, with the command line's changes."""
    saved = Path(recipe)
    if saved.suffix == ".json" and not saved.is_file():
        raise ConfigError(f"{saved} is missing: give a run.json that `r2kg train` wrote, or a name from `r2kg recipes`")
    if recipe.startswith(PREFIX):
        start = find_ablation(recipe)
    else:
        start = load_run(saved) if saved.suffix == ".json" else find_recipe(recipe)
    run = start.change(parse_overrides(changes))
    protocols_of(run.protocols, run.model.task)
    return run


def with_shards(run: Run) -> Run:
    """The run with absolute paths; ConfigError when it names no shards, DataError when there are none where it says."""
    run = run.absolute()
    run.manifest()
    return run


if __name__ == "__main__":
    run(main)
