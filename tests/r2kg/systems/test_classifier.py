"""The classifier: what is learned of labels, what is written, Grad-CAM, and a run from films to scores."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from r2kg.config.parts import Data, Decoding
from r2kg.config.run import Run
from r2kg.modules.config import Vision
from r2kg.recipes import find_recipe
from r2kg.rundir import saved_run
from r2kg.scoring.evaluate import evaluate, read_predictions
from r2kg.scoring.generate import generate
from r2kg.systems.classifier.config import ClassifierConfig
from r2kg.systems.classifier.model import Classifier
from r2kg.systems.contract import build_model, modules_of, to_bf16
from r2kg.training.artefacts import prepared
from r2kg.training.launch import train
from shards.errors import ConfigError, DataError
from shards.tars.format import read_manifest

NAMES = ("Cardiomegaly", "Edema", "Fracture")
SIDE = 64
LABELS = [{"Cardiomegaly": 1, "Edema": -1, "Fracture": 0}, {"Cardiomegaly": 0, "Edema": None}, {}]


def vision(**changes) -> Vision:
    return Vision(name="test_vit", weights="random", image_px=SIDE, **changes)


def small(**changes) -> Classifier:
    torch.manual_seed(0)
    return build_model(ClassifierConfig(vision=vision(), labels=NAMES, **({"hidden": (8,)} | changes)))


def rows(valid=(True, True, True)) -> dict:
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 256, (3, 2, SIDE, SIDE), dtype=np.uint8),
        "view_mask": np.array([[True, True], [True, False], [True, True]]) & np.array(valid)[:, None],
        "valid": np.array(valid),
        "record": np.array([json.dumps({"labels": x}) if ok else "" for x, ok in zip(LABELS, valid, strict=True)]),
    }


@pytest.mark.parametrize(
    ("uncertain", "unmentioned", "wanted"),
    [
        ("absent", "absent", [[1, 0, 0], [0, 0, 0], [None, None, None]]),
        ("present", "absent", [[1, 1, 0], [0, 0, 0], [None, None, None]]),
        ("left_out", "left_out", [[1, None, 0], [0, None, None], [None, None, None]]),
    ],
)
def test_what_labels_are_learned_as(uncertain, unmentioned, wanted):
    model = small(uncertain=uncertain, unmentioned=unmentioned)
    found = model.collate(rows())["target"].tolist()
    assert [[None if value != value else value for value in row] for row in found] == wanted


def test_the_loss_is_smoothed_cross_entropy_over_studies_and_invalid_rows_count_for_nothing():
    model = small(uncertain="left_out", smoothing=0.2).eval()
    batch = model.collate(rows())
    (term,) = model.loss(batch).values()
    logits = model.logits(batch)
    by_hand = sum(
        F.binary_cross_entropy_with_logits(logits[row, at], torch.tensor(0.9 if LABELS[row].get(name) == 1 else 0.1))
        for row in range(2)  # nobody has looked for findings in the third
        for at, name in enumerate(NAMES)
        if LABELS[row].get(name) != -1
    )
    torch.testing.assert_close(term.sum, by_hand)
    assert term.count == 2 and model.counts(batch) == {"labels": 2}
    alone, filled = model.collate(rows((True, False, False))), model.loss(model.collate(rows((True, False, False))))
    assert filled["labels"].count == 1 and bool((filled["labels"].sum < term.sum).all())
    filled["labels"].sum.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad) and len(alone["target"]) == 3


def test_what_is_written_names_the_probable_findings_with_all_probabilities():
    model = small(threshold=0.4).eval()
    written = model.generate(model.collate(rows()), Decoding())
    for row, probability in zip(written, model.logits(model.collate(rows())).sigmoid().tolist(), strict=True):
        told = row.extra["probabilities"]
        assert list(told) == list(NAMES) and [*told.values()] == pytest.approx(probability, abs=1e-6)
        assert row.text == ", ".join(name for name, p in told.items() if p >= 0.4) and not row.truncated
        assert row.tokens == len([name for name in row.text.split(", ") if name])


def test_grad_cam_is_what_autograd_gives_behind_the_encoder():
    model = small().eval()
    films = torch.tensor(rows()["images"][:, 0])
    maps, pooled = model.explain(films)
    tokens = model.vision.encode(films).detach().requires_grad_()
    torch.testing.assert_close(pooled, tokens.mean(1))
    for at, head in enumerate(model.head):
        slope = torch.autograd.grad(head(tokens.mean(1)).sigmoid().sum(), tokens)[0].mean(1)
        wanted = torch.einsum("npd,nd->np", tokens, slope).relu()
        torch.testing.assert_close(maps[:, at].flatten(1), wanted, rtol=1e-4, atol=1e-9)
    assert float(maps.max()) > 0
    with torch.inference_mode():
        torch.testing.assert_close(model.explain(films)[0], maps)


def test_in_bf16_the_loss_and_the_maps_are_about_those_of_fp32():
    model = small().eval()
    batch, films = model.collate(rows()), torch.tensor(rows()["images"][:, 0])
    (wanted,), (maps, _) = model.loss(batch).values(), model.explain(films)
    to_bf16(model)
    (term,), (found, _) = model.loss(batch).values(), model.explain(films)
    term.sum.backward()
    torch.testing.assert_close(term.sum, wanted.sum, rtol=0.05, atol=0.05)
    assert torch.corrcoef(torch.stack([found.flatten(), maps.flatten()]))[0, 1] > 0.95


def test_groups_name_every_trained_parameter_once():
    model = small()
    groups = model.trainable()
    assert set(groups) == {*ClassifierConfig.trains} == set(modules_of(model))
    names = [name for group in groups.values() for name, _ in group]
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)


def test_paper_size_is_swin_large_with_fourteen_heads():
    with torch.device("meta"):
        model = build_model(find_recipe("classifier.chexpert_plus").model)
    sizes = {name: sum(p.numel() for p in those) for name, those in modules_of(model).items()}
    head = 1536 * 384 + 384 + 384 * 48 + 48 + 48 * 48 + 48 + 48 + 1
    assert sizes["head"] == 14 * head and abs(sizes["vision"] / 195.0e6 - 1) < 0.005


def test_what_cannot_be_is_refused():
    for changes, words in (
        ({"labels": ()}, "must name each finding once"),
        ({"labels": ("Edema", "Edema")}, "must name each finding once"),
        ({"hidden": (0,)}, "must be widths from 1 on"),
        ({"vision": vision(merge="concatenate")}, "takes the mean of all tokens of a study"),
    ):
        with pytest.raises(ValueError, match=words):
            ClassifierConfig(**changes)
    assert ClassifierConfig(vision=vision()).inputs(Data(views=1)).text == ()


@pytest.fixture
def run(phantom_shards, tmp_path) -> Run:
    changes = {
        "data.shards": str(phantom_shards),
        "root": str(tmp_path),
        "model.vision": {"name": "test_vit", "weights": "random", "image_px": SIDE},
        "train.steps": 4,
        "train.cpus_per_worker": 0.4,
        "train.checkpoint_every": 4,
        "train.validation_studies": 6,
    }
    return find_recipe("classifier.tiny").change(changes)


def test_a_finding_that_no_training_study_has_is_refused_before_any_worker(run):
    manifest = read_manifest(run.data.shards)
    with pytest.raises(DataError, match="no training study of .* has Pneumonia: nothing of it could be learned"):
        prepared(run.change({"model.labels": ["Cardiomegaly", "Pneumonia"]}), manifest)
    with pytest.raises(ConfigError, match="cannot score the task 'labels'"):
        from r2kg.config.protocol import protocols_of

        protocols_of(("full-text",), "labels")


@pytest.mark.slow
def test_films_to_scores_of_labels(run):
    assert train(run)["step"] == 4
    path = generate(saved_run(run.directory), run.data.shards, "test")
    lines = read_predictions(path)
    assert len(lines) == read_manifest(run.data.shards).splits["test"].studies
    assert all(set(line["extra"]["probabilities"]) == set(run.model.labels) for line in lines)
    scores = evaluate(path)["protocols"]["labels"]
    assert 0 <= scores["score"]["auroc"] <= 1 and 0 <= scores["floor"]["f1"] <= 1 and scores["shuffled"]["auroc"] >= 0
