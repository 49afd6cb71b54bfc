"""Write the baseline that copies the report of the nearest training film."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import run
from r2kg.config.protocol import protocols_of
from shards.errors import DataError
from shards.tars.format import read_manifest
from shards.tars.kinds import only_side
from shards.tars.place import place


def main(
    shards: Annotated[str, typer.Argument(help="directory or URL of the shards")],
    features: Annotated[
        str, typer.Option(help="the side of a frozen encoder's features; default: the only one below SHARDS/side")
    ] = "",
    out: Annotated[Path, typer.Option(help="directory, as that of a run")] = Path("runs/nearest"),
    split: Annotated[str, typer.Option(help="train, val or test")] = "test",
    protocol: Annotated[list[str] | None, typer.Option(help="may be given more than once; default: of reports")] = None,
) -> None:
    """Give every study the report of the training study whose films are nearest: what a generator has to beat."""
    root = place(shards)
    manifest = read_manifest(root)
    if not manifest.splits.get(split) or not manifest.splits[split].studies:
        raise DataError(f"split {split!r} of {root} holds no study: its splits are {', '.join(manifest.splits)}")
    protocols_of(protocol or (), "report")
    seen = place(features) if features else only_side(root, "features", "--features")
    from r2kg.scoring.controls.nearest import write_nearest  # seconds of torch and Ray
    from shards.session import connect_ray

    connect_ray(out)
    print(write_nearest(root, seen, out.resolve(), split, tuple(protocol or ())))


if __name__ == "__main__":
    run(main)
