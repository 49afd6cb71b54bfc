"""What is made of drawn shards before a run with a graph."""

from functools import partial
from pathlib import Path

import pytest
import torch

from r2kg.graph.bank.make import BankSettings, write_bank
from r2kg.graph.build.reports import build_graph
from r2kg.graph.extract.annotate import write_annotations
from r2kg.graph.extract.rules import Rules
from r2kg.graph.film.write import write_film_subgraphs
from r2kg.modules.config import Vision
from r2kg.recipes.classifier import DRAWN
from r2kg.systems.classifier.config import ClassifierConfig
from r2kg.systems.classifier.model import Classifier
from shards.stream.index import open_splits
from shards.tars.format import read_manifest
from shards.tars.sides import write_side
from tests.r2kg.graph.test_film import WIDTH, encode


@pytest.fixture(scope="session")
def beside(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of the shards, parts of it for their films, and a bank. Tests must not change them."""
    place, manifest = tmp_path_factory.mktemp("beside"), read_manifest(phantom_shards)
    write_annotations(phantom_shards, place / "said", Rules())
    build_graph(phantom_shards, place / "said", place / "graph")
    shape = {"views": 1, "patches": 1, "width": WIDTH}
    indices = open_splits(phantom_shards, manifest)
    write_side(phantom_shards, place / "features", "features", manifest, indices, shape, lambda: encode)
    write_film_subgraphs(phantom_shards, place / "graph", place / "features", place / "said", place / "films")
    config = ClassifierConfig(vision=Vision(name="test_vit", weights="random", image_px=64), labels=DRAWN, hidden=())
    settings = BankSettings(per_label=6, least=0.5, width=64)
    write_bank(phantom_shards, place / "bank", DRAWN, 64, partial(untrained, config), {"seed": 0}, settings)
    return place


def untrained(config: ClassifierConfig) -> Classifier:
    """A classifier as it is drawn; where it looks is nobody's concern here."""
    torch.manual_seed(0)
    return Classifier(config).eval()
