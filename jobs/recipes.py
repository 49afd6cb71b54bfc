"""List the recipes with the first line of what they say of themselves, and the ablations of a system."""

from typing import Annotated

import typer

from jobs.cli import run
from r2kg.recipes import recipes
from tune.ablations import ablations


def main(
    of: Annotated[
        str, typer.Option("--ablations", help="those of this system, e.g. r2genkg, in place of recipes")
    ] = "",
) -> None:
    """Print every recipe's name and summary."""
    for name, (question, _) in ablations(of.partition(".")[0]).items() if of else ():
        print(f"{f'ablation:RECIPE:{name}':36} {question}")
    if of:
        return
    for name, function in recipes().items():
        print(f"{name:32} {(function.__doc__ or '').strip().splitlines()[0]}")


if __name__ == "__main__":
    run(main)
