"""Annotate the reports of shards: a side with what an extractor says of every training report.

Of the training split alone: what is learned from a report, a graph above all, must not come from one that is tested
on. Other splits are annotated when they are asked for by name, and the side says so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from r2kg.graph.schema import Annotation, Extractor, pack, unpack
from shards.errors import DataError, OnBad
from shards.privacy import fence
from shards.stream.index import Index, open_splits, studies_of
from shards.stream.side import Side
from shards.tars.format import read_manifest
from shards.tars.kinds import KINDS, UNREAD, SideManifest
from shards.tars.place import Place
from shards.tars.sides import write_side
from shards.tars.write import Made

BATCH = 64
"""Reports that an extractor is given, or annotations that are asked for, at once."""
NOT_ASKED = "split not annotated"
SUFFIX = KINDS["annotations"].suffix


def write_annotations(
    root: str | Place,
    out: str | Place,
    extractor: Extractor,
    splits: Sequence[str] = ("train",),
    on_bad: OnBad = "skip",
    actors: int = 0,
) -> SideManifest:
    """Write what `extractor` says of the reports of the shards at `root` into `out`; tars that are whole are kept.

    Args:
        splits: whose reports are read.
        on_bad: a report that cannot be read or annotated: none for this study, and counted, or stop.
        actors: processes that hold the extractor, one GPU each where there are GPUs; 0: tasks.

    Raises:
        ConfigError: `out` cannot be used; the extractor cannot run as it is configured.
        DataError: under "fail", a report.
        RetryableError: an endpoint or a worker was lost; the same command goes on.
    """
    manifest = read_manifest(root)
    indices = open_splits(root, manifest)
    asked = {name: b"1" for split in splits if split in indices for name in indices[split].tars}
    if not asked:
        raise DataError(f"the shards at {root} have no studies of {', '.join(splits)}: nothing is annotated")
    description = {"extractor": extractor.name, "settings": extractor.settings(), "splits": sorted(splits)}
    maker = StudyAnnotations(extractor, manifest.licence, on_bad)
    return write_side(
        root, out, "annotations", manifest, indices, description, lambda: maker, given=asked, actors=actors
    )


def labelled(root: str | Place, annotations: str | Place, split: str = "train") -> Iterator[tuple[str, Annotation]]:
    """(report, what a side says of it) of the studies of a split that it says something of, in the index's order."""
    manifest = read_manifest(root)
    index = Index.open(root, split, manifest=manifest)
    side = Side.open(annotations, index, manifest, "annotations")
    for start in range(0, len(index), BATCH):
        rows = range(start, min(start + BATCH, len(index)))
        fetched = side.fetch(rows)
        for row, study in studies_of(index, rows, {}):
            if study and (data := side.read(row, fetched.get(row))) is not None:
                yield study.report, unpack(data)


@dataclass
class StudyAnnotations:
    """The maker: what the extractor says of the reports of one tar."""

    extractor: Extractor
    licence: str
    on_bad: OnBad

    def __call__(self, index: Index, rows: range, given: bytes) -> Iterator[Made]:
        """One annotation for every row; none where `given` is empty."""
        for start in range(rows.start, rows.stop, BATCH):
            part = range(start, min(start + BATCH, rows.stop))
            if not given:
                yield from (Made(cause=NOT_ASKED) for _ in part)
                continue
            studies = studies_of(index, part, {} if self.on_bad == "skip" else None)
            reports = [study.report if study else None for _, study in studies]
            before = self._spent()
            with fence(self.licence):
                annotations = iter(self._annotate([text for text in reports if text is not None]))
            spent = {name: count - before[name] for name, count in self._spent().items() if count > before[name]}
            for text in reports:
                annotation = next(annotations) if text is not None else None
                if annotation is None:
                    yield Made(cause=UNREAD if text is None else "not annotated", totals=spent)
                else:
                    said = {"entities": len(annotation.entities), "relations": len(annotation.relations)}
                    yield Made({SUFFIX: pack(annotation)}, totals=said | spent)
                spent = {}

    def _spent(self) -> dict[str, int]:
        """What the extractor has taken so far, where it counts that."""
        return dict(vars(usage)) if (usage := getattr(self.extractor, "usage", None)) else {}

    def _annotate(self, reports: list[str]) -> Sequence[Annotation | None]:
        """One annotation, or None, for every report; under "fail" a report without one is an error."""
        apart: Any = getattr(self.extractor, "annotate_or_none", None)
        return apart(reports) if apart and self.on_bad == "skip" else self.extractor.annotate(reports)
