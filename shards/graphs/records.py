"""A side of triples as records for instruction tuning, a line of JSON a study: what other trainers read."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.graphs.text import triples_text
from shards.graphs.triples import unpack_triples
from shards.privacy import terms_of
from shards.stream.index import open_splits, studies_of
from shards.stream.side import Side
from shards.tars.format import read_manifest
from shards.tars.kinds import read_side
from shards.tars.place import Place, create

INSTRUCTION = (
    "Extract all triplets from the radiology report, as head , relation , tail with semicolons between them. Relations "
    "are modify, located_at and suggestive_of. Write none if there is no triplet."
)
PORTION = 256


def write_records(root: str | Place, side: str | Place, path: Path) -> int:
    """Write the records of all studies that have triples, by split and in the order of the shards; their number.

    Of credentialed data the file is readable by its owner alone, from its first byte on.

    Raises:
        DataError: a record or a member that cannot be read; the disk.
    """
    count, private = 0, terms_of(read_manifest(root).licence).credentialed
    path.parent.mkdir(parents=True, exist_ok=True)
    before = os.umask(0o077) if private else None
    try:
        with create(path) as file:
            for record in records_of(root, side):
                file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
                count += 1
    finally:
        if before is not None:
            os.umask(before)
    return count


def records_of(root: str | Place, side: str | Place) -> Iterator[dict[str, Any]]:
    """{"id", "split", "image_path", "instruction", "input", "output", "triplets", "source"} of studies with triples.

    image_path: the films as TAR/MEMBER below the shards, frontal first; input: the report as written; output:
    `triples_text` of the triplets; source: the origin of the triples.
    """
    manifest, origin = read_manifest(root), str(read_side(side, "triples").description.get("origin"))
    for split, index in open_splits(root, manifest).items():
        beside = Side.open(side, index, manifest, "triples")
        for start in range(0, len(index), PORTION):
            rows = range(start, min(start + PORTION, len(index)))
            of = dict(beside.held(rows))
            for row, study in studies_of(index, [*of]):
                if study is None:
                    continue
                triples, tar = unpack_triples(of[row]), index.tars[int(index.tar[row])]
                yield {
                    "id": study.id,
                    "split": split,
                    "image_path": [f"{tar}/{study.key}.{view}.jpg" for view in range(len(study.views))],
                    "instruction": INSTRUCTION,
                    "input": study.report,
                    "output": triples_text(triples),
                    "triplets": triples,
                    "source": origin,
                }
