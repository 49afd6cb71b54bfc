"""The baseline without a model: whose report is copied, and that it is scored as any other."""

import json

import numpy as np
import pytest

from r2kg.scoring.controls.nearest import write_nearest
from r2kg.scoring.evaluate import evaluate, read_predictions
from shards.errors import ConfigError, DataError
from shards.stream.index import open_splits, read_studies
from shards.tars.format import read_manifest
from shards.tars.sides import write_side
from tests.r2kg.graph.test_film import WIDTH, encode


@pytest.fixture(scope="module")
def features(phantom_shards, tmp_path_factory):
    """As of an encoder that sees what is planted."""
    where, manifest = tmp_path_factory.mktemp("seen") / "features", read_manifest(phantom_shards)
    shape = {"views": 1, "patches": 1, "width": WIDTH}
    write_side(
        phantom_shards, where, "features", manifest, open_splits(phantom_shards, manifest), shape, lambda: encode
    )
    return where


def test_each_study_gets_the_report_of_the_nearest_training_study(phantom_shards, features, tmp_path):
    path = write_nearest(phantom_shards, features, tmp_path / "nearest")
    training = {study.key: study for study in read_studies(phantom_shards, "train")}
    lines = read_predictions(path)
    assert len(lines) == read_manifest(phantom_shards).splits["test"].studies
    for line in lines:
        copied = training[line["extra"]["copied_from"]]
        assert line["prediction"] == copied.target and copied.patient != line["id"]
    shared = [len(_present(line["labels"]) & _present(training[line["extra"]["copied_from"]].labels)) for line in lines]
    anybody = [len(_present(line["labels"]) & _present(next(iter(training.values())).labels)) for line in lines]
    assert np.mean(shared) > np.mean(anybody)
    scores = evaluate(path)["protocols"]["full-text"]
    assert scores["score"]["bleu4"] is not None and scores["shuffled"] and scores["floor"]
    assert json.loads((path.parent / "context.json").read_text())["unread"] == {}
    assert write_nearest(phantom_shards, features, tmp_path / "nearest").read_bytes() == path.read_bytes()


def _present(labels: dict) -> set[str]:
    return {name for name, value in labels.items() if value == 1}


def test_references_are_not_cut_by_tokens_that_it_does_not_have(phantom_shards, features, tmp_path):
    with pytest.raises(ConfigError, match="r2genkg-2025 cuts references by tokens of a language model"):
        write_nearest(phantom_shards, features, tmp_path, protocols=("r2genkg-2025",))
    assert not (tmp_path / "predictions").exists()


def test_a_training_study_does_not_copy_its_own(phantom_shards, features, tmp_path):
    lines = read_predictions(write_nearest(phantom_shards, features, tmp_path / "nearest", "train"))
    assert all(line["extra"]["copied_from"] != line["key"] for line in lines)
    with pytest.raises(DataError, match="split 'tset' of .* holds no study: its splits are"):
        write_nearest(phantom_shards, features, tmp_path / "nearest", "tset")
