"""Parts of R2GenKG's configuration: graph, disease queries and the bank that they ask."""

from typing import Literal, Self

from pydantic import Field, model_validator

from r2kg.config.parts import Local, Part
from r2kg.graph.film import FILMS, OTHERS
from r2kg.modules.config import TextEncoder


class Graph(Part):
    """The knowledge graph that is shown beside the film (R2GenKG §1.3, §1.4, §3)."""

    place: Local = ""
    """Directory of the graph (`r2kg graph build`); empty: SHARDS/graph."""
    source: Literal["levels", "film", "both"] = "levels"
    """What is shown of it. levels: the same nested graphs for every film, as the released code; film: the part that
    training films near it speak of (`r2kg graph films`)."""
    sizes: tuple[int, ...] = (100, 200, 300, 400, 500)
    """Nodes of the levels, about."""
    thresholds: tuple[int, ...] = ()
    """In place of sizes: least counts of the levels' triples; M3KG's are 2000, 645, 300, 181, 100."""
    shown: int = Field(default=2, ge=0)
    """Which level is shown under fusion=released, from 0."""
    fusion: Literal["released", "paper"] = "released"
    """released: one fused level goes on, the others act through its self-attention alone; paper: all of them do, as the
    figure has it."""
    text: TextEncoder = TextEncoder()
    """What makes the nodes' features; source=llm is the run's own language model, which a tiny one is for."""
    width: int = Field(default=768, ge=4)
    """D_k, of a node's features: that of the text encoder."""
    hidden: int = Field(default=384, ge=1)
    """Channels between the two layers of R-GCN."""
    places: int = Field(default=600, ge=1)
    """Nodes that the embedding of places has room for, per level."""
    fusion_layers: int = Field(default=2, ge=1)
    """Transformer layers of the fusion."""
    fusion_heads: int = Field(default=8, ge=1)
    """Heads of the fusion; they divide width."""
    heads: int = Field(default=16, ge=1)
    """Heads of the attention between film and graph; they divide its width."""
    attention_width: int | None = Field(default=None, ge=4)
    """Width in which film and graph ask each other; null: that of the image encoder, as released. With a smaller one
    both are mapped there before and back behind, which is for machines without a GPU."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """In R-GCN, fusion and attention."""
    control: Literal["none", "empty", "edges", "features", "film"] = "none"
    """For the question whether the graph matters, a graph of as many nodes that says nothing. empty: no features, no
    edges. Of levels: edges, the tails of all edges are dealt out anew; features, nodes have one another's features (of
    a film's own part the choice of nodes would still tell what is on it). Of films' own parts: film, another study's
    stands in its place (`r2kg graph films --of-another`)."""
    text_triples: int = Field(default=0, ge=0)
    """Triples of a film's own part of the graph, the best first, that are written into the prompt as words behind the
    soft tokens; 0: none. Needs source film or both."""
    i2g: bool = True
    """Whether film tokens that have asked the graph are shown."""
    g2i: bool = True
    """Whether graph tokens that have asked the film are shown."""
    levels_at: Local = ""
    """Directory of the levels and features that are made before the run; empty until then."""

    @property
    def sides(self) -> tuple[str, ...]:
        """The kind of side that is read, if any."""
        return () if self.source == "levels" else (OTHERS if self.control == "film" else FILMS,)

    @model_validator(mode="after")
    def _something_is_shown(self) -> Self:
        if not (self.i2g or self.g2i):
            raise ValueError("i2g=false and g2i=false show nothing of the graph: model.graph=null leaves it out")
        count = len(self.thresholds or self.sizes)
        if self.source != "film" and (not count or (self.fusion == "released" and self.shown >= count)):
            raise ValueError(f"shown={self.shown} is none of {count} levels, which are counted from 0")
        if self.text_triples and self.source == "levels":
            raise ValueError(f"text_triples={self.text_triples} are of films' own parts: set source to film or both")
        fitting = {"edges": "levels", "features": "levels", "film": "film"}.get(self.control, self.source)
        if self.source != fitting:
            raise ValueError(f"control={self.control} is one of source={fitting}, and source={self.source}")
        if self.text_triples and self.control == "empty":
            raise ValueError(f"text_triples={self.text_triples} would say what control=empty takes away: set one to 0")
        if self.attention_width and self.attention_width % self.heads:
            raise ValueError(f"heads={self.heads} do not divide attention_width={self.attention_width}")
        if self.width % self.fusion_heads:
            raise ValueError(f"fusion_heads={self.fusion_heads} do not divide width={self.width}")
        return self


class Bank(Part):
    """The vision-token bank that the disease queries ask (R2GenKG §1.2, §2.7)."""

    place: Local = ""
    """Directory of the bank (`r2kg graph bank`); empty: SHARDS/bank."""
    per_label: int = Field(default=500, ge=1)
    """Most tokens of a finding; a bank made with more gives its first ones."""
    tokens_at: Local = ""
    """Directory of the tokens that are taken before the run; empty until then."""


class Queries(Part):
    """The disease-aware branch: learned queries that read the film through a Q-Former (R2GenKG §1.2)."""

    count: int = Field(default=14, ge=1)
    """Queries, one for each of CheXpert's observations."""
    width: int = Field(default=768, ge=4)
    """Hidden size of the Q-Former."""
    layers: int = Field(default=12, ge=1)
    """Its layers; every second one attends to the film."""
    heads: int = Field(default=12, ge=1)
    """Its heads; they divide width."""
    film_width: int = Field(default=1408, ge=4)
    """Width that film tokens are brought to before, BLIP-2's."""
    bank: Bank | None = None
    """What the queries ask after the film; null: nothing."""
    shown: bool = True
    """Whether the queries themselves are shown beside what the bank answered them."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} do not divide width={self.width}")
        if not (self.shown or self.bank):
            raise ValueError("shown=false without a bank shows nothing: model.queries=null leaves the queries out")
        return self
