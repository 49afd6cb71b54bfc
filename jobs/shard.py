"""Make shards from a raw dataset."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from jobs.cli import run
from r2kg.config.overrides import parse_overrides
from shards.errors import ConfigError, OnBad
from shards.privacy import TERMS
from shards.sources import SOURCES, open_source
from shards.tars.format import SIZE
from shards.tars.place import place
from shards.tars.report import counts_table, receipt_lines


def main(
    source: Annotated[str, typer.Argument(help=", ".join(SOURCES))],
    out: Annotated[str, typer.Option(help="directory or URL of the shards")],
    options: Annotated[list[str] | None, typer.Argument(help="the source's own, key=value, e.g. min_views=2")] = None,
    raw: Annotated[str | None, typer.Option(help="root of the raw dataset; not for phantom")] = None,
    studies: Annotated[int | None, typer.Option(help="phantom: studies to draw")] = None,
    terms: Annotated[
        str | None, typer.Option(help=f"csv, webdataset: {', '.join(TERMS)}; else treated as credentialed")
    ] = None,
    size: Annotated[int, typer.Option(help="short side of the stored films, pixels")] = SIZE,
    studies_per_shard: Annotated[int, typer.Option(help="studies in one tar")] = 512,
    cleaning: Annotated[str | None, typer.Option(help="cleaning of the target; default: the source's own")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="put them in the place of other shards there")] = False,
    on_bad: Annotated[OnBad, typer.Option(help="skip (count and name) or fail")] = "skip",
    overlap: Annotated[
        Literal["fail", "report"], typer.Option(help="patients in two splits: fail, or report in the manifest")
    ] = "fail",
) -> None:
    """Write shards and manifest.json, and print the receipt; shards of the same command that are there are kept."""
    if raw and "://" in raw:
        raise ConfigError(f"--raw {raw}: raw data is read from a file system; mount it or copy it. --out may be a URL")
    if terms and terms not in TERMS:
        raise ConfigError(f"--terms {terms}: known are {', '.join(TERMS)}; what is not said is treated as credentialed")
    if terms and source in SOURCES and source not in ("csv", "webdataset"):
        raise ConfigError(f"--terms {terms}: the terms of {source} are known; the option is for csv and webdataset")
    said = {"raw": raw, "studies": studies, "licence": terms}
    given = {name: value for name, value in said.items() if value is not None}
    more = parse_overrides(options or [])
    if twice := sorted(given.keys() & more.keys()):
        raise ConfigError(f"{twice[0]} is given twice, by an option and as {twice[0]}=: leave one of them out")
    opened = open_source(source, **given, **more)
    where = place(out)
    from shards.session import connect_ray  # a second of Ray, after what is refused without it
    from shards.tars.shards import write_shards

    connect_ray(where if isinstance(where, Path) else None)
    manifest = write_shards(
        opened, where, size=size, studies_per_shard=studies_per_shard, cleaning=cleaning, on_bad=on_bad,
        overlap=overlap, replace=replace,
    )  # fmt: skip
    Console(width=110).print(counts_table(manifest))
    print("\n".join(receipt_lines(where, manifest)))
    print(where)


if __name__ == "__main__":
    run(main)
