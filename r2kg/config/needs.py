"""What a system says of itself without torch: what it reads of a study, and what has to be made for it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from r2kg.config.parts import Part
from shards.errors import ConfigError
from shards.films.augment import OFF, Augment
from shards.films.stored import Fit
from shards.tars.kinds import KINDS

ALWAYS_SHOWN = ("key", "id", "split", "views", "provenance")
"""Fields of a record that say nothing of what films show."""
CARD = "artefact.json"
"""In an artefact's directory, written last: name, settings, size and sha256 of every file, fingerprint of them all."""
ANSWER = ("report", "findings", "impression")
"""Texts that hold what a system of the task "report" has to write, and from which the labels of findings are made."""


@dataclass(frozen=True)
class Inputs:
    """What a system reads of a study. Stream, generation and features follow it: what is not named is not shown."""

    image_px: int | None = None
    """Side of the square films, pixels; None: no film is read."""
    fit: Fit = "squash"
    """How films become square, everywhere they are read (`shards.films.stored.decode`)."""
    views: int = 1
    """Films of a study, frontal first; fewer are padded and masked."""
    merge: Literal["average", "concatenate", "separate"] = "average"
    """How the films of a study become tokens, as `r2kg.modules.config.Vision.merge` says."""
    augment: Augment = OFF
    """Seeded changes of the films in training; validation, generation and features see them as they are."""
    encoder: Part | None = None
    """The image encoder (`r2kg.modules.config.Vision`) whose features may be streamed in place of the films; the
    model has it as `vision` and builds it first. None: features cannot stand in."""
    sides: tuple[str, ...] = ()
    """Kinds of sides (`shards.tars.kinds`) that are read in training and in generation."""
    training_sides: tuple[str, ...] = ()
    """Kinds of sides that are targets: read in training and validation, not there in generation."""
    reference: str = ""
    """The one of `training_sides` that holds what is right, in place of the record: "triples". Scores, floors and
    prediction lines are of it, and a study without a member in it is not scored. "": the record."""
    text: tuple[str, ...] = ()
    """Texts of the record that are read: names of sections, or "report". In generation a record holds no others."""

    def refuse_answers(self, task: str) -> None:
        """ConfigError when a system that writes reports or names findings reads the report, or a side that tells it."""
        if strange := [kind for kind in (*self.sides, *self.training_sides) if kind not in KINDS]:
            raise ConfigError(f"no kind of side {', '.join(strange)}: there are {', '.join(KINDS)}")
        if self.reference and (task, self.reference) != ("triples", "triples"):
            raise ConfigError(
                f"reference={self.reference!r} of a system of the task {task!r}: only triples lie beside the shards, "
                'for systems of the task "triples". Leave it out, so that the record tells what is right'
            )
        if self.reference and (self.reference not in self.training_sides or self.reference in self.sides):
            raise ConfigError(
                f"the reference {self.reference} must be one of training_sides and none of sides: what is right is no "
                "input when a system is tested"
            )
        if task == "triples":
            return
        does, why = "writes reports", "that is the answer itself"
        if task == "labels":
            does, why = "names findings", "their labels are made from it"
        if told := [name for name in self.text if name in ANSWER]:
            raise ConfigError(
                f"a system that {does} reads {', '.join(told)}: {why}. Give it other sections (indication, "
                'comparison), or set task = "triples"'
            )
        if telling := [kind for kind in self.sides if KINDS[kind].tells_report]:
            raise ConfigError(
                f"a system that {does} is shown {', '.join(telling)}, which are made from the report and so tell the "
                "answer: name them in training_sides, as targets, or leave them out"
            )

    def shown(self, record: str) -> str:
        """What a generating model is shown of a study's record (JSON; "" stays ""): no text that is not in `text`."""
        if not record:
            return record
        study = json.loads(record)
        told = ("report", "target") if "report" in self.text else ()
        kept = {field: study[field] for field in (*ALWAYS_SHOWN, *told) if field in study}
        sections = {name: text for name, text in study.get("sections", {}).items() if name in self.text}
        return json.dumps(kept | {"sections": sections})


@dataclass(frozen=True)
class Artefact:
    """Something that a run needs and does not train, made once before its workers start (`r2kg.training.artefacts`)."""

    name: str
    """What it is, e.g. "tiny-lm": the beginning of its directory's name, its key in the checkpoint's state."""
    settings: dict[str, Any]
    """JSON values that decide its content, fingerprints of what it is made from included."""
    make: Callable[[Path], None]
    """Writes it into an empty directory."""
    into: str
    """Dotted field of the run that gets its directory, a `Local` one, e.g. "model.llm.source"."""
    sentence: str
    """What is being made, for the log."""
    resources: dict[str, float] = field(default_factory=dict)
    """Where it is big: {"num_cpus": ..., "num_gpus": ...} of the Ray job that makes it. Empty: this process."""
