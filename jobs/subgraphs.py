"""Write the studies' subgraphs beside shards, whose films are not touched."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import run
from shards.errors import OnBad
from shards.tars.format import read_manifest
from shards.tars.place import place
from shards.tars.report import side_lines


def main(
    shards: Annotated[str, typer.Argument(help="directory or URL of the shards")],
    triples: Annotated[str, typer.Option(help=".csv or .jsonl of the studies' triples; default: the records'")] = "",
    graph: Annotated[str, typer.Option(help=".csv or .json of a graph: take the part of it that a study names")] = "",
    out: Annotated[str, typer.Option(help="directory or URL; default: SHARDS/side/subgraphs")] = "",
    on_bad: Annotated[OnBad, typer.Option(help="a record that cannot be read: skip (count) or fail")] = "skip",
) -> None:
    """Write one tar of subgraphs for every tar of the shards, and side.json; tars that are whole are kept.

    Subgraphs tell what a study's own report says: they are targets or labels, never an input of a model that is tested.
    """
    root = place(shards)
    read_manifest(root)
    from shards.graphs.write import NAME, write_subgraphs  # a second of Ray, after what is refused without it
    from shards.session import connect_ray

    where = place(out) if out else root / "side" / NAME
    connect_ray(where if isinstance(where, Path) else None)
    side = write_subgraphs(root, where, triples, graph, on_bad)
    print("\n".join(side_lines(side)))
    print(where)


if __name__ == "__main__":
    run(main)
