"""What scoring needs beside the predictions: the training vocabulary and the constant report to beat."""

from collections.abc import Sequence
from typing import Any

from r2kg.protocol import protocol_named
from r2kg.scoring.evaluate import choose_floor
from shards.clean import vocabulary
from shards.errors import ConfigError, DataError, OnBad
from shards.graphs.text import NOTHING, triples_text
from shards.stream.index import read_studies
from shards.study import Study
from shards.tars.format import Manifest
from shards.tars.place import Place


def scoring_context(
    shards: str | Place, manifest: Manifest, protocols: Sequence[str], on_bad: OnBad = "fail"
) -> dict[str, Any]:
    """Vocabulary of the training reports and, by protocol, the training answer that scores best on validation.

    Shards without a validation split give no floor. Under on_bad="skip" reports that cannot be read are left out, and
    `context_unread` names them: vocabulary and floor are then not those of the whole shards.

    Raises:
        ConfigError: two protocols ask for vocabularies of different thresholds; the shards have one cleaning.
        DataError: no training report, or not one triple to score the task "triples" by.
    """
    used = [protocol_named(name) for name in protocols]
    thresholds = {protocol.threshold for protocol in used if protocol.threshold}
    if len(thresholds) > 1:
        names = ", ".join(protocol.name for protocol in used if protocol.threshold)
        raise ConfigError(f"{names} count words with thresholds {sorted(thresholds)}: score them in separate calls")
    unread: dict[str, str] | None = {} if on_bad == "skip" else None
    task = used[0].task if used else "report"
    training = [answer_of(study, task)["reference"] for study in read_studies(shards, "train", unread)]
    if task == "triples" and set(training) <= {NOTHING}:
        raise DataError(f"no training study of {shards} has triples: write shards of a dataset with triples")
    validation = list(read_studies(shards, "val", unread=unread)) if manifest.splits["val"].studies else []
    lines = [{"id": study.id} | answer_of(study, task) for study in validation]
    words = list(vocabulary(training, thresholds.pop())) if thresholds else None
    floors = {}
    if lines:
        known = None if words is None else frozenset(words)
        for protocol in used:
            references = [protocol.reference(line, known) for line in lines]
            floors[protocol.name] = choose_floor(training, references, protocol, words)
    context = {"task": task, "cleaning": manifest.cleaning, "vocabulary": words, "floor": floors}
    return context | ({"context_unread": unread} if unread else {})


def answer_of(study: Study, task: str) -> dict[str, str]:
    """What a system of `task` has to write about a study, as fields of its prediction line."""
    if task == "triples":
        return {"reference": triples_text(study.triples)}
    return {"reference": study.target, "reference_raw": study.report}
