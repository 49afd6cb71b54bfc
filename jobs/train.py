"""Train a recipe on the Ray cluster at hand."""

import sys
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Annotated, Any

import typer

from jobs.cli import one_sentence, run, without_gpu_warning
from r2kg.attempts.supervise import WAITED, supervise
from r2kg.config.overrides import assign, parse_overrides
from r2kg.config.protocol import protocols_of
from r2kg.config.run import Run, load_run
from r2kg.recipes import find_recipe, recipes
from shards.errors import ConfigError
from shards.session import connect_ray
from tune.ablations import PREFIX, find_ablation


def main(
    recipe: Annotated[
        str,
        typer.Argument(help="a name from `r2kg recipes`, their.module:function, ablation:RECIPE:NAME, or a run.json"),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(help="key=value, e.g. data.shards=films; further recipes are trained after it, one by one"),
    ] = None,
) -> None:
    """Train a run; one whose name exists is continued from its newest good checkpoint.

    Of several, such as the stages of a system, each gets the changes of what it has; those that have ended are not
    trained again, so that the same command goes on in the middle.

    Ended by a loss (of a worker, of Ray's head, of the driver) it starts over, at most train.max_restarts times, and
    exits with 75 after that: submit it again then.
    """
    further = [word for word in words or [] if names_recipe(word)]
    names, changes = [recipe, *further], [word for word in words or [] if word not in further]
    for one in [*map(with_shards, stages(names, changes) if further else [resolve(recipe, changes)])]:
        if code := supervise(one, attempt):
            sys.exit(code)


def names_recipe(word: str) -> bool:
    """Whether a word of the command line is a recipe's name, maybe misspelt, and not a change of one."""
    modules = {name.partition(".")[0] for name in recipes()}
    return "=" not in word and (word.partition(".")[0] in modules or ":" in word or word.endswith(".json"))


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


def stages(names: list[str], words: list[str]) -> list[Run]:
    """The runs of several recipes. A change is made where there is such a field, and must be somewhere.

    What of a later run can be known before the first is trained is looked at: what it begins with, and its encoder.

    Raises:
        ConfigError: as `resolve`; a field that none has; two runs of one name; a run that begins with one that is
            neither there nor trained before it.
    """
    changes, runs = parse_overrides(words), list[Run]()
    lacking, told = {key: list[ConfigError]() for key in changes}, list[str]()
    for name in names:
        start, own = resolve(name, []), dict[str, Any]()
        for key, value in changes.items():
            try:
                assign(start.model_dump(), Run, key, value)
                if key == "data.features" and start.inputs.encoder is None:
                    raise ConfigError(f"data.features: {name} has no encoder whose features could be streamed")
                own[key] = value
            except ConfigError as error:
                lacking[key].append(error)
                told.append(f"{name} is trained without {key}, which it does not have.\n")
        runs.append(start.change(own))
    for errors in lacking.values():
        if len(errors) == len(names):
            raise errors[-1]
    refuse_unready(runs)
    print("".join(told), end="")
    return runs


def refuse_unready(runs: list[Run]) -> None:
    """ConfigError for what would show only when a later run starts: its name, its beginning, its encoder."""
    trained = set[str]()
    for one in runs:
        first, root = one.train.init_from.rpartition("@")[0], one.directory.parent
        if one.name in trained:
            raise ConfigError(f"two of these would be one run, {one.name}: leave name= out where several are trained")
        there = any((at / "run.json").is_file() for at in (Path(first), root / first))
        if first and first not in trained and not there:
            raise ConfigError(
                f"{one.name} begins with {one.train.init_from}, and no run {first} is under {root} or trained before "
                "it here: name its recipe first, or set train.init_from"
            )
        weights = getattr(one.inputs.encoder, "weights", "timm")  # of a Vision
        if weights not in ("timm", "random", "package") and not Path(weights).expanduser().is_file():
            raise ConfigError(
                f"{one.name}: model.vision.weights={weights} is not a file: name one, or timm for its own weights"
            )
        trained.add(one.name)


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
