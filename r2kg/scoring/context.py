"""What scoring needs beside the predictions: the training vocabulary and the constant report to beat."""

from collections.abc import Sequence
from typing import Any

from r2kg.protocol import protocol_named
from r2kg.scoring.evaluate import choose_floor
from shards.clean import vocabulary
from shards.errors import ConfigError, OnBad
from shards.stream.index import read_studies, read_targets
from shards.tars.format import Manifest
from shards.tars.place import Place


def scoring_context(
    shards: str | Place, manifest: Manifest, protocols: Sequence[str], on_bad: OnBad = "fail"
) -> dict[str, Any]:
    """Vocabulary of the training reports and, by protocol, the training report that scores best on validation.

    Shards without a validation split give no floor. Under on_bad="skip" reports that cannot be read are left out, and
    `context_unread` names them: vocabulary and floor are then not those of the whole shards.

    Raises:
        ConfigError: two protocols ask for vocabularies of different thresholds; the shards have one cleaning.
        DataError: no training report.
    """
    used = [protocol_named(name) for name in protocols]
    thresholds = {protocol.threshold for protocol in used if protocol.threshold}
    if len(thresholds) > 1:
        names = ", ".join(protocol.name for protocol in used if protocol.threshold)
        raise ConfigError(f"{names} count words with thresholds {sorted(thresholds)}: score them in separate calls")
    unread: dict[str, str] | None = {} if on_bad == "skip" else None
    training = read_targets(shards, "train", unread)
    validation = list(read_studies(shards, "val", unread=unread)) if manifest.splits["val"].studies else []
    lines = [{"id": study.id, "reference": study.target, "reference_raw": study.report} for study in validation]
    words = list(vocabulary(training, thresholds.pop())) if thresholds else None
    floors = {}
    if lines:
        known = None if words is None else frozenset(words)
        for protocol in used:
            references = [protocol.reference(line, known) for line in lines]
            floors[protocol.name] = choose_floor(training, references, protocol, words)
    context = {"cleaning": manifest.cleaning, "vocabulary": words, "floor": floors}
    return context | ({"context_unread": unread} if unread else {})
