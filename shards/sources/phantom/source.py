"""Synthetic chest radiographs with exact reports: the dataset that everything can be tried on without credentials."""

from typing import ClassVar, Self

import numpy as np
from pydantic import model_validator

from shards.sources import Item, Listing, Source
from shards.sources.phantom.anatomy import Anatomy, Finding, sample_anatomy, sample_findings, study_rng
from shards.sources.phantom.frontal import draw_frontal
from shards.sources.phantom.lateral import draw_lateral
from shards.sources.phantom.report import labels_of, triples_of, write_report
from shards.study import Split, Study, View, key_of

SMALLEST_PX = 64


class Phantom(Source):
    """Drawn chest films, frontal and lateral, with planted findings and the report that follows from them.

    Planted, 0 to 4 a study and none in 27 % of studies, with side, zone and severity where they apply: cardiomegaly and
    pleural effusion (about a quarter of studies each), and 5 to 15 % each of widened mediastinum, hiatal hernia,
    hyperinflation, pulmonary edema, consolidation, linear atelectasis, nodule, calcified granuloma, pneumothorax,
    elevated hemidiaphragm, rib fracture, scoliosis, pacemaker, central venous line. A tenth of the findings that can be
    borderline are: drawn faintly, reported as possible, labelled -1.

    Difficulty is chosen so that a convnet of half a million parameters learns the larger findings from a thousand
    studies at 112 pixels, while bodies, exposure and noise vary and a constant report scores clearly below a right one.
    Reports deny beside findings what is absent, hedge, and compare with films that nobody has
    (`shards.sources.phantom.report`): 350 words, 16 to 67 in a report.
    A phantom is no patient: scores on it say whether a system reads films at all, never how well it reads real ones.

    Deterministic: films, report, labels and triples depend on (seed, index) alone, films also on `size`; the split
    depends on (seed, studies, fractions). Names, order, mean brightness and sizes of files say nothing of what was
    planted: at 256 px a classifier on them has an AUROC of at most 0.6 for every label.
    """

    version: ClassVar[int] = 2

    name: ClassVar[str] = "phantom"
    licence: ClassVar[str] = "synthetic"
    cleaning: ClassVar[str] = "r2gen-2020-iu"

    studies: int = 1200
    """How many are listed."""
    seed: int = 0
    """Another seed is another draw of patients, splits and films."""
    size: int = 256
    """Side of the square film, pixels."""
    views: int = 2
    """1: frontal only. 2: frontal and lateral."""
    val_fraction: float = 0.1
    """Share of the studies in split val."""
    test_fraction: float = 0.15
    """Share of the studies in split test."""

    @model_validator(mode="after")
    def _can_be_drawn(self) -> Self:
        if self.studies < 1 or self.seed < 0:
            raise ValueError(
                f"studies={self.studies}, seed={self.seed}: use at least one study and a seed of 0 or more"
            )
        if self.size < SMALLEST_PX or self.views not in (1, 2):
            asked = f"size={self.size}, views={self.views}"
            raise ValueError(f"{asked}: use a size of {SMALLEST_PX} pixels or more and 1 or 2 views")
        if min(self.val_fraction, self.test_fraction) < 0 or self.val_fraction + self.test_fraction >= 1:
            asked = f"val_fraction={self.val_fraction}, test_fraction={self.test_fraction}"
            raise ValueError(f"{asked}: neither may be negative and together they must leave a training split")
        return self

    def listing(self) -> Listing:
        """One item per study, in order of index. Only the split is sampled here, so this is light at any size.

        round(fraction * studies) in test and val exactly, by a shuffle that knows nothing of what is planted.
        """
        n_test, n_val = round(self.test_fraction * self.studies), round(self.val_fraction * self.studies)
        splits: list[Split] = ["train"] * self.studies
        order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed]))).permutation(self.studies)
        for rank, index in enumerate(order[: n_test + n_val]):
            splits[index] = "test" if rank < n_test else "val"
        ids = [f"phantom-{index:05d}" for index in range(self.studies)]
        return Listing(
            [Item(id=ids[i], split=split, patient=ids[i], payload={"index": i}) for i, split in enumerate(splits)]
        )

    def case(self, index: int) -> tuple[Anatomy, tuple[Finding, ...], str]:
        """(body, planted findings, report) of a study, without drawing it."""
        rng = study_rng(self.seed, index)
        body = sample_anatomy(rng)
        findings = sample_findings(rng)
        return body, findings, write_report(findings, rng)

    def read(self, item: Item) -> tuple[Study, list[np.ndarray]]:
        """Draw and write the study: films uint8 [size, size], frontal first."""
        index = int(item.payload["index"])
        body, findings, report = self.case(index)
        films = [draw_frontal(body, findings, self.size), draw_lateral(body, findings, self.size)][: self.views]
        study = Study(
            key=key_of(item.id),
            id=item.id,
            patient=item.id,
            split=item.split,
            views=(View(position="frontal"), View(position="lateral"))[: self.views],
            sections={"findings": report},
            report=report,
            target="",
            labels=labels_of(findings),
            triples=triples_of(findings),
            provenance={"source": self.name, "seed": str(self.seed), "index": str(index)},
        )
        return study, films
