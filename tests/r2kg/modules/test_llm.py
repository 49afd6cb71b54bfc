"""The report writer: targets, splice, loss, tuning modes, sources."""

import shutil

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from r2kg.config.parts import Decoding
from r2kg.modules.config import Llm, Lora, TinyLm
from r2kg.modules.llm.packing import IGNORED, shared_rows
from r2kg.modules.llm.writer import ReportWriter, frame
from r2kg.modules.tiny_lm import write_tiny_lm
from r2kg.systems.contract import to_bf16
from shards.errors import ConfigError

REPORTS = ["the heart is large .", "no effusion is seen . the lungs are clear .", "clear lungs ."]
INSTRUCTION = "Describe the film."
P = 5


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    config = TinyLm(width=32, layers=2, heads=2, vocabulary=320, epochs=1)
    return write_tiny_lm(REPORTS * 4, tmp_path_factory.mktemp("lm") / "tiny", config, 0, frame(INSTRUCTION))


def writer(source, **changes) -> ReportWriter:
    return ReportWriter(Llm(source=str(source), **changes), frame(INSTRUCTION))


def soft_tokens(model: ReportWriter, batch: int) -> torch.Tensor:
    return torch.randn(batch, P, model.width, generator=torch.Generator().manual_seed(2)).requires_grad_()


def test_targets_are_report_and_eos_right_padded(source):
    model = writer(source)
    input_ids, labels = model.tokenize([REPORTS[0], None, REPORTS[1]], max_tokens=100)
    tokenizer = model.tokenizer
    for row, report in ((0, REPORTS[0]), (2, REPORTS[1])):
        ids = labels[row][labels[row] != IGNORED]
        assert tokenizer.decode(ids[:-1]) == report and ids[-1] == tokenizer.eos_token_id
        assert torch.equal(input_ids[row, : len(ids)], ids)
        assert (labels[row, len(ids) :] == IGNORED).all()
        assert (input_ids[row, len(ids) :] == tokenizer.pad_token_id).all()
    assert (labels[1] == IGNORED).all()


def test_a_cut_report_has_no_eos_and_one_that_just_fits_has(source):
    model = writer(source)
    whole = len(model.tokenizer(REPORTS[1]).input_ids)
    assert model.tokenize([REPORTS[1]], whole + 1)[1][0, -1] == model.tokenizer.eos_token_id
    cut = model.tokenize([REPORTS[1]], whole)[1][0]
    assert cut.tolist() == model.tokenizer(REPORTS[1]).input_ids


def test_prompt_is_the_frame_around_the_soft_tokens(source):
    model = writer(source)
    soft = soft_tokens(model, 2)
    prompt = model.prompt(soft)
    words = model.tokenizer
    before = [words.bos_token_id, *words("Human: <Img>", add_special_tokens=False).input_ids]
    after = words(f"</Img> {INSTRUCTION} \nAssistant:", add_special_tokens=False).input_ids
    embed = model.llm.get_input_embeddings()
    for row in range(2):
        pieces = (embed(torch.tensor(before)), soft[row], embed(torch.tensor(after)))
        torch.testing.assert_close(prompt[row], torch.cat(pieces))


def test_loss_is_the_sum_over_target_tokens_of_each_row_alone(source):
    """Padding, other rows and invalid rows do not change it, and no prompt token counts."""
    model = writer(source)
    soft = soft_tokens(model, 3)
    input_ids, labels = model.tokenize([REPORTS[0], None, REPORTS[1]], 100)
    total, count = 0.0, 0
    for row, report in ((0, REPORTS[0]), (2, REPORTS[1])):
        ids = torch.tensor([*model.tokenizer(report).input_ids, model.tokenizer.eos_token_id])
        embeds = torch.cat((model.prompt(soft[[row]])[0], model.llm.get_input_embeddings()(ids)))[None]
        logits = model.llm(inputs_embeds=embeds).logits[0, -len(ids) - 1 : -1]
        total, count = total + F.cross_entropy(logits, ids, reduction="sum"), count + len(ids)
    torch.testing.assert_close(model.loss(soft, input_ids, labels), total)


def test_a_batch_without_targets_has_zero_loss_and_zero_gradients(source):
    model = writer(source)
    soft = soft_tokens(model, 2)
    loss = model.loss(soft, *model.tokenize([None, None], 100))
    loss.backward()
    assert loss == 0 and (soft.grad == 0).all()


@pytest.mark.parametrize("present", [[True, True, False, False, False], [False, True, False, True, True], [False] * P])
def test_absent_soft_tokens_are_as_if_they_had_never_been_there(source, present):
    """Beside a row that has all, in loss, gradients and both ways of decoding."""
    model, there = writer(source), torch.tensor([present, [True] * P])
    input_ids, labels = model.tokenize(REPORTS[:2], 100)
    soft, kept = soft_tokens(model, 2), there[0]
    loss = model.loss(soft, input_ids, labels, there)
    loss.backward()
    alone = model.loss(soft[:1, kept], *model.tokenize(REPORTS[:1], 100))
    other = model.loss(soft[1:], *model.tokenize(REPORTS[1:2], 100))
    torch.testing.assert_close(loss, alone + other)
    assert (soft.grad[0, ~kept] == 0).all() and (soft.grad[1].abs().sum(1) > 0).all()
    for rule in ("hf", "r2gen"):
        decoding = Decoding(length_rule=rule, beams=2, max_new_tokens=12, repetition_penalty=1.0)
        both = model.write(soft, decoding, there)
        assert both == model.write(soft[:1, kept], decoding) + model.write(soft[1:], decoding)


def test_where_every_soft_token_is_there_a_mask_changes_no_bit(source):
    model = writer(source)
    soft, (input_ids, labels) = soft_tokens(model, 3), model.tokenize(REPORTS, 100)
    everything = torch.ones(3, P, dtype=torch.bool)
    assert torch.equal(model.loss(soft, input_ids, labels), model.loss(soft, input_ids, labels, everything))


def test_the_lm_head_sees_no_place_but_those_that_predict(source):
    model = writer(source)
    input_ids, labels = model.tokenize(REPORTS, 100)
    model.loss(soft_tokens(model, 3), input_ids, labels)  # asks once whether studies can share rows
    seen = []
    model.llm.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[:2])))
    model.loss(soft_tokens(model, 3), input_ids, labels)
    assert seen == [(1, int((labels != IGNORED).sum()))]


def test_later_words_do_not_reach_earlier_predictions(source):
    model = writer(source)
    soft = soft_tokens(model, 1)
    input_ids, labels = model.tokenize([REPORTS[1]], 100)
    changed = input_ids.clone()
    changed[0, 4:] = 7
    whole, other = (model.target_logits(soft, ids, labels)[0] for ids in (input_ids, changed))
    torch.testing.assert_close(whole[:5], other[:5])
    assert not torch.allclose(whole[5:], other[5:])


def test_frozen_trains_soft_tokens_only(source):
    model = writer(source).train()
    soft = soft_tokens(model, 3)
    model.loss(soft, *model.tokenize(REPORTS, 100)).backward()
    assert soft.grad.abs().sum() > 0
    assert not [p for p in model.parameters() if p.requires_grad] and not model.llm.training


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_gradient_checkpointing_recomputes_and_changes_no_gradient(source, tuning):
    gradients, calls = [], []
    for on in (False, True):
        model = writer(source, tuning=tuning, packing=False).train()
        model.gradient_checkpointing(on)
        model.llm.model.layers[0].self_attn.register_forward_hook(lambda *_, on=on: calls.append(on))
        soft = soft_tokens(model, 3)
        model.loss(soft, *model.tokenize(REPORTS, 100)).backward()
        gradients.append(soft.grad)
    torch.testing.assert_close(*gradients)
    assert calls == [False, True, True]


def test_lora_takes_query_and_value_of_a_llama_and_every_linear_of_an_unlisted_model(source, tmp_path):
    model = writer(source, tuning="lora", lora=Lora(rank=2, alpha=2))
    names = {name.split(".lora_")[0].rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"q_proj", "v_proj"}

    unlisted = tmp_path / "unlisted"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    GraniteForCausalLM(GraniteConfig(vocab_size=320, **sizes, num_key_value_heads=2)).save_pretrained(unlisted)
    AutoTokenizer.from_pretrained(source).save_pretrained(unlisted)
    model = writer(unlisted, tuning="lora", lora=Lora(rank=2, alpha=2))
    names = {name.split(".lora_")[0].rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    "other",
    [
        GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=16, n_layer=1, n_head=2, n_positions=128)),
        BloomForCausalLM(BloomConfig(vocab_size=320, hidden_size=16, n_layer=1, n_head=2)),
    ],
    ids=["learned positions", "alibi"],
)
def test_another_architecture_without_bos_and_pad(source, tmp_path, other):
    other.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.pad_token = tokenizer.bos_token = None
    tokenizer.save_pretrained(tmp_path)
    model = writer(tmp_path).eval()
    assert model.tokenizer.pad_token_id is None and model.before[0] == model.tokenizer("Human").input_ids[0]
    soft = soft_tokens(model, 3)
    losses = [model.loss(soft[[i]], *model.tokenize([r], 100)) for i, r in enumerate(REPORTS)]
    together = model.loss(soft, *model.tokenize(REPORTS, 100))
    torch.testing.assert_close(together, torch.stack(losses).sum())
    assert len(model.write(soft, Decoding(length_rule="r2gen", max_new_tokens=5))) == 3


def test_embeddings_follow_the_models_dtype(source):
    model = writer(source).to(torch.bfloat16)
    soft = soft_tokens(model, 3)
    assert model.prompt(soft).dtype == torch.bfloat16
    loss = model.loss(soft, *model.tokenize(REPORTS, 100))
    assert loss.dtype == torch.float32 and loss.isfinite()


def test_fingerprint_names_source_and_content(source, tmp_path):
    model = writer(source)
    known = model.fingerprint()
    assert known["source"] == str(source) and known["revision"] is None
    shutil.copytree(source, tmp_path / "copy")
    assert writer(tmp_path / "copy").fingerprint()["sha256"] == known["sha256"] != {}
    changed = writer(source)
    with torch.no_grad():
        changed.llm.lm_head.weight[0, 0] += 1
    changed.llm.save_pretrained(tmp_path / "copy")
    assert writer(tmp_path / "copy").fingerprint()["sha256"] != known["sha256"]


def test_sources_that_cannot_be_had_say_how_to_point_at_a_local_one(source, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("no-such-owner/no-such-model", "no such model"):
        with pytest.raises(ConfigError, match=rf"'{name}'.*set model.llm.source to a local directory"):
            writer(name)
    bare = tmp_path / "bare"
    shutil.copytree(source, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ConfigError, match="language model of model.llm.source"):
        writer(bare)
    torch.save(writer(source).llm.state_dict(), bare / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="language model of model.llm.source"):
        writer(bare)
    with pytest.raises(ConfigError, match="write_tiny_lm"):
        writer("tiny")


def test_a_tokenizer_without_eos_is_refused(source, tmp_path):
    shutil.copytree(source, tmp_path / "copy")
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "copy")
    with pytest.raises(ConfigError, match="no EOS token"):
        writer(tmp_path / "copy")


def test_rotary_tables_keep_their_precision_in_bf16(source):
    model = writer(source)
    before = {name: buffer.clone() for name, buffer in model.llm.named_buffers() if buffer.is_floating_point()}
    to_bf16(model)
    after = dict(model.llm.named_buffers())
    assert before and all(torch.equal(after[name], value) for name, value in before.items())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


LONG = ["clear .", REPORTS[1] * 4, REPORTS[0], "the heart .", REPORTS[0] * 2, "a .", REPORTS[1]]


@pytest.mark.parametrize("kind", ["llama", "grouped queries", "learned positions", "alibi"])
def test_studies_that_share_rows_are_read_as_if_alone(source, tmp_path, kind):
    """Loss and gradients of each equal those of rows of its own; none sees another's tokens."""
    small = {"vocab_size": 320, "num_hidden_layers": 2, "num_attention_heads": 4}
    other = {
        "grouped queries": lambda: Qwen2ForCausalLM(
            Qwen2Config(**small, hidden_size=16, intermediate_size=32, num_key_value_heads=2)
        ),
        "learned positions": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=16, n_layer=2, n_head=2)),
        "alibi": lambda: BloomForCausalLM(BloomConfig(vocab_size=320, hidden_size=16, n_layer=2, n_head=2)),
    }.get(kind)
    if other:
        other().save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path)
    where = tmp_path if other else source
    shared, apart = writer(where).train(), writer(where, packing=False).train()
    soft, there = soft_tokens(shared, len(LONG)), torch.ones(len(LONG), P, dtype=torch.bool)
    there[1, 2:] = False
    losses, gradients = [], []
    for model in (shared, apart):
        asked = model.ask([text[::-1] for text in LONG], 30)
        loss = model.loss(soft, *model.tokenize([*LONG[:-1], None], 100), there, asked)
        losses.append(loss)
        gradients.append(torch.autograd.grad(loss, soft)[0])
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)
    assert shared._apart is (kind != "alibi") and apart._apart is None
    assert shared.read[0] == apart.read[0]
    padding = [model.read[1] / sum(model.read) for model in (shared, apart)]
    assert padding[1] > 0.4 and (padding[0] < padding[1] / 2 if kind != "alibi" else padding[0] == padding[1])


def test_what_a_study_is_asked_stands_in_its_prompt_without_padding(source):
    """Longer texts beside it change neither its loss nor what is written of it."""
    model = ReportWriter(Llm(source=str(source)), ("", " Name: ", " So: ")).eval()
    texts, soft = ["clear lungs .", REPORTS[1] * 3], soft_tokens(model, 2)
    asked, targets = model.ask(texts, 200), model.tokenize(REPORTS[:2], 100)
    embed, words = model.llm.get_input_embeddings(), model.tokenizer
    ids = [words.bos_token_id], [*words(" Name: ").input_ids, *words(texts[0]).input_ids, *words(" So: ").input_ids]
    pieces = [embed(torch.tensor(ids[0])), soft[0], embed(torch.tensor(ids[1]))]
    prompt, mask = model.prompt(soft, asked)[0], model.prompt_mask(soft, asked=asked)[0].bool()
    torch.testing.assert_close(prompt[mask], torch.cat(pieces))
    alone = [
        model.loss(soft[[i]], *model.tokenize([REPORTS[i]], 100), asked=model.ask([texts[i]], 200)) for i in (0, 1)
    ]
    torch.testing.assert_close(model.loss(soft, *targets, asked=asked), sum(alone))
    for rule in ("hf", "r2gen"):
        decoding = Decoding(length_rule=rule, beams=2, max_new_tokens=12, repetition_penalty=1.0)
        both = model.write(soft, decoding, asked=asked)
        each = [model.write(soft[[i]], decoding, asked=model.ask([texts[i]], 200))[0] for i in (0, 1)]
        assert both == each


def test_rows_are_those_of_least_work_whatever_the_order():
    lengths = [100, 10, 50, 50, 90, 8]
    rows = shared_rows(lengths, 128)
    assert sorted(study for row in rows for study in row) == [*range(6)]
    filled = [sum(lengths[study] for study in row) for row in rows]
    assert max(filled) * len(rows) < 1.2 * sum(lengths) < 0.7 * max(lengths) * 6
    assert shared_rows(lengths, 128, one=True) == [[0, 4, 2, 3, 1, 5]]
    assert shared_rows([70, 60, 66], 32) is None and shared_rows([], 32) is None
    for seed in range(20):  # a wide row costs attention, and yet less than a tenth is padding
        lengths = np.clip(np.random.default_rng(seed).lognormal(4.5, 0.7, 16).astype(int), 20, 400).tolist()
        rows = shared_rows(lengths, 32)
        assert rows and sum(lengths) >= 0.9 * len(rows) * max(sum(lengths[at] for at in row) for row in rows)
