"""Synthetic chest radiographs with exact reports: the dataset that everything can be tried on without credentials."""

from dataclasses import dataclass, field

import numpy as np

from shards.errors import ConfigError
from shards.sources import Item, Listing
from shards.sources.phantom.anatomy import Anatomy, Finding, sample_anatomy, sample_findings, study_rng
from shards.sources.phantom.frontal import draw_frontal
from shards.sources.phantom.lateral import draw_lateral
from shards.sources.phantom.report import labels_of, triples_of, write_report
from shards.study import Drop, Split, Study, View, key_of

SMALLEST = 64


@dataclass
class Phantom:
    """Drawn chest films, frontal and lateral, with planted findings and the report that follows from them.

    Planted, 0 to 4 a study and none in 27 % of studies, with side, zone and severity where they apply: cardiomegaly and
    pleural effusion (about a quarter of studies each), and 5 to 15 % each of widened mediastinum, hiatal hernia,
    hyperinflation, pulmonary edema, consolidation, linear atelectasis, nodule, calcified granuloma, pneumothorax,
    elevated hemidiaphragm, rib fracture, scoliosis, pacemaker, central venous line. A tenth of the findings that can be
    borderline are: drawn faintly, reported as possible, labelled -1.

    Difficulty is chosen so that a convnet of half a million parameters learns the larger findings from a thousand
    studies at 112 pixels, while bodies, exposure and noise vary and a constant report scores clearly below a right one.
    A phantom is no patient: scores on it say whether a system reads films at all, never how well it reads real ones.

    Deterministic: films, report, labels and triples depend on (seed, index) alone, films also on `size`; the split
    depends on (seed, studies, fractions). Films, names and file properties are alike whatever was planted.
    """

    studies: int = 1200
    seed: int = 0
    size: int = 256
    """Side of the square film, pixels."""
    views: int = 2
    """1: frontal only. 2: frontal and lateral."""
    val_fraction: float = 0.1
    test_fraction: float = 0.15
    drops: list[Drop] = field(default_factory=list, init=False)
    notes: list[str] = field(default_factory=list, init=False)

    published = None
    name = "phantom"
    licence = "synthetic"
    cleaning = "r2gen-2020-iu"

    def __post_init__(self) -> None:
        if self.studies < 1 or self.seed < 0:
            raise ConfigError(
                f"phantom with studies={self.studies}, seed={self.seed}: use at least one study and a seed of 0 or more"
            )
        if self.size < SMALLEST or self.views not in (1, 2):
            asked = f"size={self.size}, views={self.views}"
            raise ConfigError(f"phantom with {asked}: use a size of {SMALLEST} pixels or more and 1 or 2 views")
        if min(self.val_fraction, self.test_fraction) < 0 or self.val_fraction + self.test_fraction >= 1:
            asked = f"val_fraction={self.val_fraction}, test_fraction={self.test_fraction}"
            raise ConfigError(
                f"phantom with {asked}: neither may be negative and together they must leave a training split"
            )

    def listing(self) -> Listing:
        """What is listed, with what was refused and what is worth telling."""
        return Listing(self.items(), self.drops, self.notes, self.published)

    def items(self) -> list[Item]:
        """One item per study, in order of index. Only the split is sampled here, so this is light at any size."""
        ids = [f"phantom-{index:05d}" for index in range(self.studies)]
        return [
            Item(id=ids[i], split=split, patient=ids[i], payload={"index": i}) for i, split in enumerate(self._splits())
        ]

    def _splits(self) -> list[Split]:
        """round(fraction * studies) in test and val exactly, by a shuffle that knows nothing of what is planted."""
        n_test, n_val = round(self.test_fraction * self.studies), round(self.val_fraction * self.studies)
        splits: list[Split] = ["train"] * self.studies
        order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed]))).permutation(self.studies)
        for rank, index in enumerate(order[: n_test + n_val]):
            splits[index] = "test" if rank < n_test else "val"
        return splits

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
