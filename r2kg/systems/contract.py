"""What training and generation know of a system's model, whichever it is."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from r2kg.config.parts import Decoding
from r2kg.config.protocol import protocol_named
from r2kg.config.run import System
from r2kg.modules.beams import Generated
from shards.errors import CheckpointError, ConfigError

Batch = dict[str, Any]
"""Nested tensors: dicts, lists and tuples of them, and whatever else has `to(device)` (PyG's batches)."""


class Term(NamedTuple):
    """One named term of the loss. Of the whole objective it is weight · Σ sum / Σ count over the global batch."""

    sum: Tensor
    """fp32 scalar over this micro-batch; 0, with gradients of 0, where nothing counts."""
    count: float  # type: ignore[assignment]  # tuple.count is not missed
    """What the term is a mean over, as `Model.counts` said of the batch: tokens, studies, ..."""
    weight: float = 1.0
    """Factor of the mean in the objective."""


class Model(Protocol):
    """The nn.Module that `System.build` names. Its `forward` is `loss`. tests/own/pairs_model.py is a small one.

    One whose references are to be cut by its own tokens has `fitting(texts, tokens)` besides: of each text the
    characters that its first so many tokens spell, int each (`add_reference_cuts`). One that pads what it reads may
    have `padding()`: the share of places that were padding since it was last asked; None: it has read nothing.
    """

    mutable: tuple[str, ...]
    """Names of buffers that training changes: checkpoints hold them, and after every step workers agree on their mean
    (of integers and booleans, on the first worker's)."""

    def collate(self, rows: Mapping[str, Any]) -> Batch:
        """Rows of the stream as a batch on the CPU; an invalid row keeps its place and counts for nothing.

        Args:
            rows: the columns of `shards.stream.blocks.read_block`, read-only arrays of n rows: images uint8
                [n, V, S, S] (or features uint16, the bits of bf16), view_mask bool [n, V], valid bool [n], index int64
                [n], record: JSON of a `Study` ("" where invalid), and for every side in `Inputs` its `Kind.column`,
                bytes, b"" for a study without. In generation the record lacks what `Inputs` does not name, the target
                too, and sides that are targets are not there.
        """

    def counts(self, batch: Batch) -> dict[str, float]:
        """The count of every term that `loss` will return, by the same names, from the batch while it is on the CPU."""

    def cut(self, records: Sequence[str]) -> list[bool]:
        """Of each study, JSON, whether what `collate` makes of its answer, or of a report that this is read from, is
        cut, so that it cannot be learned whole.

        Asked of a model on the meta device, which has its tokenizer.
        """

    def loss(self, batch: Batch) -> dict[str, Term]:
        """The terms of the objective over a micro-batch; the same names on every worker and for every batch."""

    def generate(self, batch: Batch, decoding: Decoding) -> list[Generated]:
        """What is written for every row, also for invalid ones. Called in eval mode under torch.inference_mode."""

    def trainable(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Groups of the optimiser → trained parameters by their names of `named_parameters()`.

        Together they are exactly the parameters that require a gradient.
        """

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Recompute activations in backward."""

    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint leaves out and a run must find again, by part: {"sha256": of its weights, ...}.

        Asked of a model on the CPU, with the weights it begins with, before an engine casts or shards them: by one
        worker for all. The same at every precision, on every world and however long the run has been going on.
        """

    __call__: Callable[[Batch], dict[str, Term]]
    named_parameters: Callable[[], Iterator[tuple[str, nn.Parameter]]]
    parameters: Callable[[], Iterator[nn.Parameter]]
    get_buffer: Callable[[str], Tensor]
    to: Callable[..., Any]
    eval: Callable[[], Any]


def build_model(part: System) -> Model:
    """The model of a system's part; ConfigError when one of its modules cannot be built."""
    return model_class(part)(part)


def model_class(part: System) -> type:
    """What `System.build` names."""
    module, _, name = part.build.partition(":")
    return getattr(import_module(module), name)


def refuse_cuts(model: type, protocols: Sequence[str]) -> None:
    """ConfigError for protocols that cut by tokens of a language model which this kind of model does not have."""
    cutting = [one for one in protocols if protocol_named(one).reference_cut == "tokens"]
    if cutting and not hasattr(model, "fitting"):
        raise ConfigError(
            f"protocol {cutting[0]} cuts references by tokens of the system's language model, and {model.__name__} has "
            "no `fitting` to ask: leave it out of protocols, or give it one"
        )


def add_reference_cuts(lines: Sequence[dict[str, Any]], model: Model, protocols: Sequence[str]) -> None:
    """Write into prediction lines how much of a reference those protocols compare that cut by the model's tokens.

    It becomes a line's "reference_cut", protocol → characters; a line without a report as written is left as it is.

    Raises:
        ConfigError: the model has no tokenizer to ask (`Model.fitting`).
    """
    refuse_cuts(type(model), protocols)
    told = [line for line in lines if "reference_raw" in line]
    for protocol in map(protocol_named, protocols):
        if protocol.reference_cut == "tokens" and protocol.max_length:
            texts = [protocol.uncut.reference(line) for line in told]
            ends = model.fitting(texts, protocol.max_length)  # type: ignore[attr-defined]  # it is there: not refused
            for line, end in zip(told, ends, strict=True):
                line.setdefault("reference_cut", {})[protocol.name] = end


def targets_of(rows: Mapping[str, Any]) -> list[str | None]:
    """The reports that the stream's rows hold as answers, cleaned; None of an invalid row, and in generation."""
    both = zip(rows["record"], rows["valid"], strict=True)
    return [json.loads(record).get("target") if valid else None for record, valid in both]


def modules_of(model: nn.Module, prefix: str = "") -> dict[str, list[nn.Parameter]]:
    """Parameters by what a system's own modules are composed of; parameters of such a module itself are apart."""
    found = {prefix + name: [parameter] for name, parameter in model.named_parameters(recurse=False)}
    for name, child in model.named_children():
        if type(child).__module__.startswith("r2kg.systems."):
            found |= modules_of(child, f"{prefix}{name}.")
        else:
            found[prefix + name] = list(child.parameters())
    return found


def trained_groups(model: nn.Module, renamed: Mapping[str, str] = {}) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """`Model.trainable` by the model's own parts: what of each is trained, under its name or the one it has here."""
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = name.partition(".")[0]
            groups.setdefault(renamed.get(part, part), []).append((name, parameter))
    return groups


def stored(model: Model) -> dict[str, Tensor]:
    """What a checkpoint holds of a model: trained parameters and mutable buffers, by name."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return trained | {name: model.get_buffer(name) for name in model.mutable}


@torch.no_grad()
def load_stored(model: Model, state: Mapping[str, Tensor], names: Collection[str] | None = None) -> None:
    """Copy stored tensors into the model, keeping its own dtypes and device; each is asked for once.

    `names` of `state` are the model's, all of them by default.

    Raises:
        CheckpointError: names or shapes differ from what the model stores.
    """
    own = stored(model)
    names = state.keys() if names is None else set(names)
    missing, extra = sorted(own.keys() - names), sorted(names - own.keys())
    if missing or extra:
        raise CheckpointError(
            f"stored weights are of another model: {len(missing)} missing (first {missing[:3]}), {len(extra)} unknown "
            f"(first {extra[:3]}); build the model from the run.json they were saved with"
        )
    for name, tensor in own.items():
        value = state[name]
        if tensor.shape != value.shape:
            raise CheckpointError(f"{name} is stored as {list(value.shape)}, the model has {list(tensor.shape)}")
        tensor.copy_(value)


def other_weights(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two `Model.fingerprint`s, a sentence for every part; none where the weights are the same.

    Of a part that has a "sha256" that alone decides: its files may lie elsewhere by now.
    """
    told = []
    for part in sorted(then.keys() | now.keys()):
        old, new = then.get(part) or {}, now.get(part) or {}
        if "sha256" in new and "sha256" not in old:
            told.append(
                f"{part} was given by name, {json.dumps(old)}, and not by the hash of its weights: whether they are "
                "those of now cannot be told"
            )
        elif old != new and ("sha256" not in new or old["sha256"] != new["sha256"]):
            told.append(f"{part}: {json.dumps(old)} then, {json.dumps(new)} now")
    return told


@torch.no_grad()
def fill(model: nn.Module, given: Mapping[str, tuple[str, Tensor]], source: str) -> tuple[int, int]:
    """Copy tensors of another model into parameters and buffers of this one, trained or frozen, in its own dtypes.

    A layer that LoRA was put on takes the weights of the plain one, also of a fused query, key and value.

    Args:
        given: name here → (name in `source`, tensor). On the meta device names and shapes are compared.

    Returns:
        how many tensors of the model were filled, of how many.

    Raises:
        ConfigError: a tensor has no place here, or another shape.
    """
    held = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    own = {name.replace(".base_layer.", "."): tensor for name, tensor in held}
    found, wrong = dict[str, Tensor](), dict[str, str]()
    for name, (old, tensor) in given.items():
        stem, _, leaf = (plain := name.replace(".base_layer.", ".")).rpartition(".")
        parts = [f"{stem}.{part}.{leaf}" for part in ("query", "key", "value")]
        pieces = {plain: tensor}
        if plain not in own and own.keys() >= set(parts):
            pieces = dict(zip(parts, tensor.chunk(3), strict=True))
        for here, piece in pieces.items():
            if here not in own:
                wrong[old] = f"{old} {list(piece.shape)} has no place, {here} is not in the model"
            elif own[here].shape != piece.shape:
                wrong[old] = f"{old} is {list(piece.shape)} there, {here} is {list(own[here].shape)} here"
            elif piece.is_floating_point() and not own[here].is_floating_point():
                wrong[old] = f"{old} is {piece.dtype} there, {here} is {own[here].dtype} here, quantised"
        found |= pieces
    if wrong:
        names = next(iter(wrong)).split(".")
        good = [old for old, _ in given.values() if old not in wrong]
        prefixes = [".".join(names[:depth]) for depth in range(1, len(names) + 1)]
        prefix = next(one for one in prefixes if not any(f"{old}.".startswith(f"{one}.") for old in good))
        adapters = " An adapter fits only where there is the same." if any("lora_" in old for old in wrong) else ""
        raise ConfigError(
            f"{len(wrong)} of {len(given)} tensors of train.init_from={source} do not fit this model: "
            f"{'; '.join([*wrong.values()][:3])}.{adapters} Way out: make the parts equal, name another place with "
            f"train.init_map.{prefix}=NEW, or leave them out with train.init_map.{prefix}=null"
        )
    for name, tensor in found.items():
        own[name].copy_(tensor)
    return len(found), len(own)


def to_bf16(model: Any) -> None:
    """Parameters in bf16 as DeepSpeed trains them; buffers (rotary tables, statistics, banks) keep their precision."""
    for parameter in model.parameters():
        if parameter.is_floating_point():  # quantised weights are not
            parameter.data = parameter.data.to(torch.bfloat16)


def to_device(batch: Any, device: torch.device | str) -> Any:
    """A batch on a device; what has no `to` stays as it is."""
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list):
        return [to_device(value, device) for value in batch]
    if isinstance(batch, tuple):
        moved = (to_device(value, device) for value in batch)
        return type(batch)(*moved) if hasattr(batch, "_fields") else tuple(moved)
    return batch.to(device, non_blocking=True) if hasattr(batch, "to") else batch
