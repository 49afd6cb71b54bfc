"""The parts that every run has, whichever system it trains."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, field_validator, model_validator

Local = Annotated[str, Field(json_schema_extra={"local": True})]
"""A name, or a path of this machine, which `Run.absolute` makes absolute where there is such a file or directory."""

Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a running mean: what is kept of it at a step."""


class Part(BaseModel):
    """Base of every part of a Run: frozen, unknown fields refused, field docstrings kept as descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


class Data(Part):
    """Which shards are streamed, and how a bad study is treated."""

    shards: str = ""
    """Directory or URL (s3://bucket/films) of the shards, the one that holds manifest.json."""
    features: str = ""
    """Directory or URL of features that `r2kg features` made of these shards with this run's frozen encoder: they are
    streamed in place of the films. Empty: films."""
    sides: dict[str, str] = Field(default_factory=dict)
    """Kind of side → its directory or URL, for the kinds that the system reads; default: SHARDS/side/KIND."""
    views: int = Field(default=2, ge=1, le=8)
    """Films taken per study: a frontal and a lateral one where there are both; studies with fewer are padded and
    masked."""
    on_bad: Literal["skip", "fail"] = "fail"
    """Shards that are damaged and studies that cannot be read. fail: stop, before the first step where it shows
    there; skip: go on, count and name every study that was not seen."""
    verify: Literal["sha256", "size"] = "size"
    """How shards are compared with their manifest before the run starts: tars by their sizes, or every byte of them.
    Indices are always read, and each study's bytes are checked by their CRC when it is read."""
    chunk: int = Field(default=32, ge=1)
    """Contiguous studies shuffled as one piece; 1 is a full shuffle, more keeps reads near-sequential."""
    window: int = Field(default=64, ge=1)
    """Chunks whose studies are mixed with one another."""


class Decoding(Part):
    """How a text is read out of a decoder."""

    beams: int = Field(default=3, ge=1)
    """Beam width; 1 is greedy."""
    length_rule: Literal["hf", "r2gen"] = "hf"
    """hf: score / length**length_penalty (transformers); r2gen: summed log-probability, no normalisation."""
    length_penalty: float = 2.0
    """Exponent of the hf rule; above 0 favours longer reports."""
    repetition_penalty: float = Field(default=2.0, gt=0)
    """Divides the logits of tokens already written; 1 is off (hf rule and sampling)."""
    min_new_tokens: int = Field(default=0, ge=0)
    """EOS is forbidden before this many tokens."""
    max_new_tokens: int = Field(default=120, ge=1)
    """Longest report, tokens."""

    withhold: tuple[Literal["film", "report"], ...] = ()
    """Controls: what is not shown. film: every film is black; report: texts that the system reads are empty."""

    sample: bool = False
    """Draw every token from the decoder's probabilities in place of a search; needs beams=1, sets length_rule aside."""
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Divides the logits before a token is drawn: below 1 is bolder, above 1 more varied (sampling only)."""
    top_k: int = Field(default=0, ge=0)
    """Draw from so many most probable tokens; 0 is off (sampling only)."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the most probable tokens that together reach this probability; 1 is off (sampling only)."""
    seed: int = Field(default=0, ge=0)
    """Seed of what is drawn: a study's text depends on it and on the study's place in its split (sampling only)."""

    def told(self) -> dict[str, Any]:
        """As JSON, as predictions name it; what was added to it later is there only where it is used."""
        return self.model_dump(mode="json", exclude=set() if self.withhold else {"withhold"})

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"model.decoding.min_new_tokens={self.min_new_tokens} exceeds "
                f"model.decoding.max_new_tokens={self.max_new_tokens}: raise the second or lower the first"
            )
        if self.sample and self.beams > 1:
            raise ValueError(
                f"model.decoding.sample=true draws one text, model.decoding.beams={self.beams} searches among several: "
                "set model.decoding.beams=1 or model.decoding.sample=false"
            )
        idle = {
            "temperature": self.temperature != 1,
            "top_k": self.top_k > 0,
            "top_p": self.top_p < 1,
            "seed": self.seed > 0,
        }
        if any(idle.values()) and not self.sample:
            given = ", ".join(
                f"model.decoding.{name}={getattr(self, name)}" for name, changed in idle.items() if changed
            )
            raise ValueError(
                f"{given} has no effect with model.decoding.sample=false: set model.decoding.sample=true and "
                "model.decoding.beams=1, or leave it out"
            )
        return self


class Optim(Part):
    """Adam and its schedule."""

    kind: Literal["adamw", "adam"] = "adamw"
    """How weight decay acts. adamw: on the weight itself (decoupled); adam: added to the gradient (coupled; R2Gen)."""
    amsgrad: bool = False
    """Divide by the largest second moment so far: a third tensor is kept per weight (R2Gen)."""
    lr: float = Field(default=1e-4, ge=0)
    """Peak learning rate."""
    lr_of: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    """Peak learning rate of a group of the system's parameters (r2genkg: vision, projection, llm) where it differs from
    `lr`."""
    min_lr: float = Field(default=1e-6, ge=0)
    """Learning rate at the end of the cosine, and of linear."""
    schedule: Literal["cosine", "cosine_epoch", "constant", "linear", "step"] = "cosine_epoch"
    """cosine: per step; cosine_epoch: per epoch, as R2GenGPT was released; constant; linear: per step to `min_lr`;
    step: × `gamma` every `step_epochs` epochs (R2Gen)."""
    step_epochs: int = Field(default=50, ge=1)
    """Epochs between two drops of the step schedule."""
    gamma: float = Field(default=0.1, gt=0)
    """Factor of a drop of the step schedule."""
    warmup_steps: int = Field(default=0, ge=0)
    """Linear warm-up from 0, in steps."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Adam's moment decays."""
    eps: float = Field(default=1e-8, gt=0)
    """Adam's denominator term."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay, applied to every trained tensor as PyTorch does by default."""
    weight_decay_of: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    """Weight decay of a group of the system's parameters where it differs from `weight_decay`."""
    no_decay: bool = False
    """Spare norms and biases (tensors of one dimension, and those called bias) from weight decay."""
    clip: float = Field(default=0.0, ge=0)
    """Largest gradient norm; 0 is off."""
    clip_value: float = Field(default=0.0, ge=0)
    """Largest absolute value of a gradient's element (R2Gen: 0.1); 0 is off."""

    @model_validator(mode="after")
    def _one_clip(self) -> Self:
        if self.clip and self.clip_value:
            raise ValueError(
                f"optim.clip={self.clip} and optim.clip_value={self.clip_value} both bound the gradient: set one to 0"
            )
        return self


OURS_IN_DEEPSPEED = {
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.global_batch, train.micro_batch and train.workers",
    "gradient_clipping": "optim.clip",
    "optimizer": "optim.kind",
    "zero_allow_untested_optimizer": "optim.kind",
    "zero_force_ds_cpu_optimizer": "engine.offload_optimizer",
    "scheduler": "optim.schedule",
    "bf16": "engine.precision",
    "bfloat16": "engine.precision",
    "fp16": "engine.precision",
    "amp": "engine.precision",
    "torch_autocast": "engine.precision",
    "data_types.grad_accum_dtype": "engine.precision",
    "compile": "engine.compile",
    "zero_optimization.stage": "engine.zero",
    "zero_optimization.offload_optimizer": "engine.offload_optimizer",
    "zero_optimization.cpu_offload": "engine.offload_optimizer",
    "zero_optimization.offload_param": "engine.offload_parameters",
    "zero_optimization.cpu_offload_params": "engine.offload_parameters",
}
"""Key of DeepSpeed's configuration → the field that sets it here."""


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
    compile: bool = False
    """torch.compile of the model in training, in place (stages 0-2). Pays on long runs: the first steps wait for the
    compiler (two linear layers on two busy CPU cores: 1-2 min), which starts once more when reports get another length
    and then takes lengths as unknown; losses stay the same. At stage 3 it stops at the first parameter that is used
    outside its own module (the ViT's class token), which is still empty when it is traced: refused."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """What else DeepSpeed's own configuration shall hold, merged into ours key by key, e.g.
    {"zero_optimization": {"reduce_bucket_size": 50000000}}; what has a field here is refused."""

    @field_validator("deepspeed")
    @classmethod
    def _what_has_a_field_is_set_there(cls, extra: dict[str, Any]) -> dict[str, Any]:
        for path, field in OURS_IN_DEEPSPEED.items():
            above, _, key = path.rpartition(".")
            node = extra.get(above, {}) if above else extra
            if not isinstance(node, dict):
                raise ValueError(f"engine.deepspeed.{above} must be a dictionary, which is merged into ours")
            if key in node:
                choices = " to bf16 or fp32" if field == "engine.precision" else ""
                raise ValueError(f"engine.deepspeed sets {path}, which is {field} here: set that instead{choices}")
        return extra

    @model_validator(mode="after")
    def _offload_needs_a_stage(self) -> Self:
        if self.offload_parameters and self.zero != 3:
            raise ValueError(f"engine.offload_parameters needs engine.zero=3, not {self.zero}")
        if self.offload_optimizer and self.zero == 0:
            raise ValueError("engine.offload_optimizer needs engine.zero=1, 2 or 3, not 0")
        if self.compile and self.zero == 3:
            raise ValueError(
                "engine.compile=true needs engine.zero=0, 1 or 2, not 3: torch.compile traces parameters before ZeRO-3 "
                "has gathered them"
            )
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
    """Studies of the validation split that are used for the validation loss and for `choose`; 0 is off."""
    choose: str = "loss"
    """What makes a checkpoint the best one. loss: the lowest validation loss. Else a metric, the higher the better, or
    a weighted sum, e.g. BLEU-4 or 0.5*BLEU-4+0.5*CIDEr-D, of what is generated on the validation studies when training
    has ended, under the run's first protocol; until then all checkpoints are kept."""
    patience: int = Field(default=0, ge=0)
    """Stop after this many validations in a row without a lower validation loss; 0: never. A run that stopped goes on
    when it is submitted again with more, or with 0."""
    log_every: int = Field(default=10, ge=1)
    """Steps between records of the loss."""
    max_restarts: int = Field(default=3, ge=-1)
    """Restarts after lost workers, and of the whole attempt where Ray's head, its controller or the driver was lost;
    -1: no limit. A node that Ray knows to have been preempted counts for none."""
    stop_seconds: float = Field(default=20.0, ge=0)
    """How long a run that is told to stop (Ctrl-C, SIGTERM) may take for its checkpoint. Whoever sends the signal kills
    after a time of its own: Kubernetes after 30 s, `ray job stop` after 3 unless RAY_JOB_STOP_WAIT_TIME_S says more."""
    wait_minutes: float = Field(default=30.0, ge=0)
    """How long to wait for the nodes that an autoscaler has yet to start, or that the run once had and the cluster has
    lost; what no node type can give is refused at once. Writers of a run trained on GPUs wait as long for theirs."""
    accept_changes: bool = False
    """Continue although the shards or the frozen weights are not those the checkpoint was trained with."""
    init_from: Local = ""
    """Weights to begin with: RUN@best, RUN@last or RUN@STEP, where RUN is a run's directory or its name under the same
    root; or a .safetensors, .pth, .pt or .bin file. They are copied once. Empty: the model's own."""
    init_map: dict[str, str | None] = Field(default_factory=dict)
    """Beginning of a tensor's name in `init_from` → its beginning here; null leaves those tensors out. The longest
    wins. A star stands for one part between dots, the same on both sides; alone, it begins every name."""
    max_skipped: int = Field(default=20, ge=0)
    """So many steps in a row may go without an update, because a gradient was not finite; one more, and the run stops.
    The order of studies and the learning rate go on over such a step; train.skipped counts them."""
    record_studies: bool = False
    """Write which studies every step consumed (consumed/*.jsonl in the run directory)."""

    @property
    def accumulation(self) -> int:
        """Micro-batches per worker and step."""
        return self.global_batch // (self.workers * self.micro_batch)

    @model_validator(mode="after")
    def _patience_needs_validation(self) -> Self:
        if self.patience and not self.validation_studies:
            raise ValueError(
                f"train.patience={self.patience} needs a validation loss: set train.validation_studies above 0"
            )
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        per_pass = self.workers * self.micro_batch
        if self.global_batch % per_pass == 0:
            return self
        way_out = f"use a multiple of {per_pass}"
        if self.global_batch % self.workers == 0:
            way_out += f", or train.micro_batch={math.gcd(self.global_batch // self.workers, self.micro_batch)}"
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
