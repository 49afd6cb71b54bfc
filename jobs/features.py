"""Encode every film once with a run's frozen encoder, beside the shards."""

from typing import Annotated

import typer

from jobs.cli import run
from jobs.train import resolve
from r2kg.training.features import NAME, refuse_tuned, write_features
from r2kg.training.plan import checked_manifest
from shards.session import connect_ray
from shards.tars.place import is_local, place
from shards.tars.side_manifest import side_lines, without_member


def main(
    recipe: Annotated[
        str, typer.Argument(help="a name from `r2kg recipes`, their.module:function, or a saved run.json")
    ],
    changes: Annotated[list[str] | None, typer.Argument(help="key=value, as for train")] = None,
    out: Annotated[str, typer.Option(help="directory or URL; default: SHARDS/side/features-ENCODER")] = "",
    actors: Annotated[int, typer.Option(help="processes that hold the encoder, one GPU each where there are GPUs")] = 1,
) -> None:
    """Write the features of all splits; train with data.features=PLACE then reads them in place of the films."""
    chosen = resolve(recipe, changes or []).absolute()
    refuse_tuned(chosen)
    manifest = checked_manifest(chosen)
    root = place(chosen.data.shards)
    where = place(out) if out else root / "side" / NAME.format(chosen.model.vision.name)
    connect_ray(where if is_local(where) else None)
    side = write_features(chosen, manifest, where, actors)
    print("\n".join(side_lines(side)))
    for key, cause in without_member(where, side):
        print(f"Without features: {key}: {cause}")
    print(where)


if __name__ == "__main__":
    run(main)
