"""Encode every film once with a run's frozen encoder, beside the shards."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import run
from jobs.train import resolve, with_shards
from shards.tars.kinds import without_member
from shards.tars.place import place
from shards.tars.report import side_lines


def main(
    recipe: Annotated[
        str, typer.Argument(help="a name from `r2kg recipes`, their.module:function, or a saved run.json")
    ],
    changes: Annotated[list[str] | None, typer.Argument(help="key=value, as for train")] = None,
    out: Annotated[str, typer.Option(help="directory or URL; default: SHARDS/side/features-ENCODER")] = "",
    actors: Annotated[
        int, typer.Option(min=1, help="processes that hold the encoder, one GPU each where there are GPUs")
    ] = 1,
) -> None:
    """Write the features of all splits; train with data.features=PLACE then reads them in place of the films."""
    resolved = with_shards(resolve(recipe, changes or []))
    # torch and Ray take seconds: what is refused without them is refused first
    from r2kg.training.features import NAME, encoder_of, refuse_tuned, write_features
    from r2kg.training.plan import checked_manifest
    from shards.session import connect_ray

    refuse_tuned(resolved)
    manifest = checked_manifest(resolved)
    where = place(out) if out else place(resolved.data.shards) / "side" / NAME.format(encoder_of(resolved).name)
    connect_ray(where if isinstance(where, Path) else None)
    side = write_features(resolved, manifest, where, actors)
    print("\n".join(side_lines(side)))
    for key, cause in without_member(where, side):
        print(f"Without features: {key}: {cause}")
    print(where)


if __name__ == "__main__":
    run(main)
