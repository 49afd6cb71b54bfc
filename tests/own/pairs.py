"""A second system, of another shape than r2kg's own: what it is configured by, and the side that it reads.

An encoder of its own, a recurrent decoder with a cache of its own, a second loss term that is a mean over studies, a
buffer that training changes, a vocabulary that is made before the run, and a side as input. Nothing of r2kg knows it.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from r2kg.config.needs import Artefact, Inputs
from r2kg.config.parts import Data, Decoding, Local
from r2kg.config.run import Run, System
from shards.stream.index import Index, open_splits, read_targets
from shards.tars.format import Manifest, read_manifest
from shards.tars.kinds import KINDS, Kind
from shards.tars.sides import write_side
from shards.tars.write import Made

MARKS = 4
KINDS["marks"] = Kind(suffix="marks", extent=("marks",), column="marks", how="`tests.own.pairs.write_marks`")


class Pairs(System):
    """Films and marks → report."""

    build: ClassVar[str] = "pairs_model:PairsModel"

    system: Literal["pairs:Pairs"] = "pairs:Pairs"
    """Names this part."""
    image_px: int = Field(default=32, ge=8)
    """Side of the film."""
    width: int = Field(default=32, ge=8)
    """Channels."""
    marks_weight: float = 0.5
    """Factor of the second term."""
    words: Local = ""
    """Directory of the vocabulary; made before the run."""
    decoding: Decoding = Decoding(beams=2, length_rule="r2gen", max_new_tokens=12)

    def inputs(self, data: Data) -> Inputs:
        """Films and the marks beside them."""
        return Inputs(image_px=self.image_px, views=data.views, sides=("marks",))

    def prepare(self, run: Run, manifest: Manifest) -> Iterable[Artefact]:
        """The vocabulary of the training reports."""
        if self.words:
            return

        def make(folder: Path) -> None:
            counts = Counter(word for text in read_targets(run.data.shards, "train") for word in text.split())
            (folder / "words.json").write_text(json.dumps(sorted(counts)))

        yield Artefact("words", {"shards": manifest.fingerprint}, make, "model.words", "Counting words")


class Marker:
    """Maker of a side of marks: a study's key, as four numbers."""

    def __call__(self, index: Index, rows: range, given: bytes) -> Iterator[Made]:
        """KEY.marks of every study but one in ten, which has none."""
        for row in rows:
            number = int(index.keys[row].decode().rpartition("-")[2])
            yield Made({"marks": bytes((number * step) % 251 for step in range(1, MARKS + 1))} if number % 10 else {})


def write_marks(shards: Path) -> Path:
    """The side of marks, where a run looks for it."""
    manifest = read_manifest(shards)
    description: dict[str, Any] = {"marks": MARKS}
    write_side(shards, shards / "side" / "marks", "marks", manifest, open_splits(shards, manifest), description, Marker)
    return shards / "side" / "marks"
