"""`Protocol`: which texts are compared. A score without its protocol's name and hash means nothing.

Protocols are pure: a prediction line in, a text out. What they need from the shards (the training vocabulary, the
name of the manifest's cleaning) is handed to them.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shards.clean import UNKNOWN, VERSIONS, clean, clean_again
from shards.errors import ConfigError, DataError
from shards.graphs.text import VERSION as TRIPLES_VERSION
from shards.graphs.text import triples_in, triples_text

AS_MANIFEST = "as-manifest"
Task = Literal["report", "triples", "labels"]
LABELS_VERSION = 1
"""Of the rules of `r2kg.scoring.metrics.labels`: part of the hash of every protocol that compares labels."""
TEXT_METRICS = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider_d", "meteor")
FINDING_METRICS = ("finding_f1", "finding_f1_macro", "finding_f1_5", "finding_precision", "finding_recall")
METRICS: dict[str, tuple[str, ...]] = {
    "report": (*TEXT_METRICS, *FINDING_METRICS),
    "triples": (
        *("triple_precision", "triple_recall", "triple_f1", "triple_f1_pooled"),
        *("entity_precision", "entity_recall", "entity_f1", "entity_f1_pooled"),
        *("relation_precision", "relation_recall", "relation_f1", "relation_f1_pooled"),
        *("triple_precision_pooled", "triple_recall_pooled", "entity_precision_pooled", "entity_recall_pooled"),
        *("relation_precision_pooled", "relation_recall_pooled", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l"),
    ),
    "labels": (
        *("auroc", "average_precision", "f1", "precision", "recall"),
        *("f1_pooled", "precision_pooled", "recall_pooled"),
    ),
}
"""Task → what it is scored by: `r2kg.scoring.metrics`."""


class Protocol(BaseModel):
    """How the reference and the hypothesis of one study become the two texts that every text metric sees."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    section: Literal["findings", "as-manifest"] = "as-manifest"
    """The section of the report that the published numbers were made from; as-manifest: what the shards call report."""
    cleaning: str = AS_MANIFEST
    """as-manifest: the reference as the shards cleaned it; else this cleaning of the reference as it was written."""
    reference_cut: Literal["none", "r2gen", "tokens"] = "none"
    """r2gen: rare reference words become <unk> and it ends after `max_length` - 1 words (R2Gen decodes cut ids).
    tokens: it ends where `max_length` tokens of the system's own language model end (R2GenGPT decodes such ids): how
    many characters these spell stands in the prediction line, as the system counted them (`fitting`)."""
    threshold: int | None = Field(default=None, ge=1)
    """Occurrences in the training reports from which a word is in the vocabulary. Only with reference_cut=r2gen."""
    max_length: int | None = Field(default=None, ge=2)
    """Ids of an encoded reference, with r2gen the one that begins it included. Only with reference_cut."""
    hypothesis_cleaning: str = "raw"
    """raw: the prediction as generated; as-manifest: the cleaning the shards name; else that cleaning."""
    tokenisation: Literal["whitespace"] = "whitespace"
    """Words are what blanks divide: lone periods count, and no PTB tokenizer runs."""
    task: Task = "report"
    """What systems write. triples: reference and hypothesis are read as triples and written in one form
    (`shards.graphs.text`); what is no triple, or broke off, is left out, and a triple counts once. labels: names of
    findings, joined by ", ", are compared with the study's labels."""
    order: Literal["written", "sorted"] = "written"
    """Of triples: sorted, BLEU and ROUGE no longer measure the order in which they are listed."""
    uncertain: Literal["absent", "left_out"] = "absent"
    """Of labels that are uncertain (-1) or not mentioned. absent: they count as 0, as clinical efficacy counts them in
    papers. left_out: the study is not among those that this label is scored on."""

    @model_validator(mode="after")
    def _consistent(self) -> "Protocol":
        for field in ("cleaning", "hypothesis_cleaning"):
            value = getattr(self, field)
            if value != AS_MANIFEST and value not in VERSIONS:
                raise ValueError(
                    f"{field}={value!r} is not a cleaning: use {AS_MANIFEST} or one of {', '.join(VERSIONS)}"
                )
        given = [value is not None for value in (self.threshold, self.max_length)]
        if given != [self.reference_cut == "r2gen", self.reference_cut != "none"]:
            raise ValueError(
                "reference_cut=r2gen goes with threshold and max_length, reference_cut=tokens with max_length alone, "
                "reference_cut=none with neither"
            )
        if self.reference_cut == "tokens" and self.cleaning == AS_MANIFEST:
            raise ValueError("reference_cut=tokens goes with a named cleaning: others would give other tokens")
        of_reports = self.reference_cut, self.cleaning, self.hypothesis_cleaning
        if self.task != "report" and of_reports != ("none", AS_MANIFEST, "raw"):
            raise ValueError(f"task={self.task} goes with no cut and no cleaning: these are rules for reports")
        if self.task != "triples" and self.order != "written":
            raise ValueError("order=sorted goes with task=triples")
        if self.task != "labels" and self.uncertain != "absent":
            raise ValueError("uncertain=left_out goes with task=labels")
        return self

    @property
    def hash(self) -> str:
        """16 hexadecimal digits of the content and its cleanings' versions: equal hashes, comparable scores."""
        rules: dict[str, Any] = {"name": self.name}
        if self.task == "triples":
            rules |= {"order": self.order, "triples": TRIPLES_VERSION, "words": self.tokenisation}
        elif self.task == "labels":
            rules |= {"uncertain": self.uncertain, "labels": LABELS_VERSION}
        else:
            named = {self.cleaning, self.hypothesis_cleaning}
            used = VERSIONS if AS_MANIFEST in named else {name: VERSIONS[name] for name in named}
            rules = {"protocol": self.model_dump(exclude={"task", "order", "uncertain"}), "cleanings": used}
        return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]

    def fits(self, cleaning: str) -> bool:
        """Whether it can score shards of this cleaning: rare words are those that are rare in reports cleaned alike."""
        return self.reference_cut != "r2gen" or AS_MANIFEST in (self.cleaning, cleaning) or self.cleaning == cleaning

    @property
    def uncut(self) -> "Protocol":
        """The same, but references are as long as they were written."""
        return self.model_copy(update={"reference_cut": "none"})

    def cuts(self, line: Mapping[str, Any]) -> bool:
        """Whether the reference of a prediction line is longer than this protocol compares."""
        if self.max_length is None:
            return False
        whole = self.uncut.reference(line)
        if self.reference_cut == "tokens":
            return len(self.reference(line).split()) < len(whole.split())
        return len(whole.split()) >= self.max_length

    def cut(self, cleaned: str, vocabulary: Collection[str] | None) -> str:
        """A cleaned reference as this protocol scores it, but for a cut by tokens, which only `reference` knows of.

        Cutting twice changes nothing. Raises `DataError` when the protocol replaces rare words and no vocabulary is
        given.
        """
        if self.reference_cut != "r2gen" or self.max_length is None:
            return cleaned
        if vocabulary is None:
            raise DataError(
                f"protocol {self.name} writes <unk> for words that occur fewer than {self.threshold} times in training "
                "and there is no vocabulary in context.json: pass --shards DIRECTORY or score with --protocol full-text"
            )
        words = cleaned.split()[: self.max_length - 1]
        return " ".join(word if word in vocabulary else UNKNOWN for word in words)

    def reference(self, line: Mapping[str, Any], vocabulary: Collection[str] | None = None) -> str:
        """The text to compare with, from one prediction line. Pass `vocabulary` as a set when there are many lines.

        Raises `DataError` when the line lacks the report as written or how much of it the model's tokens spell, or a
        vocabulary is needed and missing.
        """
        if self.task == "triples":
            return self._one_form(line["reference"])
        if self.cleaning == AS_MANIFEST:
            return self.cut(line["reference"], vocabulary)
        if not isinstance(line.get("reference_raw"), str):
            raise DataError(
                f"study {line.get('id')!r} has no reference_raw, the report as written, which protocol {self.name} "
                "cleans itself: generate the predictions again, or score with --protocol full-text"
            )
        cleaned = clean(self.cleaning, line["reference_raw"])
        if self.reference_cut != "tokens":
            return self.cut(cleaned, vocabulary)
        told = line.get("reference_cut")
        end = told.get(self.name) if isinstance(told, dict) else None
        if type(end) is not int or not 0 <= end <= len(cleaned):
            raise DataError(
                f"study {line.get('id')!r} does not tell how many of {len(cleaned):,} characters {self.max_length} "
                f"tokens of the language model spell (reference_cut.{self.name} is {str(end)[:20]}), and protocol "
                f"{self.name} compares no more than these. Way out: `r2kg generate RUN "
                f"'protocols=[\"{self.name}\"]'` writes it down, or score with --protocol full-text"
            )
        return cleaned[:end].rstrip()

    def hypothesis(self, line: Mapping[str, Any], manifest_cleaning: str = "raw") -> str:
        """The prediction as it is compared. A text that is clean already keeps its words.

        Where references are cut, they have single blanks between words, and so gets the hypothesis.
        """
        if self.task == "triples":
            return self._one_form(line["prediction"], line.get("truncated") is True)
        name = manifest_cleaning if self.hypothesis_cleaning == AS_MANIFEST else self.hypothesis_cleaning
        text = clean_again(name, line["prediction"])
        return text if self.reference_cut == "none" else " ".join(text.split())

    def _one_form(self, text: str, truncated: bool = False) -> str:
        triples = triples_in(text, truncated).triples
        return triples_text(sorted(triples) if self.order == "sorted" else triples)


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="r2gen-2020",
            section="findings",
            cleaning="r2gen-2020-iu",
            reference_cut="r2gen",
            threshold=3,
            max_length=60,
        ),
        Protocol(
            name="r2gen-2020-mimic",
            section="findings",
            cleaning="r2gen-2020-mimic",
            reference_cut="r2gen",
            threshold=10,
            max_length=100,
        ),
        Protocol(name="r2gengpt-2023-mimic", section="findings", cleaning="r2gengpt-2023-mimic"),
        *(
            Protocol(name=name, section="findings", cleaning=cleaning, reference_cut="tokens", max_length=tokens)
            for name, cleaning, tokens in (
                ("r2genkg-2025", "r2gen-2020-iu", 60),
                ("r2genkg-2025-mimic", "r2gengpt-2023-mimic", 100),
            )
        ),
        Protocol(name="full-text", hypothesis_cleaning=AS_MANIFEST),
        Protocol(name="triples", task="triples"),
        Protocol(name="triples-sorted", task="triples", order="sorted"),
        Protocol(name="labels", task="labels"),
        Protocol(name="labels-certain", task="labels", uncertain="left_out"),
    )
}
EQUALS = {
    "r2gen-2020": "IU X-Ray numbers of R2Gen, R2GenCMN, XProNet and CKNet, whose code decodes cut ids of the reference",
    "r2gen-2020-mimic": "MIMIC-CXR numbers of the same code",
    "r2gengpt-2023-mimic": "MIMIC-CXR reports cleaned as R2GenGPT's code cleans them, uncut",
    "r2genkg-2025": "IU X-Ray numbers of R2GenGPT and R2GenKG, as far as the language model has the same tokens",
    "r2genkg-2025-mimic": "MIMIC-CXR and CheXpert Plus numbers of R2GenGPT and R2GenKG, with the same condition",
    "full-text": "no published table: nothing is cut",
    "triples": "VLM-KG's BLEU and ROUGE-L on the string that lists triples, in the order written; beside them F1",
    "triples-sorted": "no published table: the same without the order of triples",
    "labels": "clinical efficacy as papers count it, uncertain as absent, but by the shards' labels",
    "labels-certain": "no published table: what is uncertain is left out",
}
"""Protocol → the published numbers that are made from the same texts."""
DEFAULT_PROTOCOLS: dict[str, tuple[str, ...]] = {
    "report": ("r2gen-2020", "full-text"),
    "triples": ("triples", "triples-sorted"),
    "labels": ("labels", "labels-certain"),
}
"""Task → the protocols of a run that names none, the first of which chooses checkpoints."""


def protocol_named(name: str) -> Protocol:
    """The protocol of that name. `ConfigError` names the known ones."""
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=1, cutoff=0.6)
        hint = "".join(f"; did you mean {one}?" for one in near)
        raise ConfigError(f"there is no protocol {name!r}: choose one of {', '.join(PROTOCOLS)}{hint}")
    return PROTOCOLS[name]


def protocols_of(names: Sequence[str], task: str) -> tuple[str, ...]:
    """The protocols that a system of `task` is scored under: those named, or the task's own where none is.

    Raises:
        ConfigError: unknown ones, or some of another task; those that fit are named.
    """
    fitting = [name for name, protocol in PROTOCOLS.items() if protocol.task == task]
    if unknown := [name for name in names if name not in PROTOCOLS]:
        raise ConfigError(f"unknown protocols {unknown}; known: {', '.join(fitting)}")
    if other := [name for name in names if name not in fitting]:
        raise ConfigError(
            f"{', '.join(other)} cannot score the task {task!r}, but only {PROTOCOLS[other[0]].task!r}: give "
            f"protocols among {', '.join(fitting)}, or protocols=[] for {' and '.join(DEFAULT_PROTOCOLS[task])}"
        )
    return tuple(names) or DEFAULT_PROTOCOLS[task]


def refuse_unfit(protocols: Sequence[Protocol], cleaning: str) -> None:
    """ConfigError for a protocol that cannot score shards of this cleaning; those that can are named."""
    if unfit := [protocol for protocol in protocols if not protocol.fits(cleaning)]:
        of_task = [protocol for protocol in PROTOCOLS.values() if protocol.task == unfit[0].task]
        fitting = json.dumps([protocol.name for protocol in of_task if protocol.fits(cleaning)], separators=(",", ":"))
        raise ConfigError(
            f"protocol {unfit[0].name} counts the rare words of reports cleaned with {unfit[0].cleaning}, and the "
            f"shards are cleaned with {cleaning}: set protocols={fitting}, which can score them, or write the shards "
            f"with cleaning {unfit[0].cleaning}"
        )


def parse_choice(text: str, task: str) -> dict[str, float]:
    """`train.choose` as metric → weight: "BLEU-4", or "0.5*BLEU-4+0.5*CIDEr-D"; empty for "loss".

    Case and hyphens in a metric's name do not count.

    Raises:
        ConfigError: another form, or no metric of the task; the nearest is named.
    """
    if text == "loss":
        return {}
    weights: dict[str, float] = {}
    for term in text.split("+"):
        read = re.fullmatch(r"\s*(?:(\d*\.?\d+)\s*[*·]\s*)?([A-Za-z][\w-]*)\s*", term)
        if not read or not (weight := float(read[1] or 1)):
            raise ConfigError(
                f"train.choose={text!r} cannot be read at {term!r}: give loss, one metric, or weights above 0 as in "
                "0.5*BLEU-4+0.5*CIDEr-D"
            )
        name = metric_named(read[2], task, "train.choose", ("loss",))
        if name in weights:
            raise ConfigError(f"train.choose={text!r} names {name} twice: add its weights up")
        weights[name] = weight
    return weights


def metric_named(text: str, task: str, field: str, more: Sequence[str] = ()) -> str:
    """The metric of a task that a word names; case, hyphens and underscores do not count.

    Args:
        field: what names it, for the message, such as "--metric".
        more: words that the field takes besides, for the message.

    Raises:
        ConfigError: none of that name; the nearest is named.
    """
    known = {name.replace("_", ""): name for name in METRICS[task]}
    if (key := re.sub(r"[-_]", "", text.lower())) in known:
        return known[key]
    words = known | {word: word for word in more}
    near = [f"did you mean {words[word]}? " for word in difflib.get_close_matches(key, words, n=1, cutoff=0.6)]
    raise ConfigError(
        f"{field} names {text!r}, which is no metric of the task {task!r}; {''.join(near)}Known: "
        f"{', '.join([*more, *METRICS[task]])}"
    )
