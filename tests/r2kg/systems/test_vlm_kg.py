"""VLM-KG: sizes of the mapper, what is read, what is learned, what is written."""

import json

import numpy as np
import pytest
import torch

from r2kg.config.parts import Data, Decoding
from r2kg.modules.config import Llm, TinyLm, Vision
from r2kg.modules.tiny_lm import write_tiny_lm
from r2kg.recipes import find_recipe
from r2kg.systems.contract import build_model, fill, stored
from r2kg.systems.vlm_kg.config import INSTRUCTION, Projector, VlmKgConfig
from r2kg.systems.vlm_kg.mapper import Mapper
from r2kg.systems.vlm_kg.parts import Vector
from shards.errors import ConfigError
from shards.graphs.text import triples_text

REPORTS = ["the heart is large .", "no effusion is seen . the lungs are clear . " * 3, "clear lungs ."]
TRIPLES = [[["large", "modify", "heart"]], [["clear", "modify", "lungs"], ["effusion", "located_at", "pleural"]], []]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    texts = [*REPORTS, *map(triples_text, TRIPLES)] * 4
    config = TinyLm(width=32, layers=2, heads=2, vocabulary=400, epochs=1)
    return write_tiny_lm(texts, tmp_path_factory.mktemp("lm") / "tiny", config, 0, INSTRUCTION)


def tiny(lm, **changes):
    torch.manual_seed(0)
    vision = Vision(name="test_vit", weights="random", image_px=64, merge="separate")
    small = {
        "vision": vision,
        "vector": Vector(projection=16),
        "mapper": Projector(clip_length=3, prefix_length=5, layers=2, heads=4),
        "llm": Llm(source=str(lm), tuning="full"),
    }
    return build_model(VlmKgConfig(**{**small, **changes}))


def stream_rows(**columns):
    """Three studies and a row that fills: of one film, of two, of none."""
    films = np.random.default_rng(0).integers(0, 255, (4, 2, 64, 64), np.uint8)
    told = zip(REPORTS, TRIPLES, strict=True)
    records = [json.dumps({"target": report, "triples": triples}) for report, triples in told]
    return {
        "images": films,
        "view_mask": np.array([[True, False], [True, True], [False, False], [False, False]]),
        "record": np.array([*records, ""], object),
        "valid": np.array([True, True, True, False]),
        "index": np.array([0, 1, 2, -1]),
    } | columns


@pytest.mark.parametrize(("k", "n", "parameters"), [(64, 64, 100_859_904), (128, 64, 134_479_872)])
def test_the_mapper_has_the_papers_size(k, n, parameters):
    with torch.device("meta"):
        mapper = Mapper(Projector(clip_length=k, prefix_length=n), 512, 1024)
        assert sum(p.numel() for p in mapper.parameters()) == parameters
        assert mapper(torch.zeros(2, 512)).shape == (2, n, 1024)


def test_prefix_tokens_alone_leave_the_mapper_and_each_has_asked_the_film():
    torch.manual_seed(0)
    mapper = Mapper(Projector(clip_length=3, prefix_length=5, layers=2, heads=4), 16, 32)
    one, other = mapper(torch.zeros(1, 16)), mapper(torch.ones(1, 16))
    assert one.shape == (1, 5, 32) and ((one - other).abs().sum(-1) > 1e-3).all()
    normed = Mapper(Projector(clip_length=3, prefix_length=5, layers=1, heads=4, output_norm=True), 16, 32)
    torch.testing.assert_close(normed(torch.ones(1, 16)).mean(-1), torch.zeros(1, 5), atol=1e-5, rtol=0)


def test_the_loss_is_of_the_triples_alone_and_all_parts_learn(lm):
    model = tiny(lm).train()
    batch = model.collate(stream_rows())
    tokenizer = model.writer.tokenizer
    told = [tokenizer.decode(row[row >= 0][:-1]) for row in batch["labels"][:3]]
    assert told == ["large , modify , heart", "clear , modify , lungs ; effusion , located_at , pleural", "none"]
    assert (batch["labels"][3] == -100).all() and model.counts(batch)["triples"] == (batch["labels"] >= 0).sum()
    (term,) = model(batch).values()
    (term.sum / term.count).backward()
    named = [(name, p) for group in model.trainable().values() for name, p in group]
    assert sorted(n for n, _ in named) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    assert set(model.trainable()) == {*VlmKgConfig.trains}
    assert not [name for name, p in named if p.grad is None or not p.grad.abs().sum() > 0]


def test_each_study_is_read_as_if_alone_and_one_without_films_has_no_soft_tokens(lm):
    model = tiny(lm).eval()
    rows = stream_rows()
    whole = model(model.collate(rows))["triples"].sum
    alone = [model(model.collate({k: v[[i]] for k, v in rows.items()}))["triples"].sum for i in range(4)]
    torch.testing.assert_close(whole, sum(alone))
    text_only = tiny(lm, vision=None).eval()
    fill(text_only, {f"writer.{n}": (n, p) for n, p in model.writer.named_parameters()}, "the other")
    blind = text_only(text_only.collate({k: v[[2]] for k, v in rows.items()}))["triples"].sum
    torch.testing.assert_close(alone[2], blind)


def test_triples_are_written_of_report_and_film_of_either_and_of_what_a_side_says(lm):
    how = Decoding(beams=2, max_new_tokens=6)
    for changes in ({}, {"report": False}, {"vision": None}):
        model = tiny(lm, **changes)
        batch = model.collate(stream_rows())
        assert (batch["asked"] is None) == ("report" in changes) and ("images" in batch) == ("vision" not in changes)
        written = model.generate(batch, how)
        assert len(written) == 4 and model.training and all(one.tokens <= 6 for one in written)
    side = np.array([json.dumps([["heart", "modify", "large"]]).encode(), b"", b"[]", b""], object)
    labels = tiny(lm, vision=None).collate(stream_rows(triples=side))["labels"]
    tokenizer = model.writer.tokenizer
    assert tokenizer.decode(labels[0][labels[0] >= 0][:-1]) == "heart , modify , large"
    assert (labels[1] == -100).all() and tokenizer.decode(labels[2][labels[2] >= 0][:-1]) == "none"


def test_a_study_whose_report_or_triples_are_cut_is_counted(lm):
    records = [
        json.dumps({"target": report, "triples": triples}) for report, triples in zip(REPORTS, TRIPLES, strict=True)
    ]
    assert tiny(lm, vision=None).cut(records) == [False] * 3
    assert tiny(lm, vision=None, report_tokens=8).cut(records) == [False, True, False], "the long report"
    assert tiny(lm, report_tokens=8, report=False).cut(records) == [False] * 3, "is not read"
    assert tiny(lm, vision=None, answer_tokens=7).cut(records) == [False, True, False], "the long answer"


def test_stage_two_begins_with_the_language_model_of_stage_one_and_refuses_anothers(lm, tmp_path):
    first, second = tiny(lm, vision=None), tiny(lm, llm=Llm(source=str(lm), tuning="frozen"))
    with torch.no_grad():
        first.writer.llm.lm_head.weight.add_(1)
    given = {name: (name, tensor) for name, tensor in stored(first).items()}
    fill(second, given, "stage-1@best")
    torch.testing.assert_close(second.writer.llm.lm_head.weight, first.writer.llm.lm_head.weight)
    assert set(second.trainable()) == {"vision", "vector", "mapper"} and not [
        n for n in stored(second) if "writer" in n
    ]
    wider = write_tiny_lm(REPORTS * 4, tmp_path / "wider", TinyLm(width=48, layers=2, vocabulary=300, epochs=1), 0)
    with pytest.raises(ConfigError, match=r"tensors of train.init_from=stage-1@best do not fit this model"):
        fill(tiny(wider), given, "stage-1@best")


def test_what_cannot_be_is_refused():
    for changes, told in {
        ("model.mapper.prefix_length", 0): "prefix_length",
        ("model.mapper.clip_length", 0): "clip_length",
        ("model.mapper.layers", 0): "layers",
    }.items():
        with pytest.raises(ConfigError, match=told):
            find_recipe("vlm_kg.iu").change(dict([changes]))
    with pytest.raises(ConfigError, match=r"model.vision=null and model.report=false"):
        find_recipe("vlm_kg.llm_iu").change({"model.report": False})


def test_heads_that_do_not_divide_the_language_model_are_refused(lm):
    with pytest.raises(ConfigError, match=r"model.mapper.heads=5 do not divide the 32 channels"):
        tiny(lm, mapper=Projector(heads=5))


def test_what_is_read_is_what_the_recipe_says():
    data = Data(shards="films")
    stage1, stage2 = (find_recipe(f"vlm_kg.{name}").model.inputs(data) for name in ("llm_tiny", "tiny"))
    assert (stage1.image_px, stage1.text, stage1.training_sides) == (None, ("report",), ())
    assert (stage2.image_px, stage2.text, stage2.merge) == (112, ("report",), "separate")
    silver = find_recipe("vlm_kg.iu").model.inputs(data)
    assert silver.training_sides == ("triples",) and silver.reference == "triples" and not silver.sides
