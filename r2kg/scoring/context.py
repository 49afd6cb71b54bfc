"""What scoring needs beside the predictions: the training vocabulary and the constant report to beat."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from r2kg.config.protocol import Protocol, protocol_named, refuse_unfit
from r2kg.scoring.evaluate import OF_FINDINGS, choose_floor
from r2kg.scoring.metrics.labels import names_text
from r2kg.scoring.metrics.rule_labeler import LABELER
from shards.clean import vocabulary
from shards.errors import ConfigError, DataError, OnBad
from shards.graphs.text import NOTHING, triples_text
from shards.graphs.triples import unpack_triples
from shards.stream.facts import fact
from shards.stream.index import Index, read_studies
from shards.stream.order import Indices
from shards.stream.side import Side
from shards.study import SPLITS, Study
from shards.tars.format import Manifest
from shards.tars.kinds import KINDS, description_hash, read_side, refuse_other
from shards.tars.place import Place

T = TypeVar("T")


def scoring_context(
    shards: str | Place,
    manifest: Manifest,
    protocols: Sequence[str],
    on_bad: OnBad = "fail",
    references: "References | None" = None,
) -> dict[str, Any]:
    """Vocabulary of the training reports and, by protocol, the training answer that scores best on validation.

    Shards without a validation split give no floor. Under on_bad="skip" reports that cannot be read are left out, and
    `context_unread` names them: vocabulary and floor are then not those of the whole shards. Where what is right lies
    in a side (`references`), studies without a member in it are not among those that the floor is chosen by.

    Raises:
        ConfigError: a protocol that cannot score these shards (`refuse_unfit`), or two that ask for vocabularies of
            different thresholds; the shards have one cleaning.
        DataError: no training report, or not one triple or present label to score the task "triples" or "labels" by.
    """
    used = [protocol_named(name) for name in protocols]
    refuse_unfit(used, manifest.cleaning)
    thresholds = {protocol.threshold for protocol in used if protocol.threshold}
    if len(thresholds) > 1:
        names = ", ".join(protocol.name for protocol in used if protocol.threshold)
        raise ConfigError(f"{names} count words with thresholds {sorted(thresholds)}: score them in separate calls")
    answers = Answers(shards, manifest, used[0].task if used else "report", on_bad, references=references)
    words = answers.vocabulary(thresholds.pop()) if thresholds else None
    validated = manifest.splits["val"].studies and (references is None or {"train", "val"} <= {*references.splits})
    floors = {protocol.name: answers.floor(protocol, words) for protocol in used if validated}
    if answers.task == "report":  # the best constant by words states few findings
        floors |= {OF_FINDINGS.format(one.name): answers.floor(one, words, True) for one in used if validated}
    if not floors and answers.task != "report" and (references is None or "train" in references.splits):
        _ = answers.training  # raises where there are none
    context = {"task": answers.task, "cleaning": manifest.cleaning, "vocabulary": words, "floor": floors}
    return context | ({"context_unread": answers.unread} if answers.unread else {})


@dataclass(frozen=True)
class References:
    """A side that holds what is right about studies, in place of their records."""

    kind: str
    """Key of `shards.tars.kinds.KINDS`: "triples"."""
    where: str
    """Place of the side."""
    hash: str
    """`description_hash` of it."""
    splits: tuple[str, ...]
    """Those that have members."""

    @classmethod
    def of(cls, named: Mapping[str, str], manifest: Manifest) -> "References | None":
        """The side that a run's `reference` names, kind → place; None for {}.

        Raises:
            DataError: no such side, or of other shards.
        """
        for kind, where in named.items():
            side = read_side(where, kind)
            refuse_other(where, side, manifest, kind)
            held = {tar.split for tar in side.shards if tar.held}
            return cls(kind, where, description_hash(side), tuple(split for split in SPLITS if split in held))
        return None

    @property
    def named(self) -> dict[str, str]:
        """What decides the references, as predictions and their context.json name it."""
        return {self.kind: self.hash}

    def refuse_lacking(self, split: str) -> None:
        """DataError when no study of the split has a member: nothing there can be scored."""
        if split not in self.splits:
            raise DataError(
                f"the {self.kind} at {self.where} hold none of split {split!r}, but of {', '.join(self.splits)}: "
                f"nothing there can be scored. Write them of more splits with {KINDS[self.kind].how}, for triples of "
                "annotations after `r2kg graph annotate SHARDS --split " + split + "`"
            )

    def rows(self, index: Index, manifest: Manifest, on_bad: OnBad = "fail") -> Indices:
        """Rows of the studies of `index` that have a member, rising: int64 [k].

        Raises:
            DataError: as `Side.open`.
        """
        return Side.open(self.where, index, manifest, self.kind, on_bad).present

    def lines(
        self, shards: str | Place, manifest: Manifest, split: str, unread: dict[str, str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """{"id": its key, "row", "reference"} of the studies of a split that have a member, in the order of the index.

        Args:
            unread: takes key and cause of members that cannot be read; None: such a one is an error.

        Raises:
            DataError: a member that cannot be read, without `unread`.
        """
        self.refuse_lacking(split)
        on_bad: OnBad = "fail" if unread is None else "skip"
        index = Index.open(shards, split, on_bad, manifest)
        side = Side.open(self.where, index, manifest, self.kind, on_bad)
        for row, member in side.held(range(len(index)), unread):
            yield {"id": index.keys[row].decode(), "row": row, "reference": triples_text(unpack_triples(member))}


@dataclass
class Answers:
    """What is right, by the studies of shards, read once and only if something is not known yet (`fact`)."""

    shards: str | Place
    manifest: Manifest
    task: str
    on_bad: OnBad = "fail"
    unread: dict[str, str] = field(default_factory=dict)
    """Key → cause of what could not be read and was left out."""
    references: References | None = None
    """The side that holds what is right; None: the records do."""
    rows: list[int] = field(default_factory=list)
    """Of `training`, once it is read: by which its answers are kept as facts."""

    def _answers(self, split: str) -> list[dict[str, Any]]:
        unread = self.unread if self.on_bad == "skip" else None
        if self.references:
            return [*self.references.lines(self.shards, self.manifest, split, unread)]
        return [{"id": study.id} | answer_of(study, self.task) for study in read_studies(self.shards, split, unread)]

    @cached_property
    def training(self) -> list[str]:
        """Right answers of the training split.

        Raises:
            DataError: the task is "triples" or "labels", and there is none that is present.
        """
        lines = self._answers("train")
        training = [line["reference"] for line in lines]
        self.rows = [int(line.get("row", number)) for number, line in enumerate(lines)]
        if self.task == "triples" and set(training) <= {NOTHING}:
            where = self.references.where if self.references else self.shards
            raise DataError(
                f"no training study of {where} has triples: write shards of a dataset with triples, or a side of them "
                "with `r2kg triples SHARDS`"
            )
        if self.task == "labels" and not any(training):
            raise DataError(
                f"no training study of {self.shards} has a label that is 1: write shards of a dataset with labels of "
                "findings (phantom, mimic_cxr and chexpert_plus have them)"
            )
        return training

    @cached_property
    def validation(self) -> list[dict[str, Any]]:
        """Lines of the validation split, as predictions.jsonl has them."""
        return self._answers("val")

    def vocabulary(self, threshold: int) -> list[str]:
        """Words that occur `threshold` times or more in the training answers."""
        settings = {"task": self.task, "threshold": threshold}
        return self._fact("vocabulary", settings, lambda: list(vocabulary(self.training, threshold)))

    def floor(self, protocol: Protocol, words: list[str] | None, findings: bool = False) -> str:
        """The training answer that scores best when it is given to every validation study; `findings`: by these.

        No model is asked here: a protocol that cuts references by a model's tokens has the floor of whole ones.
        """

        def choose() -> int:
            known, scorer = None if words is None else frozenset(words), protocol
            if protocol.reference_cut == "tokens" or findings:
                scorer = protocol.uncut
            references = [scorer.reference(line, known) for line in self.validation]
            answer = choose_floor(self.training, references, protocol, words, findings=findings)
            return self.rows[self.training.index(answer)]

        settings = {"protocol": protocol.hash} | ({"findings": LABELER} if findings else {})
        row = self._fact("floor", settings, choose)
        if "training" in self.__dict__:
            return self.training[self.rows.index(row)]
        index = Index.open(self.shards, "train", self.on_bad, self.manifest)
        if self.references:
            side = Side.open(self.references.where, index, self.manifest, self.references.kind)
            return triples_text(unpack_triples(side.read(row) or b""))
        try:
            study = Study.model_validate_json(index.record_of(row, index.read_record(row)))
        except DataError:
            if self.on_bad == "fail":
                raise
            return self.training[self.rows.index(choose())]
        return answer_of(study, self.task)["reference"]

    def _fact(self, name: str, settings: dict[str, Any], count: Callable[[], T]) -> T:
        beside = {"references": self.references.named} if self.references else {}
        return fact(self.shards, self.manifest, name, settings | beside, count, self.unread)


def answer_of(study: Study, task: str, member: bytes | None = None) -> dict[str, str]:
    """What a system of `task` has to write about a study, as fields of its prediction line.

    `member`: its triples of a side, in place of the record's.

    Raises:
        DataError: the task is "labels", and a label has a name that no answer can hold (`names_text`).
    """
    if task == "triples":
        return {"reference": triples_text(study.triples if member is None else unpack_triples(member))}
    if task == "labels":
        return {"reference": names_text(study.labels)}
    return {"reference": study.target, "reference_raw": study.report}
