"""R2GenKG's part of a Run."""

from collections.abc import Iterable
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from r2kg.config.needs import Artefact, Inputs
from r2kg.config.parts import Data
from r2kg.config.run import Run, System
from r2kg.modules.config import PROMPT, Llm, Vision
from r2kg.systems.r2genkg.parts import Graph, Queries
from shards.tars.format import Manifest


class R2GenKGConfig(System):
    """R2GenKG (arXiv 2508.03426). Without graph and queries it is R2GenGPT (Wang et al. 2023)."""

    build: ClassVar[str] = "r2kg.systems.r2genkg.model:R2GenKG"
    trains: ClassVar[tuple[str, ...]] = ("vision", "projection", "graph", "queries", "llm")

    system: Literal["r2genkg"] = "r2genkg"
    """Names this part."""
    vision: Vision = Vision()
    """Image encoder."""
    graph: Graph | None = None
    """What is shown of the knowledge graph; null: nothing."""
    queries: Queries | None = None
    """Disease queries; null: none."""
    llm: Llm = Llm()
    """Report writer."""
    prompt: str = PROMPT
    """Instruction after the film's tokens."""
    report_tokens: int = Field(default=100, ge=4)
    """Report tokens the model is trained on; longer reports are cut."""

    evidence: int = Field(default=5, ge=0)
    """Nodes of the graph and tokens of the bank that predictions.jsonl names for a report, those that were asked most,
    with training studies behind them; 0: none."""

    @model_validator(mode="after")
    def _films_are_one_sequence(self) -> Self:
        if self.vision.merge == "separate":
            raise ValueError(
                "model.vision.merge=separate is for systems that treat films alone; r2genkg puts a study's tokens into "
                "one prompt: choose average or concatenate"
            )
        return self

    def inputs(self, data: Data) -> Inputs:
        """Films, or the features of a frozen encoder; the part of the graph that belongs to them."""
        return self.vision.inputs(data, sides=self.graph.sides if self.graph else ())

    def prepare(self, run: Run, manifest: Manifest) -> Iterable[Artefact]:
        """The tiny LM, where it stands in for a hub model; the graph's levels and nodes' features; tokens of the bank.

        Raises:
            DataError: no graph, one of other shards, one that other splits' reports speak in; films' parts of another;
                no bank, or one of other shards. Before anything is made.
        """
        needed = list[Artefact]()
        if self.llm.source == "tiny":
            from r2kg.modules.tiny_lm import artefact  # seconds of torch, for a run that needs it

            needed.append(artefact(self.llm.tiny, run, manifest, self.prompt, into="model.llm.source"))
        if self.graph and not self.graph.levels_at:
            from r2kg.systems.r2genkg.graph import artefact as levels

            source = self.llm.source if self.graph.text.source == "llm" else self.graph.text.source
            needed.append(levels(self.graph, source, run, manifest, into="model.graph.levels_at"))
        if self.queries and self.queries.bank and not self.queries.bank.tokens_at:
            from r2kg.systems.r2genkg.queries import artefact as tokens

            into, width = "model.queries.bank.tokens_at", self.queries.width
            needed.append(tokens(self.queries.bank, width, run, manifest, into))
        return needed
