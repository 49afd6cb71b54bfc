"""The knowledge module before a language model: words that ask the matrix, read at once and one by one."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from r2kg.config.parts import Decoding
from r2kg.modules.beams import CausalLmDecoder, Prompt
from r2kg.modules.config import Llm, TinyLm
from r2kg.modules.tiny_lm import write_tiny_lm
from r2kg.systems.cknet.config import CKNetLlmConfig
from r2kg.systems.cknet.knowledge import FILE, NAMES
from r2kg.systems.cknet.llm import KnowingEmbedding
from r2kg.systems.cknet.parts import Knowledge
from r2kg.systems.contract import build_model, stored
from tests.r2kg.modules.decoder_checks import check_cached_equals_uncached
from tests.r2kg.systems.test_cknet import REPORTS, config_of, stream_rows


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Directories of a language model and of a matrix."""
    lm, matrix = tmp_path_factory.mktemp("lm") / "tiny", tmp_path_factory.mktemp("matrix")
    write_tiny_lm(REPORTS * 4, lm, TinyLm(width=32, layers=2, heads=2, vocabulary=320, epochs=1), 0)
    vectors = torch.randn(6, 12, generator=torch.Generator().manual_seed(3))
    save_file({"vectors": F.normalize(vectors, dim=-1)}, matrix / FILE)
    (matrix / NAMES).write_text(json.dumps([f"finding {at}" for at in range(6)]))
    return lm, matrix


def tiny(made, tuning: str = "lora", **knowledge):
    lm, matrix = made
    torch.manual_seed(0)
    part = Knowledge(matrix_at=str(matrix), top_gamma=3, heads=4, **knowledge)
    vision = config_of((lm, matrix), None).vision
    return build_model(
        CKNetLlmConfig(vision=vision, knowledge=part, width=32, llm=Llm(source=str(lm), tuning=tuning), evidence=2)
    )


def test_words_begin_as_they_are_and_all_that_is_trained_learns(made):
    model = tiny(made).eval()
    batch, asking = model.collate(stream_rows()), model.writer.llm.get_input_embeddings()
    begun = model(batch)["report"].sum
    model.writer.llm.set_input_embeddings(asking.table)
    torch.testing.assert_close(model(batch)["report"].sum, begun)
    model.writer.llm.set_input_embeddings(asking)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for step in range(2):  # what lies behind U = 0, and before LoRA's B = 0, is reached in the second step
        optimizer.zero_grad()
        (term,) = model(batch).values()
        (term.sum / term.count).backward()
        if step == 0:
            optimizer.step()
    named = [(name, p) for group in model.trainable().values() for name, p in group]
    assert sorted(n for n, _ in named) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    without = [name for name, p in named if p.grad is None or not p.grad.abs().sum() > 0]
    assert not [name for name in without if not name.endswith("key.bias")]
    assert set(model.trainable()) == {*CKNetLlmConfig.trains} and "knowledge.matrix" not in stored(model)
    assert not any("table.weight" in name for name in stored(model)), "the language model's own words are frozen"


def test_what_is_to_come_changes_nothing(made):
    model = tiny(made).eval()
    torch.nn.init.normal_(model.writer.llm.get_input_embeddings().up.weight)
    batch = model.collate(stream_rows())
    soft, present, _ = model.soft_tokens(batch)
    prompt = model.writer.prompt(soft)
    mask = model.writer.prompt_mask(soft, present)

    def logits_of(ids):
        embedded = model.writer.llm.get_input_embeddings()(ids)
        both = torch.cat((mask, torch.ones_like(ids)), 1)
        places = (both.cumsum(1) - 1).clamp(min=0)
        return model.writer.llm(
            inputs_embeds=torch.cat((prompt, embedded), 1), attention_mask=both, position_ids=places
        ).logits[:, prompt.shape[1] :]

    ids = batch["input_ids"]
    other = ids.clone()
    other[:, 3:] = (other[:, 3:] + 5) % 300
    torch.testing.assert_close(logits_of(other)[:, :3], logits_of(ids)[:, :3], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits_of(other)[:, 3:], logits_of(ids)[:, 3:])


def test_cached_decoding_asks_the_matrix_too(made):
    model = tiny(made).eval()
    torch.nn.init.normal_(model.writer.llm.get_input_embeddings().up.weight, std=0.3)
    soft, present, _ = model.soft_tokens(model.collate(stream_rows()))
    batch = Prompt(model.writer.prompt(soft), model.writer.prompt_mask(soft, present))
    embed = model.writer.llm.get_input_embeddings()
    assert isinstance(embed, KnowingEmbedding)

    def uncached(row, written):
        embeds, mask = batch.embeds[row : row + 1], batch.mask[row : row + 1]
        if written:
            words = torch.tensor([written])
            embeds, mask = torch.cat((embeds, embed(words)), 1), torch.cat((mask, torch.ones_like(words)), 1)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        return model.writer.llm(inputs_embeds=embeds, attention_mask=mask, position_ids=places).logits[0, -1]

    check_cached_equals_uncached(CausalLmDecoder(model.writer.llm), batch, uncached)


def test_reports_are_written_with_the_nodes_that_were_taken(made):
    model = tiny(made)
    how = Decoding(beams=2, max_new_tokens=5)
    written = model.generate(model.collate(stream_rows()), how)
    assert all(len(one.extra["knowledge"]["film"]) == 2 for one in written) and model.training
    assert set(model.fingerprint()) == {"vision", "llm", "knowledge"}
