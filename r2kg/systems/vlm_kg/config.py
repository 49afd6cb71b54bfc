"""VLM-KG's part of a Run."""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from r2kg.config.needs import Artefact, Inputs
from r2kg.config.parts import Data, Decoding, Part
from r2kg.config.run import Run, System
from r2kg.modules.config import Llm, Vision
from r2kg.systems.vlm_kg.parts import MEDCLIP, Vector
from shards.tars.format import Manifest

INSTRUCTION = (
    "List every triple that the radiology report states, as: entity , relation , entity ; entity , relation , entity. "
    "Relations are modify, located_at and suggestive_of. Write none where there is no triple."
)
"""Version 1. The paper's own wording is not known."""
IMAGE_INSTRUCTION = INSTRUCTION.replace("radiology report states", "chest film shows")


class Projector(Part):
    """The mapper between image vector and language model (ClipCap's, as VLM-KG uses it)."""

    clip_length: int = Field(default=64, ge=1)
    """k, tokens that the image vector is spread over."""
    prefix_length: int = Field(default=64, ge=1)
    """n, learned tokens that ask these: as many soft tokens reach the language model."""
    layers: int = Field(default=8, ge=1)
    """Transformer layers."""
    heads: int = Field(default=8, ge=1)
    """Attention heads."""
    mlp_ratio: float = Field(default=2.0, gt=0)
    """Width of the MLP in widths of the language model."""
    output_norm: bool = False
    """A LayerNorm behind the last layer: without it tokens of unit variance meet embeddings of a fiftieth."""


class VlmKgConfig(System):
    """VLM-KG. Without vision it is LLM-KG, which reads reports alone."""

    build: ClassVar[str] = "r2kg.systems.vlm_kg.model:VlmKg"
    task: ClassVar[Literal["report", "triples", "labels"]] = "triples"
    trains: ClassVar[tuple[str, ...]] = ("vision", "vector", "mapper", "llm")

    system: Literal["vlm_kg"] = "vlm_kg"
    """Names this part."""
    vision: Vision | None = MEDCLIP
    """Image encoder; null: no film is read (LLM-KG). weights=FILE, MedCLIP's, brings the vector's projection along."""
    vector: Vector = Vector()
    """What makes one vector of a study's films."""
    mapper: Projector = Projector()
    """What makes soft tokens of it."""
    llm: Llm = Llm(source="Qwen/Qwen1.5-0.5B", tuning="full")
    """What writes the triples. tuning=frozen behind a trained stage 1 is the paper's VLM-KG*."""
    triples: Literal["record", "side"] = "record"
    """Where the right triples stand. record: in the study's record, as the phantom has them; side: beside the shards
    (`r2kg triples SHARDS`), as real data needs it."""
    report: bool = True
    """The report is read; false: triples from the film alone."""
    instruction: str = ""
    """What is asked of the language model; empty: a fixed wording for reports, or for films alone."""
    report_tokens: int = Field(default=400, ge=1)
    """Tokens of the report that are read; a longer one is cut."""
    answer_tokens: int = Field(default=512, ge=4)
    """Tokens of the triples that the model is trained on, their end included; longer lists are cut."""
    decoding: Decoding = Decoding(beams=3, length_penalty=1.0, repetition_penalty=1.0, max_new_tokens=512)
    """Generation. The paper says beam search of an unknown width; its first table has the row of 512 tokens."""

    @model_validator(mode="after")
    def _something_is_read(self) -> Self:
        if not self.vision and not self.report:
            raise ValueError("model.vision=null and model.report=false: neither film nor report would be read")
        if self.vision and self.vision.merge != "separate":
            raise ValueError(
                f"model.vision.merge={self.vision.merge}: a vector is made of every film alone, and then their mean: "
                "set model.vision.merge=separate"
            )
        return self

    @property
    def frame(self) -> tuple[str, ...]:
        """Texts before the soft tokens, behind these and behind the report: Alpaca's blocks."""
        asks = self.instruction or (INSTRUCTION if self.report else IMAGE_INSTRUCTION)
        if self.report:
            return "", f"### Instruction:\n{asks}\n\n### Input:\n", "\n\n### Response:\n"
        return "", f"### Instruction:\n{asks}\n\n### Response:\n"

    def inputs(self, data: Data) -> Inputs:
        """The report, films or their features; triples as targets."""
        more: dict[str, Any] = {"text": ("report",) if self.report else ()}
        if self.triples == "side":
            more |= {"training_sides": ("triples",), "reference": "triples"}
        return self.vision.inputs(data, **more) if self.vision else Inputs(**more)

    def prepare(self, run: Run, manifest: Manifest) -> Iterable[Artefact]:
        """The tiny LM, where it stands in for a hub model."""
        if self.llm.source != "tiny":
            return []
        from r2kg.modules.tiny_lm import artefact as tiny_lm  # seconds of torch, for a run that needs it

        return [tiny_lm(self.llm.tiny, run, manifest, self.instruction or INSTRUCTION, into="model.llm.source")]
