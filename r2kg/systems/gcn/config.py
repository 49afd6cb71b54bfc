"""The GCN classifier's part of a Run."""

from collections.abc import Iterable
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from r2kg.config.needs import Artefact, Inputs
from r2kg.config.parts import Data
from r2kg.config.run import Run, System
from r2kg.modules.config import Vision
from r2kg.systems.gcn.parts import CHEXPERT, FindingGraph
from shards.tars.format import Manifest


class GcnConfig(System):
    """SentKG's classifier (Zhang et al., AAAI 2020): a film's findings as nodes of a graph, learned from reports."""

    build: ClassVar[str] = "r2kg.systems.gcn.model:Gcn"
    trains: ClassVar[tuple[str, ...]] = ("vision", "attention", "layers", "states", "head")
    task: ClassVar[Literal["report", "triples", "labels"]] = "labels"

    system: Literal["gcn"] = "gcn"
    """Names this part."""
    vision: Vision = Vision(name="densenet121", image_px=512, merge="separate")
    """Image encoder; 4 divides its width."""
    graph: FindingGraph = FindingGraph()
    """Its nodes and edges."""
    layers: int = Field(default=3, ge=1)
    """Graph convolutions."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """In each of them."""
    width: int = Field(default=512, ge=1)
    """Of the node states that findings are read from, and that a knowledge matrix is the mean of."""
    uncertain: Literal["present", "absent", "left_out"] = "present"
    """What a finding is learned as that a report is never sure of."""
    labels: tuple[str, ...] = tuple(CHEXPERT)
    """CheXpert's findings that predictions tell, by the nodes that stand for them (`r2kg.systems.gcn.targets`)."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability from which a finding is named."""

    @model_validator(mode="after")
    def _labels_and_films_can_be(self) -> Self:
        if not self.labels or len({*self.labels}) != len(self.labels) or not {*self.labels} <= CHEXPERT.keys():
            raise ValueError(f"labels={list(self.labels)} must name each finding once, of {', '.join(CHEXPERT)}")
        if self.vision.merge != "separate":
            raise ValueError(
                f"model.vision.merge={self.vision.merge}: the nodes are read off every film alone, which is separate"
            )
        return self

    def inputs(self, data: Data) -> Inputs:
        """Films, or the features of a frozen encoder; what is said of the reports, as targets."""
        return self.vision.inputs(data, training_sides=("annotations",))

    def prepare(self, run: Run, manifest: Manifest) -> Iterable[Artefact]:
        """Names and edges of the graph.

        Raises:
            DataError: no annotations, or of other splits than are read; no graph, one of another kind or other shards.
        """
        run.refuse_lacking("annotations", manifest)
        if self.graph.at:
            return ()
        from r2kg.systems.gcn.graph import artefact  # a second of spaCy, for a run that needs it

        return (artefact(self.graph.place or f"{run.data.shards}/finding-graph", run, manifest, into="model.graph.at"),)
