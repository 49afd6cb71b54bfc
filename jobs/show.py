"""Print the run that a recipe and its overrides make."""

from typing import Annotated

import typer

from jobs.cli import run
from r2kg.overrides import parse_overrides
from r2kg.recipes import find_recipe


def main(
    recipe: Annotated[str, typer.Argument(help="a name from `r2kg recipes`, or their.module:function")],
    changes: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. train.epochs=3")] = None,
) -> None:
    """Print the resolved run as JSON; nothing is run."""
    print(find_recipe(recipe).change(parse_overrides(changes or [])).model_dump_json(indent=2))


if __name__ == "__main__":
    run(main)
