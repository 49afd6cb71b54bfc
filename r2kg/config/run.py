"""`Run`: everything that decides what a run is. One frozen, printable, hashable object; every default lives in it.

Its system is named by `model.system`: a key of `SYSTEMS`, or "module:Class" of one's own. Changing the name puts the
defaults of the new system in place of the whole part.
"""

import difflib
import json
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from r2kg.config.needs import Artefact, Inputs
from r2kg.config.overrides import TAGS, assign, explain
from r2kg.config.parts import Data, Decoding, Engine, Optim, Part, Privacy, Tracking, Train
from shards.errors import ConfigError, DataError, patiently
from shards.tars.format import Manifest, read_manifest
from shards.tars.kinds import KINDS, read_side
from shards.tars.place import place, size_of, write_atomic

SYSTEMS = {
    "r2genkg": "r2kg.systems.r2genkg.config:R2GenKGConfig",
    "cknet": "r2kg.systems.cknet.config:CKNetConfig",
    "cknet_llm": "r2kg.systems.cknet.config:CKNetLlmConfig",
    "classifier": "r2kg.systems.classifier.config:ClassifierConfig",
    "vlm_kg": "r2kg.systems.vlm_kg.config:VlmKgConfig",
    "gcn": "r2kg.systems.gcn.config:GcnConfig",
}
"""model.system → "module:Class" of its part, imported on use."""
NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""The character in JSON."""


class System(Part):
    """Base of the systems' parts. A subclass names its model and adds the parts the model is composed of."""

    build: ClassVar[str]
    """"module:Class" of the nn.Module, called with this part; its contract is `r2kg.systems.contract.Model`."""
    known: ClassVar[dict[str, str]] = SYSTEMS
    """The systems that have a short name."""
    task: ClassVar[Literal["report", "triples", "labels"]] = "report"
    """What is written: decides the reference, the metrics and the controls."""

    trains: ClassVar[tuple[str, ...]] = ()
    """What may be trained, by the names of `Model.trainable`; none: only the model tells."""

    system: str
    """Key of `SYSTEMS`, or "module:Class"."""
    decoding: Decoding = Decoding()
    """Generation."""

    def inputs(self, data: Data) -> Inputs:
        """What the system reads of a study."""
        raise NotImplementedError

    def prepare(self, run: "Run", manifest: Manifest) -> Iterable[Artefact]:
        """What has to be made before workers start and is not named in `run` yet; nothing by default.

        Asked again after each, with a run that names what was made, so that one artefact may be made from another.
        """
        return ()

    def check(self, run: "Run") -> None:
        """ConfigError for what the system cannot do under the run's engine; its parts' own `check` is asked besides."""

    @classmethod
    def named(cls, system: str) -> "type[System]":
        """The part's class of a system.

        Raises:
            ConfigError: no such system; the nearest are named.
        """
        where = SYSTEMS.get(system, system)
        module, colon, name = where.partition(":")
        if not colon:
            near = difflib.get_close_matches(system, SYSTEMS, n=1, cutoff=0.3)
            hint = f"did you mean model.system={near[0]}?" if near else f"known: {', '.join(SYSTEMS)};"
            raise ConfigError(f"unknown system {system[:80]!r}; {hint} a system of your own is their.module:Class")
        try:
            part = getattr(import_module(module), name)
        except Exception as error:  # a module of one's own may raise anything
            cause = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise ConfigError(
                f"system {system[:80]!r} cannot be imported ({cause}): "
                "put the directory that holds its module on PYTHONPATH, or work in it"
            ) from error
        if not (isinstance(part, type) and issubclass(part, System)):
            raise ConfigError(f"system {system!r} is no subclass of r2kg.config.run.System")
        if part.inputs is System.inputs or ":" not in getattr(part, "build", ""):
            raise ConfigError(f'system {system!r} must have a method `inputs`, and build = "module:Class" of its model')
        return part


class Run(Part):
    """One run: recipe, data, model, optimiser, engine, length. Saved as run.json and restartable from it alone."""

    name: str
    """Directory and MLflow name. Submitting a name that exists continues it."""
    recipe: str = ""
    """The recipe it came from, for the record."""
    root: str = "runs"
    """Directory under which the run's own directory is made; on a cluster, one that all nodes mount. Object storage is
    for shards only: a checkpoint is renamed when it is whole, and its writers see one another's files."""
    data: Data = Data()
    """Shards."""
    model: SerializeAsAny[System] = Field(default={"system": "r2genkg"}, validate_default=True)
    """The system and its parts; `model.system` says whose."""
    optim: Optim = Optim()
    """Optimiser."""
    engine: Engine = Engine()
    """DeepSpeed."""
    train: Train = Train()
    """Loop."""
    protocols: tuple[str, ...] = ()
    """Scoring protocols, keys of r2kg.config.protocol.PROTOCOLS, of the system's task. Empty: those of
    r2kg.config.protocol.DEFAULT_PROTOCOLS."""
    tracking: Tracking = Tracking()
    """MLflow."""
    privacy: Privacy = Privacy()
    """Text fence."""

    @property
    def directory(self) -> Path:
        """Where everything of this run is written."""
        return Path(self.root).expanduser().resolve() / self.name

    @property
    def inputs(self) -> Inputs:
        """What the system reads of a study."""
        return self.model.inputs(self.data)

    @property
    def sides(self) -> dict[str, str]:
        """Kind → place of the sides that are streamed in training; features among them where they stand for films."""
        inputs, data = self.inputs, self.data
        names = {
            kind: (kind in KINDS and KINDS[kind].place) or kind for kind in (*inputs.sides, *inputs.training_sides)
        }
        beside = {kind: f"{data.shards}/side/{name}" for kind, name in names.items()} | data.sides
        return beside | ({"features": data.features} if data.features else {})

    @property
    def shown_sides(self) -> dict[str, str]:
        """Kind → place of the sides that are streamed in generation: no targets, and none that is not asked for."""
        return {kind: where for kind, where in self.sides.items() if kind in (*self.inputs.sides, "features")}

    @property
    def reference(self) -> dict[str, str]:
        """Kind → place of the side that holds what is right; {} where the records do."""
        return {kind: self.sides[kind] for kind in (self.inputs.reference,) if kind}

    def refuse_lacking(self, kind: str, manifest: Manifest) -> None:
        """DataError where a side of targets says nothing of a split that is learned or validated on."""
        where = self.sides[kind]
        held = {tar.split for tar in read_side(where, kind).shards if tar.held}
        needed = ["train", *(["val"] if self.train.validation_studies and manifest.splits["val"].studies else [])]
        if lacking := [split for split in needed if split not in held]:
            raise DataError(
                f"the {kind} at {where} say nothing of {', '.join(lacking)}, so nothing can be learned or validated "
                f"there: `r2kg graph annotate SHARDS {' '.join(f'--split {split}' for split in needed)}`"
                f"{'' if kind == 'annotations' else f', then {KINDS[kind].how}'}, or train.validation_studies=0"
            )

    def manifest(self) -> Manifest:
        """The manifest of its shards.

        Raises:
            ConfigError: it names no shards.
            DataError: there are none where it says.
        """
        if not self.data.shards:
            raise ConfigError(
                "data.shards is empty: give the directory that `r2kg shard` wrote, e.g. data.shards=films"
            )
        return read_manifest(self.data.shards)

    @field_validator("model", mode="before")
    @classmethod
    def _model_is_what_its_system_says(cls, value: Any) -> Any:  # else its file could not be read back
        if isinstance(value, dict):
            return System.named(str(value.get("system", ""))).model_validate(value)
        if isinstance(value, System) and (there := System.named(value.system)).__qualname__ != type(value).__qualname__:
            raise ConfigError(
                f"model.system={value.system!r} names {there.__qualname__}, not {type(value).__qualname__}"
            )
        return value

    @model_validator(mode="after")
    def _name_and_system_can_be(self) -> Self:
        for _, part in parts_of(self.model):
            if ask := getattr(part, "check", None):
                ask(self)
        for field, named in {"lr_of": self.optim.lr_of, "weight_decay_of": self.optim.weight_decay_of}.items():
            if self.model.trains and (strange := sorted(named.keys() - self.model.trains)):
                raise ValueError(
                    f"optim.{field} names {', '.join(strange)}; {', '.join(self.model.trains)} can be trained"
                )
        inputs = self.inputs
        inputs.refuse_answers(self.model.task)
        if "features" in self.data.sides:
            raise ValueError("data.sides.features is data.features: set that instead")
        if strange := sorted(self.data.sides.keys() - {*inputs.sides, *inputs.training_sides}):
            read = ", ".join((*inputs.sides, *inputs.training_sides)) or "none"
            raise ValueError(f"data.sides names {', '.join(strange)}, {self.model.system} reads {read}: leave it out")
        if "://" in self.root:
            raise ValueError(
                f"root={self.root} is a URL: runs need a directory that every node mounts (NFS, Lustre, a CSI volume); "
                "shards alone may lie in object storage"
            )
        plain = self.name.isprintable() and len(self.name) <= 200 and not {"/", "\\"} & set(self.name)
        if not plain or self.name in {"", ".", ".."}:
            raise ValueError(f"name {self.name[:80]!r} must be a plain directory name")
        return self

    def change(self, changes: dict[str, Any]) -> "Run":
        """Return this run with dotted fields replaced, e.g. {"model.llm.tuning": "lora"}.

        Raises:
            ConfigError: no such field (the nearest are named) or values that cannot work together.
        """
        tree = self.model_dump()
        # a part before its tag, its tag before its other fields
        for path in sorted(changes, key=lambda path: path.count(".") - 0.5 * (path.rpartition(".")[2] in TAGS)):
            assign(tree, Run, path, changes[path])
        return _validated(tree)

    def absolute(self) -> "Run":
        """This run with absolute paths: workers do not start in the directory of the command line.

        Raises:
            ConfigError: a path that can be none.
        """
        places = {"data.shards": self.data.shards, "data.features": self.data.features}
        places |= {f"data.sides.{kind}": where for kind, where in self.data.sides.items()}
        try:
            paths = {"root": self.root} | {
                field: path for field, path in local_fields(self) if Path(path).expanduser().exists()
            }
            local = {field: str(Path(path).expanduser().resolve()) for field, path in paths.items() if path}
            local |= {field: str(place(where)) if where else "" for field, where in places.items()}
        except (OSError, RuntimeError) as error:  # too long; the home of nobody
            raise ConfigError(f"a path of the run can be none: {str(error)[:200]}") from None
        return self.change(local)

    def save(self, path: Path) -> None:
        """Write the run as JSON, whole or not at all; `load_run` reads it back."""
        write_atomic(path, self.model_dump_json(indent=2).encode() + b"\n")


def load_run(path: Path) -> Run:
    """Read a saved run.json.

    Raises:
        ConfigError: it is missing or torn, or a field of it cannot be.
    """
    try:
        if size_of(path) < 0:
            raise FileNotFoundError("it is missing, or no regular file")
        tree = json.loads(patiently(str(path), path.read_bytes))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is torn or no saved run ({error}): put a whole one in its place") from None
    return _validated(tree)


def _validated(tree: Any) -> Run:
    try:
        run = Run.model_validate(tree)
        if NUL.search(run.model_dump_json()):
            raise ConfigError("a text of the run holds a NUL character, which no path or name can: leave it out")
    except ConfigError:
        raise
    except ValidationError as error:
        raise ConfigError(explain(error, Run, tree)) from None
    except ValueError as error:
        raise ConfigError(f"the run cannot be saved as JSON: {' '.join(str(error).split())[:200]}") from None
    return run


def parts_of(part: Part, prefix: str = "") -> Iterable[tuple[str, Part]]:
    """A part and all parts inside it, each with the beginning of its fields' dotted names."""
    yield prefix, part
    for name in type(part).model_fields:
        value = getattr(part, name)
        inside = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple | list) else ()
        )
        for key, below in (("", value), *((f"{key}.", below) for key, below in inside)):
            if isinstance(below, Part):
                yield from parts_of(below, f"{prefix}{name}.{key}")


def local_fields(whole: Part) -> Iterable[tuple[str, str]]:
    """Dotted fields that are `Local`, or `Local | None`, with their values; "" for None."""
    for prefix, part in parts_of(whole):
        for name, field in type(part).model_fields.items():
            marks = [field, *(mark for option in get_args(field.annotation) for mark in get_args(option)[1:])]
            extras = [getattr(mark, "json_schema_extra", None) for mark in marks]
            if {"local": True} in extras:
                yield prefix + name, getattr(part, name) or ""
