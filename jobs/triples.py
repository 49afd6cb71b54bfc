"""Write what is right about every study for systems that write triples, beside shards whose films are not touched."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.cli import run
from shards.errors import ConfigError
from shards.privacy import terms_of
from shards.study import SPLITS
from shards.tars.format import read_manifest
from shards.tars.kinds import only_side
from shards.tars.place import place
from shards.tars.report import side_lines


def main(
    shards: Annotated[str, typer.Argument(help="directory or URL of the shards")],
    annotations: Annotated[str, typer.Option(help="the side; default: the only one below SHARDS/side")] = "",
    radgraph: Annotated[
        list[str] | None, typer.Option(help="file of RadGraph in their place; may be given more than once")
    ] = None,
    annotator: Annotated[
        Literal["labeler_1", "labeler_2", "merge"] | None,
        typer.Option(help="of RadGraph's documents that have two; default: labeler_1"),
    ] = None,
    triples: Annotated[str, typer.Option(help=".csv or .jsonl of the studies' triples in their place")] = "",
    predictions: Annotated[
        Path | None, typer.Option(help="predictions.jsonl of a system that writes triples, or its RUN, in their place")
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="say which heads and tails are absent or uncertain")] = False,
    isolated: Annotated[bool, typer.Option("--isolated", help="say the status of entities without relation")] = False,
    jsonl: Annotated[Path | None, typer.Option(help="write records for instruction tuning besides")] = None,
    out: Annotated[str, typer.Option(help="directory or URL; default: SHARDS/side/triples")] = "",
) -> None:
    """Write one tar of triples for every tar of the shards, and side.json; tars that are whole are kept.

    They are what annotations say, RadGraph's files, a file of triples or predictions. All tell what the study's own
    report says: they are targets and references, never an input of a model that is tested.
    """
    root = place(shards)
    manifest = read_manifest(root)
    named = {"annotations": annotations, "radgraph": radgraph, "triples": triples, "predictions": predictions}
    if len(given := [f"--{name}" for name, value in named.items() if value]) > 1:
        raise ConfigError(f"{' and '.join(given)} were given: triples come from one of them")
    if annotator and not radgraph:
        raise ConfigError("--annotator goes with --radgraph: nothing else has two")
    if (status or isolated) and (triples or predictions):
        raise ConfigError("--status and --isolated go with annotations or --radgraph: other triples are as they are")
    said = place(annotations) if annotations else None
    if not given:
        said = only_side(root, "annotations", "--annotations")
    from r2kg.graph.build.triples import (  # a second of Ray
        NAME,
        of_file,
        of_predictions,
        of_radgraph,
        write_annotated_triples,
        write_listed_triples,
    )
    from shards.graphs.records import write_records
    from shards.session import connect_ray

    where = place(out) if out else root / "side" / NAME
    if radgraph:
        source = of_radgraph(radgraph, annotator or "labeler_1", status, isolated)
    elif triples:
        source = of_file(triples)
    elif predictions:
        from r2kg.rundir import newest_predictions
        from r2kg.scoring.evaluate import context_beside, read_predictions

        path = newest_predictions(predictions, unscored=True)
        source = of_predictions(path, read_predictions(path, scored=False), context_beside(path))
    connect_ray(where if isinstance(where, Path) else None)
    if said:
        side = write_annotated_triples(root, where, said, status, isolated)
    else:
        side = write_listed_triples(root, where, source)
    print("\n".join(side_lines(side)))
    if lacking := [split for split in SPLITS if split not in side.description["splits"]]:
        print(f"No triples of {', '.join(lacking)}: neither trained nor scored there.")
    if jsonl:
        print(f"{write_records(root, where, jsonl):,} records in {jsonl}, terms: {terms_of(manifest.licence).summary}.")
    print(where)


if __name__ == "__main__":
    run(main)
