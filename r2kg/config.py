"""`Run`: everything that decides what a run is. One frozen, printable, hashable object; every default lives here."""

import json
import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from r2kg.overrides import assign
from shards.errors import ConfigError
from shards.tars.place import place, write_atomic


class Part(BaseModel):
    """Base of every part of a Run: frozen, unknown fields refused, field docstrings kept as descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class Data(Part):
    """Which shards are streamed, and how a bad study is treated."""

    shards: str = ""
    """Directory or URL (s3://bucket/films) of the shards, the one that holds manifest.json."""
    features: str = ""
    """Directory or URL of features that `r2kg features` made of these shards with this run's frozen encoder: they are
    streamed in place of the films. Empty: films."""
    views: int = Field(default=2, ge=1, le=8)
    """Films taken per study, frontal first; studies with fewer are padded and masked."""
    on_bad: Literal["skip", "fail"] = "fail"
    """Shards that are damaged and studies that cannot be read. fail: stop, before the first step where it shows
    there; skip: go on, count and name every study that was not seen."""
    verify: Literal["sha256", "size"] = "sha256"
    """How shards are compared with their manifest before the run starts."""
    chunk: int = Field(default=32, ge=1)
    """Contiguous studies shuffled as one piece; 1 is a full shuffle, more keeps reads near-sequential."""
    window: int = Field(default=64, ge=1)
    """Chunks whose studies are mixed with one another."""


class Lora(Part):
    """Low-rank adaptation (Hu et al. 2021) by peft."""

    rank: int = Field(default=16, ge=1)
    """Rank r of the update."""
    alpha: int = Field(default=16, ge=1)
    """Scale: the update is multiplied by alpha / rank."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout on the adapter's input."""


class Vision(Part):
    """Image encoder, a timm model."""

    name: str = "swin_base_patch4_window7_224"
    """timm model name."""
    weights: str = "timm"
    """"timm": the pretrained weights timm names (needs the hub); "random"; or a local safetensors file."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments for timm.create_model that change the architecture (embed_dim, depths, ...)."""
    image_px: int = Field(default=224, ge=16)
    """Side of the square film the encoder sees, in pixels."""
    tuning: Literal["frozen", "lora", "full"] = "full"
    """frozen: R2GenGPT shallow; lora on attention query and value: delta; full: deep."""
    lora: Lora = Lora()
    """Adapter settings for tuning="lora"."""


class Llm(Part):
    """Language model that writes the report, any Hugging Face causal LM."""

    source: str = "meta-llama/Llama-2-7b-chat-hf"
    """Hub id or local directory; "tiny": a small LM trained on the training reports of the shards before the run."""
    revision: str | None = None
    """Hub revision; None is the default branch."""
    tuning: Literal["frozen", "lora", "full"] = "frozen"
    """What of the language model is trained."""
    lora: Lora = Lora()
    """Adapter settings for tuning="lora"."""


class TinyLm(Part):
    """The small causal LM that stands in for a hub model when there is none: trained on the training reports."""

    width: int = Field(default=128, ge=16)
    """Hidden size."""
    layers: int = Field(default=2, ge=1)
    """Transformer layers."""
    heads: int = Field(default=4, ge=1)
    """Attention heads."""
    vocabulary: int = Field(default=1000, ge=300)
    """Size of the byte-level BPE tokenizer, at most."""
    epochs: int = Field(default=5, ge=1)
    """Passes over the training reports."""
    lr: float = Field(default=2e-3, gt=0)
    """Peak learning rate of AdamW."""


class Model(Part):
    """The generator. With `graph` and `bank` None it is R2GenGPT (Wang et al. 2023)."""

    system: Literal["r2genkg"] = "r2genkg"
    """Key of r2kg.systems.SYSTEMS."""
    vision: Vision = Vision()
    """Image encoder."""
    llm: Llm = Llm()
    """Report writer."""
    graph: None = None
    """M3KG graph levels; None: no graph."""
    bank: None = None
    """Vision-token bank; None: no bank."""
    prompt: str = "Generate a comprehensive and detailed diagnosis report for this chest xray image."
    """Instruction after the film's tokens."""
    report_tokens: int = Field(default=100, ge=4)
    """Report tokens the model is trained on; longer reports are cut."""


class Decoding(Part):
    """How a report is read out of the language model."""

    beams: int = Field(default=3, ge=1)
    """Beam width; 1 is greedy."""
    length_rule: Literal["hf", "r2gen"] = "hf"
    """hf: score / length**length_penalty (transformers); r2gen: summed log-probability, no normalisation."""
    length_penalty: float = 2.0
    """Exponent of the hf rule; above 0 favours longer reports."""
    repetition_penalty: float = Field(default=2.0, gt=0)
    """Divides the logits of tokens already written; 1 is off (hf rule only)."""
    min_new_tokens: int = Field(default=0, ge=0)
    """EOS is forbidden before this many tokens."""
    max_new_tokens: int = Field(default=120, ge=1)
    """Longest report, tokens."""

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"decoding.min_new_tokens={self.min_new_tokens} exceeds decoding.max_new_tokens={self.max_new_tokens}: "
                "raise the second or lower the first"
            )
        return self


class Optim(Part):
    """AdamW and its schedule."""

    lr: float = Field(default=1e-4, ge=0)
    """Peak learning rate."""
    lr_of: dict[str, float] = Field(default_factory=dict)
    """Peak learning rate of a parameter group (vision, projection, llm) where it differs from `lr`."""
    min_lr: float = Field(default=1e-6, ge=0)
    """Learning rate at the end of the cosine."""
    schedule: Literal["cosine", "cosine_epoch", "constant"] = "cosine_epoch"
    """cosine: per step; cosine_epoch: per epoch, as R2GenGPT was released; constant."""
    warmup_steps: int = Field(default=0, ge=0)
    """Linear warm-up from 0, in steps."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's moment decays."""
    eps: float = 1e-8
    """Adam's denominator term."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay, applied to every trained tensor as PyTorch does by default."""
    clip: float = Field(default=0.0, ge=0)
    """Largest gradient norm; 0 is off."""


class Engine(Part):
    """DeepSpeed: what is sharded, where it lives, at what precision."""

    zero: Literal[0, 1, 2, 3] = 2
    """ZeRO stage: 1 shards optimiser states, 2 also gradients, 3 also parameters."""
    offload_optimizer: bool = False
    """Keep optimiser states in host memory (stages 1-3)."""
    offload_parameters: bool = False
    """Keep parameters in host memory (stage 3)."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Arithmetic of forward and backward; master weights are fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in backward: less memory, about a third more time."""

    @model_validator(mode="after")
    def _offload_needs_a_stage(self) -> Self:
        if self.offload_parameters and self.zero != 3:
            raise ValueError(f"engine.offload_parameters needs engine.zero=3, not {self.zero}")
        if self.offload_optimizer and self.zero == 0:
            raise ValueError("engine.offload_optimizer needs engine.zero=1, 2 or 3, not 0")
        return self


class Train(Part):
    """Length of the run, its batch, its workers."""

    epochs: int = Field(default=10, ge=1)
    """Passes over the training split."""
    steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimiser steps instead of after `epochs`."""
    global_batch: int = Field(default=8, ge=1)
    """Studies per optimiser step, over all workers: fixed by the experiment."""
    micro_batch: int = Field(default=8, ge=1)
    """Studies per forward pass of one worker: fixed by its memory."""
    workers: int = Field(default=1, ge=1)
    """Ray Train workers (one GPU each when `gpus`)."""
    gpus: bool = True
    """One GPU per worker; false trains on CPU."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPUs reserved by a worker; keep some of the machine's for reading films."""
    seed: int = 42
    """Seed of weights, dropout and order."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints; one is always written at the end."""
    checkpoints_kept: int = Field(default=2, ge=1)
    """Newest checkpoints kept, beside the best one."""
    validate_every: int = Field(default=0, ge=0)
    """Steps between validation losses beside those of every checkpoint; 0: none beside them."""
    validation_studies: int = Field(default=512, ge=0)
    """Studies of the validation split that are used for the validation loss; 0 is off."""
    log_every: int = Field(default=10, ge=1)
    """Steps between records of the loss."""
    max_restarts: int = Field(default=3, ge=-1)
    """Restarts after a lost worker; -1: no limit."""
    accept_changes: bool = False
    """Continue although the shards or the frozen weights are not those the checkpoint was trained with."""
    record_studies: bool = False
    """Write which studies every step consumed (consumed/*.jsonl in the run directory)."""

    @property
    def accumulation(self) -> int:
        """Micro-batches per worker and step."""
        return self.global_batch // (self.workers * self.micro_batch)

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        per_pass = self.workers * self.micro_batch
        if self.global_batch % per_pass == 0:
            return self
        per_worker = self.global_batch / self.workers
        way_out = f"use a multiple of {per_pass}"
        if per_worker.is_integer():
            way_out += f", or train.micro_batch={math.gcd(int(per_worker), self.micro_batch)}"
        raise ValueError(
            f"global batch {self.global_batch} cannot be split over {self.workers} workers × "
            f"micro-batch {self.micro_batch}: {way_out}"
        )


class Privacy(Part):
    """What may leave the worker on credentialed data. Identifiers are salted in the shards already."""

    allow_text: bool = False
    """Show the messages of errors raised by libraries, which may quote a report; false: only their type and place."""


class Tracking(Part):
    """MLflow."""

    uri: str = ""
    """Tracking server; empty: MLFLOW_TRACKING_URI, or an SQLite file beside the runs."""
    experiment: str = "r2kg"
    """MLflow experiment."""
    parent: str = ""
    """Name of the parent run (a table or sweep); empty: none."""


class Run(Part):
    """One run: recipe, data, model, optimiser, engine, length. Saved as run.json and restartable from it alone."""

    name: str
    """Directory and MLflow name. Submitting a name that exists continues it."""
    recipe: str = ""
    """The recipe it came from, for the record."""
    root: str = "runs"
    """Directory under which the run's own directory is made; on a cluster, shared storage."""
    data: Data = Data()
    """Shards."""
    model: Model = Model()
    """System and its parts."""
    tiny_lm: TinyLm = TinyLm()
    """Settings of the LM that is made when model.llm.source is "tiny"."""
    decoding: Decoding = Decoding()
    """Generation."""
    optim: Optim = Optim()
    """Optimiser."""
    engine: Engine = Engine()
    """DeepSpeed."""
    train: Train = Train()
    """Loop."""
    protocols: tuple[str, ...] = ("r2gen-2020", "full-text")
    """Scoring protocols, keys of r2kg.protocol.PROTOCOLS."""
    tracking: Tracking = Tracking()
    """MLflow."""
    privacy: Privacy = Privacy()
    """Text fence."""

    @property
    def directory(self) -> Path:
        """Where everything of this run is written."""
        return Path(self.root).expanduser().resolve() / self.name

    @model_validator(mode="after")
    def _name_is_a_directory(self) -> Self:
        if not self.name or self.name in {".", ".."} or "/" in self.name or "\\" in self.name:
            raise ValueError(f"name {self.name!r} must be a plain directory name")
        return self

    def change(self, changes: dict[str, Any]) -> "Run":
        """Return this run with dotted fields replaced, e.g. {"model.llm.tuning": "lora"}.

        Raises:
            ConfigError: no such field (the nearest are named) or values that cannot work together.
        """
        tree = self.model_dump()
        for path, value in changes.items():
            assign(tree, Run, path, value)
        return _validated(tree)

    def absolute(self) -> "Run":
        """This run with absolute paths: workers do not start in the directory of the command line."""
        places = {"data.shards": self.data.shards, "data.features": self.data.features}
        paths = {"root": self.root}
        if Path(self.model.llm.source).expanduser().is_dir():
            paths["model.llm.source"] = self.model.llm.source
        if Path(self.model.vision.weights).expanduser().is_file():
            paths["model.vision.weights"] = self.model.vision.weights
        local = {field: str(Path(path).expanduser().resolve()) for field, path in paths.items() if path}
        return self.change(local | {field: str(place(where)) if where else "" for field, where in places.items()})

    def save(self, path: Path) -> None:
        """Write the run as JSON, whole or not at all; `load_run` reads it back."""
        write_atomic(path, self.model_dump_json(indent=2).encode() + b"\n")


def load_run(path: Path) -> Run:
    """Read a saved run.json.

    Raises:
        ConfigError: it is torn, or a field of it cannot be.
    """
    try:
        tree = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is torn or no saved run ({error}): put a whole one in its place") from None
    return _validated(tree)


def _validated(tree: dict) -> Run:
    try:
        return Run.model_validate(tree)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, e['loc'])) or 'run'}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()
        ]
        raise ConfigError("; ".join(lines)) from None
