"""A side of triples: what is right about every study for systems that write triples, or what such a system said.

They are flattened from annotations, which lie beside the shards, or listed: in RadGraph's files, in a file of triples,
in predictions. A study without a member has no known triples; one that is known to have none has an empty list.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import ray

from r2kg.graph.extract.annotate import NOT_ASKED
from r2kg.graph.schema import unpack
from shards.errors import DataError
from shards.graphs.radgraph import Annotator, documents_in, flattened
from shards.graphs.subgraph import Triple
from shards.graphs.text import VERSION, triples_in
from shards.graphs.triples import TripleFile, pack_triples
from shards.graphs.write import UNKNOWN
from shards.privacy import Names, terms_of
from shards.stream.index import Index, open_splits
from shards.stream.side import Side
from shards.tars.format import Manifest, read_manifest
from shards.tars.kinds import KINDS, SideManifest, read_side, refuse_other
from shards.tars.place import Place, place, sha256_of
from shards.tars.private import names_of
from shards.tars.sides import write_side
from shards.tars.write import Made

NAME = "triples"
"""Kind of the side, and its place below SHARDS/side."""
SUFFIX = KINDS[NAME].suffix
NOT_LISTED, NOT_ANNOTATED, UNREADABLE = "no triples are listed", "not annotated", "triples that cannot be kept"
AGAIN = "study that was listed before"


class Listed(NamedTuple):
    """The triples that one place of a source gives one study."""

    study: tuple[str, ...]
    """Names that the study may have, the likeliest first: its key, or as the data's owner writes it."""
    where: str
    """What is said of it where no study has these names and the data are credentialed, such as "line 3"."""
    triples: tuple[Triple, ...]
    by_key: bool = False
    """The names are keys of the shards, not the owner's."""
    source: str = ""
    """Of several that give a study triples the first counts, with all that it gives."""


class Source(NamedTuple):
    """Where listed triples come from."""

    listed: Iterable[Listed]
    description: dict[str, Any]
    """What decides them: origin, files by hash, settings."""


def write_annotated_triples(
    root: str | Place, out: str | Place, annotations: str | Place, status: bool = False, isolated: bool = False
) -> SideManifest:
    """Write the triples that the annotations say into `out`, of the splits that are annotated.

    Args:
        status, isolated: see `shards.graphs.radgraph.flattened`.

    Raises:
        ConfigError: `out` cannot be used.
        DataError: annotations of other shards, or damaged ones.
    """
    manifest, side = read_manifest(root), read_side(annotations, "annotations")
    refuse_other(annotations, side, manifest, "annotations")
    indices, named = open_splits(root, manifest), side.description.get("splits", ())
    splits = [split for split in indices if split in named]
    ref = ray.put({split: Side.open(annotations, indices[split], manifest, "annotations") for split in splits})
    description = {"origin": "annotations", "annotations": side.fingerprint, "status": status, "isolated": isolated}
    description |= {name: side.description.get(name) for name in ("extractor", "settings")} | {"splits": splits}

    def annotated(index: Index, rows: range, given: bytes) -> Iterator[Made]:
        beside: Side | None = ray.get(ref).get(index.split)
        held = dict(beside.held(rows)) if beside else {}
        for row in rows:
            if (data := held.get(row)) is None:
                yield Made(cause=NOT_ANNOTATED if beside else NOT_ASKED)
                continue
            said = unpack(data)
            entities = [(entity.name, str(entity.certainty)) for entity in said.entities]
            relations = [(relation.head, str(relation.kind), relation.tail) for relation in said.relations]
            yield _made(flattened(entities, relations, status, isolated))

    return write_side(root, out, NAME, manifest, indices, description, lambda: annotated)


def write_listed_triples(root: str | Place, out: str | Place, source: Source) -> SideManifest:
    """Write listed triples into `out`, each beside the study whose names they are listed under.

    Raises:
        ConfigError: `out` cannot be used.
        DataError: what reading the source raises; no study of these shards is listed.
    """
    manifest = read_manifest(root)
    indices = open_splits(root, manifest)
    given, warnings, splits = _matched(source.listed, manifest, indices)
    if not splits:
        some = ", ".join(warnings.get(UNKNOWN, ())[:3]) or "nothing at all"
        raise DataError(
            f"none of the {len(warnings.get(UNKNOWN, ())):,} studies listed ({some}) is in the shards at {root}: give "
            "what was made of these shards' data, with the owner's ids of studies or the keys of `r2kg shards show`"
        )
    description = source.description | {"splits": splits}
    return write_side(root, out, NAME, manifest, indices, description, lambda: _listed, given, warnings)


def _listed(index: Index, rows: range, given: bytes) -> Iterator[Made]:
    """The maker of listed triples; `given` is JSON, row → triples."""
    of = json.loads(given or b"{}")
    for row in rows:
        listed = of.get(str(row))
        yield Made(cause=NOT_LISTED) if listed is None else _made([tuple(triple) for triple in listed])


def _made(triples: Sequence[Triple]) -> Made:
    """A study's member, and what is counted of it."""
    try:
        data = pack_triples(triples)
    except DataError as error:
        return Made(cause=UNREADABLE, detail=str(error))
    count = len(set(triples))
    return Made({SUFFIX: data}, totals={"triples": count, "studies of no triple": int(not count)},
                largest={"triples": count})  # fmt: skip


def _matched(
    listed: Iterable[Listed], manifest: Manifest, indices: Mapping[str, Index]
) -> tuple[dict[str, bytes], dict[str, tuple[str, ...]], list[str]]:
    """Tar → what `_listed` reads, what was not used, and the splits that have triples."""
    rows = {key: (split, row) for split, index in indices.items() for row, key in enumerate(index.keys.tolist())}
    private, names = terms_of(manifest.licence).credentialed, list[Names]()
    of, sources = dict[tuple[str, int], dict[Triple, None]](), dict[tuple[str, int], str]()
    unknown, again = dict[str, None](), dict[str, None]()

    def find(one: Listed) -> tuple[str, int] | None:
        for name in one.study:
            if found := rows.get(name.encode("utf-8", "replace")):
                return found
        if not one.by_key:
            names.extend(() if names else [names_of(manifest)])
        keys = () if one.by_key else (names[0].key(name) for name in one.study)
        return next((rows[key.encode()] for key in keys if key.encode() in rows), None)

    for one in listed:
        shown = one.where if private else one.study[0]
        if (at := find(one)) is None:
            unknown[shown] = None
        elif sources.setdefault(at, one.source) != one.source:
            again[shown] = None
        else:
            of.setdefault(at, {}).update(dict.fromkeys(one.triples))
    by_tar = defaultdict[str, dict[int, list[Triple]]](dict)
    for (split, row), triples in sorted(of.items()):
        by_tar[indices[split].tars[int(indices[split].tar[row])]][row] = [*triples]
    warnings = {what: tuple(names) for what, names in ((UNKNOWN, unknown), (AGAIN, again)) if names}
    given = {tar: json.dumps(rows).encode() for tar, rows in by_tar.items()}
    return given, warnings, [split for split in indices if any(known == split for known, _ in of)]


def of_radgraph(
    files: Sequence[str | Place], annotator: Annotator, status: bool = False, isolated: bool = False
) -> Source:
    """Triples of RadGraph's files; a study that several documents are of has those of the first file's first.

    A document is named by the study's id, by its key, or by a path that ends with the id, with an s before it or not:
    p18/p18004941/s58821758.txt. Names are RadGraph's, in small letters.
    """

    def listed() -> Iterator[Listed]:
        for file in files:
            for document in documents_in(file, annotator):
                stem = PurePosixPath(document.name).name.removesuffix(".txt")
                study = dict.fromkeys((document.name, stem, stem.removeprefix("s")))
                entities = [(" ".join(one.tokens.lower().split()), one.certainty) for one in document.entities]
                where = f"{place(file).name}, document {document.number}"
                triples = flattened(entities, document.relations, status, isolated)
                yield Listed(tuple(study), where, triples, source=where)

    settings = {"annotator": annotator, "status": status, "isolated": isolated}
    return Source(listed(), {"origin": "radgraph", "files": [_file(path) for path in files]} | settings)


def of_file(path: str | Place) -> Source:
    """Triples of a file as `r2kg subgraphs` takes it (`TripleFile`)."""
    said = TripleFile(place(path)).statements()
    listed = (Listed((one.study,), f"line {one.line}", one.triples, one.by_key) for one in said)
    return Source(listed, {"origin": "file", "files": [_file(path)]})


def of_predictions(path: str | Place, lines: Iterable[Mapping[str, Any]], context: Mapping[str, Any]) -> Source:
    """What predictions of the task "triples" say.

    Args:
        lines: of the file at `path` (`r2kg.scoring.evaluate.read_predictions`).
        context: context.json beside it, {} without one.

    Raises:
        DataError: predictions of another task, or not one triple in them.
    """
    task = context.get("task") or "triples"
    said = [(line, triples_in(line["prediction"], line.get("truncated") is True).triples) for line in lines]
    if task != "triples" or not any(triples for _, triples in said):
        what = f"are of the task {str(task)[:20]!r}" if task != "triples" else "say not one triple"
        raise DataError(f"the predictions in {path} {what}: give those of a system that writes triples")
    listed = (
        Listed(tuple({str(line.get(name) or line["id"]): None for name in ("key", "id")}), f"line {number}", triples)
        for number, (line, triples) in enumerate(said, start=1)
    )
    made_by = {name: context.get(name) for name in ("run", "checkpoint", "checkpoint_sha256")}
    return Source(listed, {"origin": "predictions", "files": [_file(path)], "rules": VERSION} | made_by)


def _file(path: str | Place) -> dict[str, str]:
    return {"name": place(path).name, "sha256": sha256_of(place(path))}
