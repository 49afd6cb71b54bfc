"""`Protocol`: which texts are compared. A score without its protocol's name and hash means nothing.

Protocols are pure: a prediction line in, a text out. What they need from the shards (the training vocabulary, the
name of the manifest's cleaning) is handed to them.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shards.clean import UNKNOWN, VERSIONS, clean, clean_again
from shards.errors import ConfigError, DataError

AS_MANIFEST = "as-manifest"


class Protocol(BaseModel):
    """How the reference and the hypothesis of one study become the two texts that every text metric sees."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    section: Literal["findings", "as-manifest"] = "as-manifest"
    """The section of the report that the published numbers were made from; as-manifest: what the shards call report."""
    cleaning: str = AS_MANIFEST
    """as-manifest: the reference as the shards cleaned it; else this cleaning of the reference as it was written."""
    reference_cut: Literal["none", "r2gen"] = "none"
    """r2gen: rare reference words become <unk> and it ends after `max_length` - 1 words (R2Gen decodes cut ids)."""
    threshold: int | None = Field(default=None, ge=1)
    """Occurrences in the training reports from which a word is in the vocabulary. Only with reference_cut=r2gen."""
    max_length: int | None = Field(default=None, ge=2)
    """Ids of an encoded reference, the one that begins it included. Only with reference_cut=r2gen."""
    hypothesis_cleaning: str = "raw"
    """raw: the prediction as generated; as-manifest: the cleaning the shards name; else that cleaning."""
    tokenisation: Literal["whitespace"] = "whitespace"
    """Words are what blanks divide: lone periods count, and no PTB tokenizer runs."""

    @model_validator(mode="after")
    def _consistent(self) -> "Protocol":
        for field in ("cleaning", "hypothesis_cleaning"):
            value = getattr(self, field)
            if value != AS_MANIFEST and value not in VERSIONS:
                raise ValueError(
                    f"{field}={value!r} is not a cleaning: use {AS_MANIFEST} or one of {', '.join(VERSIONS)}"
                )
        given = [value is not None for value in (self.threshold, self.max_length)]
        if given != [self.reference_cut == "r2gen"] * 2:
            raise ValueError("reference_cut=r2gen goes with threshold and max_length, reference_cut=none with neither")
        return self

    @property
    def hash(self) -> str:
        """16 hexadecimal digits of the content and its cleanings' versions: equal hashes, comparable scores."""
        named = {self.cleaning, self.hypothesis_cleaning}
        used = VERSIONS if AS_MANIFEST in named else {name: VERSIONS[name] for name in named}
        content = json.dumps({"protocol": self.model_dump(), "cleanings": used}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def cut(self, cleaned: str, vocabulary: Collection[str] | None) -> str:
        """A cleaned reference as this protocol scores it. Cutting twice changes nothing.

        Raises `DataError` when the protocol replaces rare words and no vocabulary is given.
        """
        if self.reference_cut == "none" or self.max_length is None:
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

        Raises `DataError` when the line lacks the report as written, or a vocabulary is needed and missing.
        """
        if self.cleaning == AS_MANIFEST:
            return self.cut(line["reference"], vocabulary)
        if not isinstance(line.get("reference_raw"), str):
            raise DataError(
                f"study {line.get('id')!r} has no reference_raw, the report as written, which protocol {self.name} "
                "cleans itself: generate the predictions again, or score with --protocol full-text"
            )
        return self.cut(clean(self.cleaning, line["reference_raw"]), vocabulary)

    def hypothesis(self, line: Mapping[str, Any], manifest_cleaning: str = "raw") -> str:
        """The prediction as it is compared. A text that is clean already keeps its words.

        Where references are cut, they have single blanks between words, and so gets the hypothesis.
        """
        name = manifest_cleaning if self.hypothesis_cleaning == AS_MANIFEST else self.hypothesis_cleaning
        text = clean_again(name, line["prediction"])
        return text if self.reference_cut == "none" else " ".join(text.split())


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
        Protocol(name="full-text", hypothesis_cleaning=AS_MANIFEST),
    )
}


def protocol_named(name: str) -> Protocol:
    """The protocol of that name. `ConfigError` names the known ones."""
    if name not in PROTOCOLS:
        raise ConfigError(f"there is no protocol {name!r}: choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
