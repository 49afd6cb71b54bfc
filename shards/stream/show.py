"""One study of the shards, for people."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from shards.errors import ConfigError, DataError
from shards.films.limits import refuse_size, undecodable
from shards.stream.index import Index
from shards.study import SPLITS, Study
from shards.tars.format import Manifest, dropped_in, read_manifest
from shards.tars.place import Place, place
from shards.tars.private import names_of


def find_study(root: str | Place, key: str) -> tuple[Index, int]:
    """Index and row of the study with this key or, in the owner's writing, this id; DataError when there is none."""
    root = place(root)
    manifest = read_manifest(root)
    salted = _key(manifest, key)
    wanted = {key.encode(), (salted or key).encode()}
    for split in SPLITS:
        if manifest.splits[split].studies:
            index = Index.open(root, split, "skip", manifest)
            if len(rows := np.flatnonzero(np.isin(index.keys, list(wanted)))):
                return index, int(rows[0])
    dropped = (drop for drop in dropped_in(root) if {drop.id.encode(), drop.id.lower().encode()} & wanted)
    drop = next(dropped, None)
    why = f": it was dropped ({drop.reason})" if drop else f"; {manifest.given:,} studies were given"
    hint = "" if salted else ". Ids of the owner cannot be looked up without the salt of these shards (R2KG_SALT)"
    raise DataError(f"no study {key!r} in {root}{why}. Keys stand in the *.index.json files{hint}")


def _key(manifest: Manifest, identifier: str) -> str | None:
    """None: they are salted, and the salt is elsewhere."""
    try:
        return names_of(manifest).key(identifier)
    except (ConfigError, DataError):
        return None


def study_lines(index: Index, row: int) -> Iterator[str]:
    """What the record holds, and where its films lie."""
    films, record = index.read(row)
    study = Study.model_validate_json(index.record_of(row, record))
    yield f"{study.key} (id {study.id}, patient {study.patient or 'unknown'}), {study.split}"
    yield f"in {index.root}/{index.tars[int(index.tar[row])]}"
    if len(study.views) != len(films):
        raise DataError(f"study {study.key} has {len(films)} films, and its record names {len(study.views)}")
    for number, (view, film) in enumerate(zip(study.views, films, strict=True)):
        width, height = _stored(film, f"film {number} of {study.key}").size
        yield f"film {number}: {view.position}, {width}x{height} px, {len(film):,} bytes {view.file}".rstrip()
    for name, text in study.sections.items():
        yield f"{name}: {text}"
    yield f"target: {study.target}"
    labels = {name: value for name, value in study.labels.items() if value is not None}
    yield "labels: " + (", ".join(f"{name} {value:+d}" for name, value in labels.items()) or "none")
    yield "triples: " + ("; ".join(" ".join(triple) for triple in study.triples) or "none")


def write_films(index: Index, row: int, folder: Path) -> Iterator[Path]:
    """The study's films as FOLDER/KEY.V.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, film in enumerate(index.read(row)[0]):
        path = folder / f"{index.keys[row].decode()}.{number}.png"
        _stored(film, path.stem).save(path)
        yield path


def _stored(film: memoryview, name: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(film), formats=("JPEG",)) as image:
            refuse_size(*image.size, least=1)
            image.load()
            return image
    except Exception as error:  # as in `shards.films.stored.decode`
        raise undecodable(name, error) from None
