"""The knowledge matrix: the mean over training films, the names alone, what is kept and what is refused."""

import shutil
from functools import partial

import numpy as np
import pytest
import torch

from jobs.graph import matrix
from r2kg.config.needs import Inputs
from r2kg.graph.build.findings import adjacency, keywords_of, load_finding_graph, write_findings
from r2kg.graph.embed import embed
from r2kg.graph.extract.annotate import write_annotations
from r2kg.graph.extract.rules import Rules
from r2kg.graph.matrix.artefact import load_matrix, load_training_matrix
from r2kg.graph.matrix.make import named_encoder, of_films, of_names, write_matrix
from r2kg.modules.config import TextEncoder
from r2kg.recipes import find_recipe
from r2kg.rundir import saved_run
from r2kg.scoring.evaluate import evaluate, read_predictions
from r2kg.scoring.explain import node_encoder_of
from r2kg.scoring.generate import generate
from r2kg.training.launch import train
from shards.errors import ConfigError, DataError
from shards.sources.phantom.source import Phantom
from shards.stream.blocks import read_block
from shards.stream.index import Index
from shards.stream.order import sequential_blocks
from shards.tars.format import read_manifest
from shards.tars.shards import write_shards

SIDE, NODES = 64, 20
INPUTS = Inputs(image_px=SIDE, views=2)


class Strips:
    """Sees in node n the mean grey of a strip of the film, and its square."""

    def node_states(self, films):
        strips = films[:, :60].float().unflatten(1, (NODES, -1)).mean((2, 3)) / 255
        return torch.stack((strips, strips**2, torch.ones_like(strips)), -1)


@pytest.fixture(scope="module")
def graph(phantom_shards, tmp_path_factory):
    return write_findings(phantom_shards, tmp_path_factory.mktemp("findings") / "graph", "sentkg20")


def test_the_matrix_is_the_mean_over_training_films(phantom_shards, graph, tmp_path, capsys):
    manifest = read_manifest(phantom_shards)
    make = partial(of_films, phantom_shards, manifest, Strips, INPUTS, actors=1)
    index = Index.open(phantom_shards, "train")
    (block,) = sequential_blocks(len(index), 1, len(index))
    rows = read_block(index, block, SIDE, 2)
    wanted = Strips().node_states(torch.tensor(rows["images"][rows["view_mask"]])).double().mean(0).numpy()
    vectors, said = make()
    np.testing.assert_allclose(vectors, wanted, rtol=1e-6)
    assert said == {"films": int(rows["view_mask"].sum()), "unread": 0} and vectors.dtype == np.float64
    out = tmp_path / "knowledge"
    plain = write_matrix(tmp_path / "plain", graph, manifest, {}, make, centred=False)
    np.testing.assert_allclose(plain.vectors, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), rtol=1e-5)
    made = write_matrix(out, graph, manifest, {"classifier": {"of": 1}}, make)
    apart = wanted - wanted.mean(0)
    np.testing.assert_allclose(made.vectors, apart / np.linalg.norm(apart, axis=1, keepdims=True), rtol=1e-4, atol=1e-6)
    loaded = load_training_matrix(out, manifest)
    assert loaded.manifest == made.manifest and loaded.manifest.nodes == graph.names
    assert loaded.manifest.graph == graph.manifest.fingerprint and loaded.manifest.description["films"] == said["films"]
    again = write_matrix(out, graph, manifest, {"classifier": {"of": 1}}, partial(pytest.fail, "it is made already"))
    assert again.manifest == made.manifest and "is made already" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"made otherwise \(other classifier\): say --replace"):
        write_matrix(out, graph, manifest, {"classifier": {"of": 2}}, make)
    other = write_matrix(out, graph, manifest, {"classifier": {"of": 2}}, make, replace=True)
    assert (other.vectors == made.vectors).all() and load_matrix(out).manifest == other.manifest != made.manifest
    with pytest.raises(ConfigError, match=r"holds something else \(drops.jsonl\): a matrix needs a place of its own"):
        write_matrix(phantom_shards, graph, manifest, {}, make)


def test_test_studies_do_not_change_it_and_actors_neither(phantom_shards, tmp_path):
    """Shards whose val and test tars are those of other drawn studies."""
    write_shards(Phantom(studies=60, size=SIDE, seed=1), tmp_path / "other", size=SIDE, studies_per_shard=16)
    mixed = tmp_path / "mixed"
    shutil.copytree(phantom_shards, mixed)
    kept = [shard.name for shard in read_manifest(mixed).shards if shard.split != "train"]
    for name in kept:
        shutil.copy(tmp_path / "other" / name, mixed / name)
    manifest = read_manifest(phantom_shards)
    mine, theirs = (of_films(root, manifest, Strips, INPUTS, actors=1)[0] for root in (phantom_shards, mixed))
    assert kept and (mine == theirs).all()
    assert any((mixed / name).read_bytes() != (phantom_shards / name).read_bytes() for name in kept)
    assert (of_films(phantom_shards, manifest, Strips, INPUTS, actors=2)[0] == mine).all()
    for name in {shard.name for shard in manifest.shards} - {*kept}:
        (mixed / name).write_bytes(b"\0" * (mixed / name).stat().st_size)
    with pytest.raises(DataError, match="not one film of the training split"):
        of_films(mixed, manifest, Strips, INPUTS)


def test_names_are_mixed_with_their_neighbours_and_projected(graph):
    encoder = TextEncoder(source="package:all-minilm-l6-v2", pooling="mean")
    vectors, _ = of_names(graph, encoder, 384, 0)
    words = keywords_of(graph)
    mean = np.stack([torch.nn.functional.normalize(embed(own, encoder), dim=-1).mean(0).numpy() for own in words])
    joined = adjacency(graph) + 2 * np.eye(len(words))
    degree = joined.sum(1)
    for node in (0, 4, 16):
        wanted = sum(joined[node, at] / (degree[node] * degree[at]) ** 0.5 * mean[at] for at in range(len(words)))
        np.testing.assert_allclose(vectors[node], wanted, atol=1e-5)
    small, same, other = (of_names(graph, encoder, 48, seed)[0] for seed in (0, 0, 1))
    assert small.shape == (20, 48) and (small == same).all() and not np.allclose(small, other)
    unit = small / np.linalg.norm(small, axis=1, keepdims=True)
    assert (unit @ unit.T)[np.triu_indices(20, 1)].max() < 0.99  # each finding stays one of its own
    assert list(named_encoder(encoder, 48, 0)["text"]["weights"]) == ["model.safetensors"]


def test_what_does_not_belong_together_is_refused(phantom_shards, tmp_path):
    for given in ({}, {"classifier": tmp_path, "text": "x"}):
        with pytest.raises(ConfigError, match="by --classifier RUN .* or --text ENCODER: give one"):
            matrix(str(phantom_shards), **given)
    with pytest.raises(DataError, match="no graph at"):
        matrix(str(phantom_shards), text="x", graph=str(tmp_path))


@pytest.mark.slow
def test_from_films_to_a_matrix_of_what_the_classifier_saw(phantom_shards, tmp_path, capsys):
    side, place, manifest = tmp_path / "said", tmp_path / "graph", read_manifest(phantom_shards)
    write_annotations(phantom_shards, side, Rules(), ("train", "val"))
    write_findings(phantom_shards, place)
    run = find_recipe("gcn.tiny").change(
        {
            "data.shards": str(phantom_shards),
            "data.sides": {"annotations": str(side)},
            "root": str(tmp_path),
            "model.graph.place": str(place),
            "model.vision": {"name": "test_vit", "weights": "random", "image_px": SIDE, "merge": "separate"},
            "model.width": 24,
            "train.steps": 4,
            "train.cpus_per_worker": 0.4,
            "train.checkpoint_every": 4,
            "train.validation_studies": 6,
        }
    )
    assert train(run)["step"] == 4
    saved = saved_run(run.directory)
    predictions = generate(saved, phantom_shards, "test")
    lines = read_predictions(predictions)
    assert len(lines) == manifest.splits["test"].studies
    assert all(set(line["extra"]["probabilities"]) == set(run.model.labels) for line in lines)
    assert all(len(line["extra"]["findings"]) == 20 for line in lines)
    scores = evaluate(predictions)["protocols"]["labels"]
    assert 0 <= scores["score"]["auroc"] <= 1 and 0 <= scores["floor"]["f1"] <= 1 and scores["shuffled"]["auroc"] >= 0
    matrix(str(phantom_shards), classifier=run.directory, graph=str(place), out=str(tmp_path / "knowledge"))
    assert "40 nodes, 24 channels, mean over 90 training films" in capsys.readouterr().out
    made = load_training_matrix(tmp_path / "knowledge", manifest)
    assert made.vectors.shape == (40, 24) and made.manifest.nodes == load_finding_graph(place, manifest).names
    assert made.manifest.description["classifier"]["checkpoint"] == "step-00000004"
    write_findings(phantom_shards, tmp_path / "other", "kg40-lineage")
    with pytest.raises(DataError, match="was trained with finding graph .*, the one given is"):
        matrix(str(phantom_shards), classifier=run.directory, graph=str(tmp_path / "other"))
    with pytest.raises(DataError, match="was trained on shards .*, these have 000000000000"):
        node_encoder_of(run.directory, "best", manifest.model_copy(update={"fingerprint": "0" * 64}), "")
