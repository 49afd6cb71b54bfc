"""The LM that stands in for a hub model: learns, is the same twice, keeps the text, appears at once."""

import json
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from r2kg.modules import tiny_lm
from r2kg.modules.config import TinyLm
from r2kg.modules.hub import weight_hashes
from r2kg.modules.llm.packing import IGNORED
from r2kg.modules.llm.writer import frame
from r2kg.modules.tiny_lm import CARD, write_tiny_lm
from shards.errors import DataError

PARTS = ("the heart is {} .", "no {} is seen .", "there is a small {} on the left .", "the lungs are {} .")
WORDS = ("normal", "large", "effusion", "nodule", "clear", "pneumothorax")
SMALL = TinyLm(width=32, layers=1, heads=2, vocabulary=400, epochs=2)


def reports(count: int = 60) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choice(PARTS).format(rng.choice(WORDS)) for _ in range(4)) for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_lm(reports(), tmp_path_factory.mktemp("lm") / "tiny", SMALL, seed=3)


def test_any_text_survives_the_tokenizer(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in [*reports(20), "unheard-of words , 3.5 cm ( l>r ) .", "œdème — ≥ 2"]:
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} & set(ids)
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert len(tokenizer) <= SMALL.vocabulary


def test_card_states_what_was_made(folder):
    card = json.loads((folder / CARD).read_text())
    assert card["reports"] == 60 and card["epochs"] == 2
    assert card["fingerprint"] == weight_hashes(folder) and len(card["fingerprint"]["model.safetensors"]) == 64
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_same_seed_same_weights_and_the_callers_random_state_is_left_alone(folder, tmp_path):
    before = torch.random.get_rng_state()
    again = write_tiny_lm(reports(), tmp_path / "again", SMALL, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    other = write_tiny_lm(reports(), tmp_path / "other", SMALL, seed=4)
    assert weight_hashes(again) == weight_hashes(folder) != weight_hashes(other)


def test_training_teaches_the_reports(tmp_path):
    config = SMALL.model_copy(update={"epochs": 80, "lr": 5e-3})
    folder = write_tiny_lm(reports(), tmp_path / "tiny", config, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    llm = AutoModelForCausalLM.from_pretrained(folder)

    def loss(text: str) -> float:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text).input_ids, tokenizer.eos_token_id]])
        return llm(input_ids=ids, labels=ids).loss.item()

    assert loss("the heart is large . no nodule is seen .") < 2.5
    assert loss("seen is nodule no . large is heart the .") > 4
    assert json.loads((folder / CARD).read_text())["final_loss"] < 1.5


def test_half_of_the_rows_are_framed_as_a_films_prompt_and_only_reports_are_targets():
    texts = reports(9)
    tokenizer = tiny_lm._train_tokenizer(texts, 400, "Describe the film.")
    reports_ids, random_state = tokenizer(texts, add_special_tokens=False).input_ids, torch.Generator().manual_seed(0)
    framed_by_epoch = []
    for number in (0, 1):
        framed, written = set(), []
        for input_ids, labels in tiny_lm._epoch_batches(
            reports_ids, tokenizer, "Describe the film.", number, random_state
        ):
            for ids, targets in zip(input_ids.tolist(), labels.tolist(), strict=True):
                text = tokenizer.decode([t for t in targets if t != IGNORED])
                assert text.endswith("</s>")
                assert ids[0] == tokenizer.bos_token_id
                written.append(text.removesuffix("</s>"))
                prompt = tokenizer.decode([i for i, t in zip(ids, targets, strict=True) if t == IGNORED])
                if "Human" in prompt:
                    before, after = frame("Describe the film.")
                    assert prompt.startswith(f"<s>{before}") and prompt.rstrip("<pad>").endswith(after)
                    framed.add(written[-1])
        assert sorted(written) == sorted(texts)
        framed_by_epoch.append(framed)
    assert framed_by_epoch[0] | framed_by_epoch[1] == set(texts)
    assert not framed_by_epoch[0] & framed_by_epoch[1]


def test_what_is_there_is_replaced(tmp_path):
    out = tmp_path / "tiny"
    out.mkdir()
    (out / "leftover.txt").write_text("old")
    write_tiny_lm(reports(5), out, SMALL, seed=0)
    assert not (out / "leftover.txt").exists() and (out / CARD).is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_no_text_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no target text"):
        write_tiny_lm(["", " "], tmp_path / "tiny", SMALL, seed=0)
    assert not list(tmp_path.iterdir())
