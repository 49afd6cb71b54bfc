"""The classifier's part of a Run."""

from collections.abc import Iterable
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from r2kg.config.needs import Artefact, Inputs
from r2kg.config.parts import Data
from r2kg.config.run import Run, System
from r2kg.modules.config import Vision
from shards.errors import DataError
from shards.stream.facts import fact
from shards.stream.index import read_studies
from shards.study import FINDINGS
from shards.tars.format import Manifest


class ClassifierConfig(System):
    """Which findings the films of a study show: the mean of an encoder's tokens, and a head for every finding."""

    build: ClassVar[str] = "r2kg.systems.classifier.model:Classifier"
    trains: ClassVar[tuple[str, ...]] = ("vision", "head")
    task: ClassVar[Literal["report", "triples", "labels"]] = "labels"

    system: Literal["classifier"] = "classifier"
    """Names this part."""
    vision: Vision = Vision()
    """Image encoder."""
    labels: tuple[str, ...] = FINDINGS
    """Findings that are told, by the names that the shards' labels have."""
    hidden: tuple[int, ...] = (384, 48, 48)
    """Widths of the layers between the tokens' mean and a finding's logit, ReLU behind each, for every finding apart
    (AM-MRG). Empty: one linear map."""
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Label smoothing: 1 is learned as 1 - smoothing / 2, 0 as smoothing / 2."""
    uncertain: Literal["absent", "present", "left_out"] = "absent"
    """What a label of -1 is learned as."""
    unmentioned: Literal["absent", "left_out"] = "absent"
    """What a finding that the report is silent of is learned as."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability from which a finding is named."""

    @model_validator(mode="after")
    def _labels_and_films_can_be(self) -> Self:
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels={list(self.labels)} must name each finding once, and one at least")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden={list(self.hidden)} must be widths from 1 on")
        if self.vision.merge != "average":
            raise ValueError(
                f"model.vision.merge={self.vision.merge}: a classifier takes the mean of all tokens of a study, "
                "which is average"
            )
        return self

    def inputs(self, data: Data) -> Inputs:
        """Films, or the features of a frozen encoder."""
        return self.vision.inputs(data)

    def prepare(self, run: Run, manifest: Manifest) -> Iterable[Artefact]:
        """Nothing is made.

        Raises:
            DataError: no training study has one of the findings: nothing of it could be learned.
        """
        unread: dict[str, str] | None = {} if run.data.on_bad == "skip" else None
        seen = fact(run.data.shards, manifest, "label-counts", {}, lambda: self._count(run, unread), unread)
        if lacking := [name for name in self.labels if not seen.get(name)]:
            known = ", ".join(seen) or "none"
            raise DataError(
                f"no training study of {run.data.shards} has {', '.join(lacking)}: nothing of it could be learned. "
                f"Those that are there: {known}. Way out: name findings in model.labels, or write shards with labels"
            )
        return ()

    def _count(self, run: Run, unread: dict[str, str] | None) -> dict[str, int]:
        """Finding → training studies that have it."""
        counts = dict[str, int]()
        for study in read_studies(run.data.shards, "train", unread):
            for name, value in study.labels.items():
                if value == 1:
                    counts[name] = counts.get(name, 0) + 1
        return counts
