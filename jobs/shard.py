"""Make shards from a raw dataset."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import run
from shards.cluster import connect_ray
from shards.sources import open_source
from shards.write import write_shards


def main(
    source: Annotated[str, typer.Argument(help="phantom or iu_xray")],
    out: Annotated[Path, typer.Option(help="directory of the shards")],
    raw: Annotated[Path | None, typer.Option(help="root of the raw dataset; not for phantom")] = None,
    studies: Annotated[int | None, typer.Option(help="phantom: studies to draw")] = None,
    size: Annotated[int, typer.Option(help="short side of the stored films, pixels")] = 512,
    studies_per_shard: Annotated[int, typer.Option(help="studies in one tar")] = 512,
    cleaning: Annotated[str | None, typer.Option(help="cleaning of the target; default: the source's own")] = None,
    on_bad: Annotated[str, typer.Option(help="skip (count and name) or fail")] = "skip",
) -> None:
    """Write shards and manifest.json; shards that are there already are kept."""
    given = {"raw": raw, "studies": studies}
    connect_ray()
    manifest = write_shards(
        open_source(source, **{name: value for name, value in given.items() if value is not None}),
        out, size=size, studies_per_shard=studies_per_shard, cleaning=cleaning, on_bad=on_bad,
    )  # fmt: skip
    for split, count in manifest.splits.items():
        print(f"{split:6} {count.studies:>8,} studies {count.images:>9,} films {count.patients:>8,} patients")
    for drop in manifest.drops:
        print(f"Dropped {drop.id} ({drop.split}): {drop.reason}: {drop.detail}")
    used = manifest.given - len(manifest.drops)
    print(f"{manifest.given} studies given, {used} used, {len(manifest.drops)} dropped.")
    print(f"Fingerprint {manifest.fingerprint[:12]}.")
    print(out.resolve())


if __name__ == "__main__":
    run(main)
