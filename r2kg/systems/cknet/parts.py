"""Parts of CKNet's configuration: the knowledge matrix, and R2Gen's Transformer."""

from typing import Literal, Self

from pydantic import Field, model_validator

from r2kg.config.parts import Local, Part
from r2kg.modules.config import TextEncoder

Fuse = Literal["concat", "add", "released", "none"]


class Knowledge(Part):
    """The matrix that film tokens and words ask, and how they take its answer (CKNet Eq. 4-9)."""

    matrix: Literal["graph", "random", "released"] = "graph"
    """graph: one vector for every finding of a graph (`r2kg graph matrix`); random: `rows` drawn ones, for which no
    matrix has to be there; released: what the code that was released with CKNet asks (`r2kg.systems.cknet.released`),
    in training node states of the study's own films by a graph that is drawn anew every time, in inference for words
    a matrix that is not trained."""
    place: Local = ""
    """Directory of the matrix; empty: SHARDS/knowledge, for control=other SHARDS/knowledge-other."""
    rows: int = Field(default=40, ge=1)
    """Vectors of a random matrix."""
    width: int = Field(default=512, ge=1)
    """Channels of a random matrix; one of a graph has its own."""
    seed: int = Field(default=0, ge=0)
    """Of what is drawn: a random matrix, a control."""
    trained: bool = False
    """Whether the matrix is trained on (R2GenCMN's is) or stays as it is (CKNet's)."""
    top_gamma: int = Field(default=8, ge=1)
    """γ, vectors of the matrix that a token takes, of each head."""
    heads: int = Field(default=8, ge=1)
    """Heads of the question; they divide the Transformer's width."""
    weights: Literal["softmax", "ratio"] = "softmax"
    """How the γ vectors are weighed. softmax: of their scores, as all released code of this lineage; ratio: each score
    through their sum, Eq. 6, negative scores counting as 0, and all alike where none is positive."""
    fuse_film: Fuse = "concat"
    """How a film token takes the answer. concat: FC of both one behind the other, Eq. 9; add: their sum (R2GenCMN);
    released: FC of (token + answer, answer), as the code that was released with CKNet; none: not at all."""
    fuse_words: Fuse = "concat"
    """The same for words; the released code adds."""
    out: bool = False
    """A linear map behind the heads' answers; R2GenCMN and CKNet's code have it, CKNet's Eq. 8 does not."""
    control: Literal["none", "random", "values", "other"] = "none"
    """For the question whether the knowledge matters. random: as many vectors, as wide, that are drawn (+MEN); values:
    each channel's values are dealt out anew among the vectors, so that they are as large and as many and mean nothing
    (whole vectors that change places would change nothing: what is asked does not know their order); other: the matrix
    of another graph, of SHARDS/knowledge-other."""
    matrix_at: Local = ""
    """Directory of the matrix that is taken before the run; empty until then."""

    @model_validator(mode="after")
    def _gamma_fits(self) -> Self:
        if self.matrix != "graph" and self.top_gamma > self.rows:
            raise ValueError(f"top_gamma={self.top_gamma} of rows={self.rows}: take at most as many as there are")
        if self.fuse_film == self.fuse_words == "none":
            raise ValueError("fuse_film=none and fuse_words=none ask in vain: model.knowledge=null leaves it out")
        if self.matrix != "graph" and self.control != "none":
            raise ValueError(f"control={self.control} takes the meaning out of a graph's matrix; a random one has none")
        if self.matrix == "released" and self.trained:
            raise ValueError("matrix=released is not trained: set trained=false")
        return self


class Transformer(Part):
    """R2Gen's encoder and decoder (Chen et al. 2020), and the words that are written."""

    width: int = Field(default=512, ge=8)
    """Channels of a token."""
    hidden: int = Field(default=512, ge=1)
    """Channels between the two layers of the feed-forward network."""
    layers: int = Field(default=3, ge=1)
    """Of the encoder, and of the decoder."""
    heads: int = Field(default=8, ge=1)
    """Of attention; they divide width."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """In attention, feed-forward network and residual paths."""
    film_dropout: float = Field(default=0.5, ge=0, lt=1)
    """Behind the map from the image encoder's channels to `width`."""
    film_places: bool = True
    """Sinusoidal places and dropout on film tokens too, before the encoder, as R2GenCMN's and CKNet's code have them;
    R2Gen's has none."""
    text: TextEncoder | None = None
    """What makes the words' vectors, a table that stays as it is under a trained map: each word of the vocabulary is
    encoded alone, so that no word can tell of those behind it. null: they are learned."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} do not divide width={self.width}")
        return self
