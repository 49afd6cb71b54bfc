"""The whole model: the paper's parameter counts, what is trained, what a batch is, loss and reports."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig

from r2kg.config.parts import Data, Decoding
from r2kg.config.run import SYSTEMS
from r2kg.modules.config import Llm, TinyLm, Vision
from r2kg.modules.tiny_lm import write_tiny_lm
from r2kg.systems.contract import build_model, load_stored
from r2kg.systems.r2genkg.config import R2GenKGConfig
from r2kg.systems.r2genkg.model import R2GenKG
from shards.errors import CheckpointError, ConfigError

REPORTS = ["the heart is large .", "no effusion is seen . the lungs are clear .", "clear lungs ."]
SIDE = 56
SWIN = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "drop_path_rate": 0.0}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    config = TinyLm(width=32, layers=2, heads=2, vocabulary=320, epochs=1)
    return write_tiny_lm(REPORTS * 4, tmp_path_factory.mktemp("lm") / "tiny", config, 0)


@pytest.fixture(scope="module")
def llama_2_7b(source, tmp_path_factory):
    """Shapes of Llama-2-7b, and any tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32).save_pretrained(
        folder
    )
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def tiny(source, tuning: str = "full", llm: str = "frozen", merge: str = "average", **changes) -> R2GenKG:
    torch.manual_seed(0)
    vision = Vision(
        name="swin_tiny_patch4_window7_224", weights="random", options=SWIN, image_px=SIDE, tuning=tuning, merge=merge
    )
    return build_model(R2GenKGConfig(vision=vision, llm=Llm(source=str(source), tuning=llm), **changes))


def stream_rows(valid: tuple[bool, ...] = (True, True, True)) -> dict:
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 256, (3, 2, SIDE, SIDE), dtype=np.uint8),
        "view_mask": np.array([[True, True], [True, False], [True, True]]) & np.array(valid)[:, None],
        "valid": np.array(valid),
        "index": np.arange(3),
        "step": np.zeros(3, dtype=np.int64),
        "record": np.array([json.dumps({"target": t}) if v else "" for t, v in zip(REPORTS, valid, strict=True)]),
    }


def count(model: R2GenKG) -> int:
    return sum(p.numel() for group in model.trainable().values() for _, p in group)


def loss_of(model, batch):
    """Mean over the batch's target tokens, as the engine makes it of the one term."""
    (term,) = model(batch).values()
    return term.weight * term.sum / max(1, term.count)


def test_paper_size_trains_the_papers_number_of_parameters(llama_2_7b):
    """R2GenGPT: shallow is projection and norm, delta about 5 M (0.07 %), deep adds Swin-B."""
    projection = 4096 * 1024 + 4096 + 2 * 4096
    expected = {"frozen": projection, "lora": 770_048 + projection, "full": 86_743_224 + projection}
    for tuning, number in expected.items():
        with torch.device("meta"):
            model = build_model(R2GenKGConfig(vision=Vision(tuning=tuning), llm=Llm(source=str(llama_2_7b))))
        assert count(model) == number
        everything = sum(p.numel() for p in model.parameters())
        assert everything - number > 6.7e9
    assert expected["lora"] == 4_976_640


def test_groups_name_every_trained_parameter_once(source):
    model = tiny(source, llm="lora")
    groups = model.trainable()
    assert set(groups) == {"vision", "projection", "llm"} == {*R2GenKGConfig.trains} - {"graph", "queries"}
    assert {name for name, _ in groups["projection"]} == {
        "projection.weight",
        "projection.bias",
        "norm.weight",
        "norm.bias",
    }
    names = [name for group in groups.values() for name, _ in group]
    assert sorted(names) == sorted(n for n, p in model.named_parameters() if p.requires_grad) and len(names) == len(
        set(names)
    )
    assert set(tiny(source, tuning="frozen").trainable()) == {"projection"}


def test_soft_tokens_are_the_projected_and_normalised_film_tokens(source):
    model = tiny(source).eval()
    batch = model.collate(stream_rows())
    soft, present = model.soft_tokens(batch)
    tokens, _ = model.vision(batch["images"], batch["view_mask"])
    assert present is None
    assert soft.shape == (3, model.vision.patches, 32)
    torch.testing.assert_close(soft, model.norm(model.projection(tokens)))


def test_concatenated_films_double_the_prompt_and_absent_ones_change_nothing(source):
    model = tiny(source, merge="concatenate").eval()
    batch = model.collate(stream_rows())
    soft, present = model.soft_tokens(batch)
    patches = model.vision.patches
    assert soft.shape == (3, 2 * patches, 32) and present.sum(1).tolist() == [2 * patches, patches, 2 * patches]
    other = {**batch, "images": batch["images"].clone()}
    other["images"][1, 1] = 255 - other["images"][1, 1]  # where there is no film
    assert torch.equal(loss_of(model, batch), loss_of(model, other))
    other["images"][0, 1] = 255 - other["images"][0, 1]
    assert not torch.allclose(loss_of(model, batch), loss_of(model, other), rtol=1e-6)
    features = model.vision.encode(batch["images"].flatten(0, 1)).view(3, 2, patches, -1)
    given = {key: value for key, value in batch.items() if key != "images"} | {"features": features}
    torch.testing.assert_close(loss_of(model, given), loss_of(model, batch))
    assert R2GenKGConfig(vision=Vision(merge="concatenate")).inputs(Data(views=2)).merge == "concatenate"
    with pytest.raises(ValueError, match="vision.merge=separate is for .* choose average or concatenate"):
        R2GenKGConfig(vision=Vision(merge="separate"))


def test_collate_takes_the_cleaned_target_and_keeps_invalid_rows_without_one(source):
    model = tiny(source)
    batch = model.collate(stream_rows((True, False, True)))
    assert batch["images"].dtype == torch.uint8 and batch["view_mask"].dtype == torch.bool
    decoded = [model.writer.tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert decoded == [f"{REPORTS[0]}</s>", "", f"{REPORTS[2]}</s>"]
    rows = stream_rows()
    rows["images"] = rows["images"][..., :28, :28]
    with pytest.raises(ConfigError, match="films are 28 px, model.vision.image_px=56"):
        model.collate(rows)


def test_report_tokens_cuts_the_target(source):
    model = tiny(source, report_tokens=4)
    assert model.collate(stream_rows())["labels"].shape == (3, 4)


def test_characters_that_so_many_tokens_spell(source):
    model = tiny(source)
    tokenizer = model.writer.tokenizer
    for tokens in (1, 4, 9, 100):
        for text, end in zip(REPORTS, model.fitting(REPORTS, tokens), strict=True):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            assert text[:end].strip() == tokenizer.decode(ids[:tokens]).strip() and (end == len(text)) == (
                len(ids) <= tokens
            )
    assert model.fitting([], 4) == []


def test_invalid_rows_contribute_nothing(source):
    model = tiny(source)
    with_invalid = loss_of(model, model.collate(stream_rows((True, False, True))))
    rows = {key: value[[0, 2]] for key, value in stream_rows().items()}
    torch.testing.assert_close(with_invalid, loss_of(model, model.collate(rows)))


def test_micro_batches_add_up_to_the_global_token_mean(source):
    """Gradients of halves, each weighted by its tokens, are those of the whole."""
    model = tiny(source)
    rows = stream_rows()

    def gradients(parts: list[slice]) -> list[torch.Tensor]:
        model.zero_grad()
        batches = [model.collate({key: value[part] for key, value in rows.items()}) for part in parts]
        counts = [(batch["labels"] != -100).sum() for batch in batches]
        for batch in batches:
            (model(batch)["report"].sum / sum(counts)).backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    torch.testing.assert_close(gradients([slice(0, 1), slice(1, 3)]), gradients([slice(0, 3)]), rtol=1e-4, atol=1e-6)


def test_training_learns_three_reports_from_their_films(source):
    model = tiny(source, llm="full").train()
    batch = model.collate(stream_rows())
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(100):
        optimiser.zero_grad()
        loss_of(model, batch).backward()
        optimiser.step()
    assert loss_of(model, batch) < 0.05
    for rule in ("hf", "r2gen"):
        decoding = Decoding(length_rule=rule, repetition_penalty=1.0, length_penalty=0.0, max_new_tokens=60)
        assert [report.text for report in model.generate(batch, decoding)] == REPORTS
    drawn = Decoding(sample=True, beams=1, repetition_penalty=1.0, temperature=3.0, max_new_tokens=20)
    texts = [report.text for report in model.generate(batch, drawn)]
    turned = {key: value[[2, 0, 1]] for key, value in stream_rows().items()}
    assert texts != REPORTS
    assert [report.text for report in model.generate(model.collate(turned), drawn)] == [texts[i] for i in (2, 0, 1)]
    assert model.training


def test_films_of_another_study_change_the_loss(source):
    model = tiny(source).eval()
    batch = model.collate(stream_rows())
    swapped = {**batch, "images": batch["images"].flip(0)}
    assert not torch.allclose(loss_of(model, batch), loss_of(model, swapped), rtol=1e-6)


def stored(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for group in model.trainable().values() for name, value in group}


@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_stored_state_is_what_is_trained_and_comes_back(source, tuning):
    model, other = tiny(source, tuning=tuning), tiny(source, tuning=tuning)
    state = stored(model)
    assert not [name for name in state if name.startswith("writer.")]
    assert bool([name for name in state if name.startswith("vision.")]) == (tuning != "frozen")
    changed = {name: value + 1 for name, value in state.items()}
    load_stored(other, changed)
    torch.testing.assert_close(stored(other), changed)
    changed.pop("norm.bias")
    with pytest.raises(CheckpointError, match="1 missing .*norm.bias"):
        load_stored(other, changed)
    with pytest.raises(CheckpointError, match=r"norm.bias is stored as \[3\], the model has \[32\]"):
        load_stored(other, {**changed, "norm.bias": torch.zeros(3)})


def test_bf16_trains_and_writes(source):
    model = tiny(source).to(torch.bfloat16)
    batch = model.collate(stream_rows())
    loss = loss_of(model, batch)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(
        p.grad.dtype == torch.bfloat16 and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad
    )
    assert len(model.generate(batch, Decoding(max_new_tokens=4))) == 3


def test_gradient_checkpointing_changes_no_gradient(source):
    gradients = []
    for on in (False, True):
        model = tiny(source).train()
        model.gradient_checkpointing(on)
        loss_of(model, model.collate(stream_rows())).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(*gradients)


def test_systems_are_named_and_unknown_ones_refused(source):
    assert isinstance(tiny(source), R2GenKG) and {*SYSTEMS} >= {"r2genkg", "cknet", "vlm_kg"}


def test_fingerprint_names_what_a_checkpoint_leaves_out(source):
    known = tiny(source, tuning="frozen").fingerprint()
    assert known["llm"]["source"] == str(source) and known["llm"]["sha256"]
    assert known["vision"]["name"] == "swin_tiny_patch4_window7_224" and len(known["vision"]["sha256"]) == 64
    assert tiny(source, tuning="full").fingerprint() == known | {"vision": known["vision"] | {"sha256": ""}}
