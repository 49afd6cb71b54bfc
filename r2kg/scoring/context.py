"""What scoring needs beside the predictions: the training vocabulary and the constant report to beat."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from r2kg.config.protocol import Protocol, protocol_named, refuse_unfit
from r2kg.scoring.evaluate import choose_floor
from r2kg.scoring.metrics.labels import names_text
from shards.clean import vocabulary
from shards.errors import ConfigError, DataError, OnBad
from shards.graphs.text import NOTHING, triples_text
from shards.stream.facts import fact
from shards.stream.index import Index, read_studies
from shards.study import Study
from shards.tars.format import Manifest
from shards.tars.place import Place

T = TypeVar("T")


def scoring_context(
    shards: str | Place, manifest: Manifest, protocols: Sequence[str], on_bad: OnBad = "fail"
) -> dict[str, Any]:
    """Vocabulary of the training reports and, by protocol, the training answer that scores best on validation.

    Shards without a validation split give no floor. Under on_bad="skip" reports that cannot be read are left out, and
    `context_unread` names them: vocabulary and floor are then not those of the whole shards.

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
    answers = Answers(shards, manifest, used[0].task if used else "report", on_bad)
    words = answers.vocabulary(thresholds.pop()) if thresholds else None
    floors = {protocol.name: answers.floor(protocol, words) for protocol in used if manifest.splits["val"].studies}
    if not floors and answers.task != "report":
        _ = answers.training  # raises where there are none
    context = {"task": answers.task, "cleaning": manifest.cleaning, "vocabulary": words, "floor": floors}
    return context | ({"context_unread": answers.unread} if answers.unread else {})


@dataclass
class Answers:
    """What is right, by the studies of shards, read once and only if something is not known yet (`fact`)."""

    shards: str | Place
    manifest: Manifest
    task: str
    on_bad: OnBad = "fail"
    unread: dict[str, str] = field(default_factory=dict)
    """Key → cause of what could not be read and was left out."""

    def _answers(self, split: str) -> list[dict[str, str]]:
        unread = self.unread if self.on_bad == "skip" else None
        return [{"id": study.id} | answer_of(study, self.task) for study in read_studies(self.shards, split, unread)]

    @cached_property
    def training(self) -> list[str]:
        """Right answers of the training split.

        Raises:
            DataError: the task is "triples" or "labels", and there is none that is present.
        """
        training = [line["reference"] for line in self._answers("train")]
        if self.task == "triples" and set(training) <= {NOTHING}:
            raise DataError(f"no training study of {self.shards} has triples: write shards of a dataset with triples")
        if self.task == "labels" and not any(training):
            raise DataError(
                f"no training study of {self.shards} has a label that is 1: write shards of a dataset with labels of "
                "findings (phantom, mimic_cxr and chexpert_plus have them)"
            )
        return training

    @cached_property
    def validation(self) -> list[dict[str, str]]:
        """Lines of the validation split, as predictions.jsonl has them."""
        return self._answers("val")

    def vocabulary(self, threshold: int) -> list[str]:
        """Words that occur `threshold` times or more in the training answers."""
        settings = {"task": self.task, "threshold": threshold}
        return self._fact("vocabulary", settings, lambda: list(vocabulary(self.training, threshold)))

    def floor(self, protocol: Protocol, words: list[str] | None) -> str:
        """The training answer that scores best when it is given to every validation study.

        No model is asked here: a protocol that cuts references by a model's tokens has the floor of whole ones.
        """

        def choose() -> int:
            known, scorer = None if words is None else frozenset(words), protocol
            if protocol.reference_cut == "tokens":
                scorer = protocol.uncut
            references = [scorer.reference(line, known) for line in self.validation]
            return self.training.index(choose_floor(self.training, references, protocol, words))

        row = self._fact("floor", {"protocol": protocol.hash}, choose)
        if "training" in self.__dict__:
            return self.training[row]
        index = Index.open(self.shards, "train", self.on_bad, self.manifest)
        try:
            study = Study.model_validate_json(index.record_of(row, index.read_record(row)))
        except DataError:
            if self.on_bad == "fail":
                raise
            return self.training[choose()]
        return answer_of(study, self.task)["reference"]

    def _fact(self, name: str, settings: dict[str, Any], count: Callable[[], T]) -> T:
        return fact(self.shards, self.manifest, name, settings, count, self.unread)


def answer_of(study: Study, task: str) -> dict[str, str]:
    """What a system of `task` has to write about a study, as fields of its prediction line.

    Raises:
        DataError: the task is "labels", and a label has a name that no answer can hold (`names_text`).
    """
    if task == "triples":
        return {"reference": triples_text(study.triples)}
    if task == "labels":
        return {"reference": names_text(study.labels)}
    return {"reference": study.target, "reference_raw": study.report}
