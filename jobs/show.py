"""Print the run that a recipe and its overrides make."""

from typing import Annotated

import typer

from jobs.cli import run
from jobs.train import resolve


def main(
    recipe: Annotated[
        str, typer.Argument(help="a name from `r2kg recipes`, their.module:function, or a saved run.json")
    ],
    changes: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. train.epochs=3")] = None,
) -> None:
    """Print the resolved run as JSON; nothing is run."""
    print(resolve(recipe, changes or []).model_dump_json(indent=2))


if __name__ == "__main__":
    run(main)
