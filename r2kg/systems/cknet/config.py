"""CKNet's part of a Run."""

from collections.abc import Iterable
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from r2kg.config.needs import Artefact, Inputs
from r2kg.config.parts import Data, Decoding, Local
from r2kg.config.run import Run, System
from r2kg.modules.config import PROMPT, Llm, Lora, Vision
from r2kg.systems.cknet.parts import Knowledge, Transformer
from shards.tars.format import Manifest


class CKNetConfig(System):
    """CKNet. Without knowledge it is Base: image encoder and R2Gen's Transformer."""

    build: ClassVar[str] = "r2kg.systems.cknet.model:CKNet"
    trains: ClassVar[tuple[str, ...]] = ("vision", "film", "knowledge", "transformer")

    system: Literal["cknet"] = "cknet"
    """Names this part."""
    vision: Vision = Vision(name="densenet121", merge="concatenate")
    """Image encoder; merge=concatenate shows the tokens of all films, one film after the other."""
    knowledge: Knowledge | None = Knowledge()
    """The knowledge matrix; null: none (Base)."""
    transformer: Transformer = Transformer()
    """What reads film tokens and writes words."""
    min_count: int = Field(default=3, ge=1)
    """Times that a word stands in training reports for the vocabulary to have it (R2Gen: IU X-Ray 3, MIMIC-CXR 10)."""
    report_tokens: int = Field(default=60, ge=2)
    """Ids of a report that is learned, the one before its first word included (R2Gen: IU X-Ray 60, MIMIC-CXR 100)."""
    words_at: Local = ""
    """Directory of the vocabulary that is made before the run; empty until then."""
    evidence: int = Field(default=5, ge=0)
    """Nodes of the matrix that predictions.jsonl names for a report, those that film and words took most; 0: none."""
    decoding: Decoding = Decoding(beams=3, length_rule="r2gen", repetition_penalty=1.0, max_new_tokens=60)
    """Generation: R2Gen's beam search."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.vision.merge == "separate":
            raise ValueError("model.vision.merge=separate gives no one sequence: choose concatenate or average")
        if self.decoding.length_rule != "r2gen" and not self.decoding.sample:
            raise ValueError("model.decoding.length_rule=hf is for language models of transformers: choose r2gen")
        released = self.knowledge and self.knowledge.matrix == "released"
        if self.knowledge and released and (self.knowledge.rows, self.knowledge.width) != (31, self.transformer.width):
            raise ValueError(
                "model.knowledge.matrix=released has 30 findings and a root, as wide as the Transformer: set "
                f"model.knowledge.rows=31 and model.knowledge.width={self.transformer.width}"
            )
        if self.knowledge and self.transformer.width % self.knowledge.heads:
            raise ValueError(
                f"model.knowledge.heads={self.knowledge.heads} do not divide "
                f"model.transformer.width={self.transformer.width}"
            )
        return self

    def inputs(self, data: Data) -> Inputs:
        """Films, or the features of a frozen encoder."""
        return self.vision.inputs(data)

    def prepare(self, run: Run, manifest: Manifest) -> Iterable[Artefact]:
        """The vocabulary of the training reports; the knowledge matrix.

        Raises:
            ConfigError: γ is more than the matrix has vectors.
            DataError: no matrix, or one of other shards.
        """
        needed = _matrix(self.knowledge, run, manifest)
        if not self.words_at:
            from r2kg.systems.cknet.vocabulary import artefact as words

            needed.append(words(self.min_count, self.transformer.text, run, manifest, into="model.words_at"))
        return needed


class CKNetLlmConfig(System):
    """CKNet's knowledge module before a language model with adapters."""

    build: ClassVar[str] = "r2kg.systems.cknet.llm:CKNetLlm"
    trains: ClassVar[tuple[str, ...]] = ("vision", "film", "knowledge", "projection", "llm")

    system: Literal["cknet_llm"] = "cknet_llm"
    """Names this part."""
    vision: Vision = Vision(name="densenet121", merge="concatenate")
    """Image encoder; merge=concatenate shows the tokens of all films, one film after the other."""
    knowledge: Knowledge | None = Knowledge()
    """The knowledge matrix; null: none. fuse_words=none leaves the language model's words as they are."""
    width: int = Field(default=512, ge=8)
    """Channels in which film tokens and words ask the matrix."""
    llm: Llm = Llm(tuning="lora", lora=Lora())
    """Report writer."""
    prompt: str = PROMPT
    """Instruction after the film's tokens."""
    report_tokens: int = Field(default=100, ge=4)
    """Report tokens the model is trained on; longer reports are cut."""
    evidence: int = Field(default=5, ge=0)
    """Nodes of the matrix that predictions.jsonl names for a report, those that its films took most; 0: none."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.vision.merge == "separate":
            raise ValueError("model.vision.merge=separate gives no one sequence: choose concatenate or average")
        if self.knowledge and self.knowledge.matrix == "released":
            raise ValueError("model.knowledge.matrix=released is of the system cknet: choose graph or random")
        if self.knowledge and self.width % self.knowledge.heads:
            raise ValueError(f"model.knowledge.heads={self.knowledge.heads} do not divide model.width={self.width}")
        return self

    def inputs(self, data: Data) -> Inputs:
        """Films, or the features of a frozen encoder."""
        return self.vision.inputs(data)

    def prepare(self, run: Run, manifest: Manifest) -> Iterable[Artefact]:
        """The tiny LM, where it stands in for a hub model; the knowledge matrix.

        Raises:
            ConfigError: γ is more than the matrix has vectors.
            DataError: no matrix, or one of other shards.
        """
        needed = _matrix(self.knowledge, run, manifest)
        if self.llm.source == "tiny":
            from r2kg.modules.tiny_lm import artefact as tiny_lm

            needed.append(tiny_lm(self.llm.tiny, run, manifest, self.prompt, into="model.llm.source"))
        return needed


def _matrix(knowledge: Knowledge | None, run: Run, manifest: Manifest) -> list[Artefact]:
    """The matrix of a graph, where one has still to be taken."""
    if not knowledge or knowledge.matrix != "graph" or knowledge.matrix_at:
        return []
    from r2kg.systems.cknet.knowledge import artefact  # seconds of torch, for a run that needs it

    return [artefact(knowledge, run, manifest, into="model.knowledge.matrix_at")]
