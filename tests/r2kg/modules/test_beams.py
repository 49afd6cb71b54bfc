"""Beam search against exhaustive enumeration and a plain reference; transformers' rule against its own definition."""

import itertools

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from r2kg.config.parts import Decoding
from r2kg.modules.beams import decode, write_hf, write_r2gen

WORDS = ["</s>", "the", "heart", "is", "not", "large"]
EOS = 0
WIDTH = 16


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


@pytest.fixture(scope="module")
def llm():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.6, eos_token_id=EOS, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def prompts(batch: int, length: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    embeds = torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(5))
    return embeds, torch.ones(batch, length, dtype=torch.long)


def r2gen(beams: int, longest: int = 8, shortest: int = 0) -> Decoding:
    return Decoding(length_rule="r2gen", beams=beams, max_new_tokens=longest, min_new_tokens=shortest)


@torch.no_grad()
def logp_next(llm, prompt: torch.Tensor, written: list[int]) -> torch.Tensor:
    """log p(word | prompt [L, D], written), computed from scratch without a cache."""
    embeds = torch.cat((prompt, llm.get_input_embeddings()(torch.tensor(written, dtype=torch.long))))
    return llm(inputs_embeds=embeds[None], use_cache=False).logits[0, -1].log_softmax(-1)


def summed(llm, prompt: torch.Tensor, written: list[int]) -> float:
    return sum(logp_next(llm, prompt, written[:i])[word].item() for i, word in enumerate(written))


def until_eos(row: torch.Tensor) -> list[int]:
    ids = row.tolist()
    return ids[: ids.index(EOS) + 1] if EOS in ids else ids


def plain_beam_search(llm, prompt: torch.Tensor, beams: int, longest: int) -> list[int]:
    """The search of the R2Gen family, one row, one list per hypothesis, no early end."""
    alive, aside = [([], 0.0)], []
    for step in range(longest):
        candidates = [
            ([*written, word], score + logp)
            for written, score in alive
            for word, logp in enumerate(logp_next(llm, prompt, written).tolist())
        ]
        alive = sorted(candidates, key=lambda c: -c[1])[:beams]
        for i, (written, score) in enumerate(alive):
            if written[-1] == EOS or step == longest - 1:
                aside.append((written, score))
                alive[i] = (written, score - 1000)
    best = max(aside, key=lambda c: c[1])[0]
    return best[: best.index(EOS) + 1] if EOS in best else best


def test_r2gen_rule_is_exact_when_the_beam_holds_everything(llm):
    embeds, mask = prompts(4)
    longest = 3
    rows = write_r2gen(llm, embeds, mask, r2gen(beams=len(WORDS) ** longest, longest=longest), EOS)
    words = [w for w in range(len(WORDS)) if w != EOS]
    ended = [[*body, EOS] for n in range(longest) for body in itertools.product(words, repeat=n)]
    cut = [list(body) for body in itertools.product(words, repeat=longest)]
    for prompt, row in zip(embeds, rows, strict=True):
        best = max(ended + cut, key=lambda ids: summed(llm, prompt, ids))
        assert until_eos(row) == best


@pytest.mark.parametrize("beams", [1, 2, 3, 6])
def test_r2gen_rule_equals_the_plain_search_without_cache(llm, beams):
    embeds, mask = prompts(12)
    rows = write_r2gen(llm, embeds, mask, r2gen(beams, longest=7), EOS)
    found = [until_eos(row) for row in rows]
    assert found == [plain_beam_search(llm, prompt, beams, 7) for prompt in embeds]
    if beams == 3:
        assert any(ids[-1] == EOS for ids in found) and any(ids[-1] != EOS for ids in found)


@pytest.mark.parametrize("rule", ["hf", "r2gen"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_row_is_the_same_alone_in_a_batch_and_behind_padding(llm, tokenizer, rule, beams):
    decoding = Decoding(length_rule=rule, beams=beams, max_new_tokens=8)
    embeds, mask = prompts(6)
    together = decode(llm, embeds, mask, decoding, tokenizer)
    alone = [decode(llm, embeds[[i]], mask[[i]], decoding, tokenizer)[0] for i in range(6)]
    assert together == alone
    padded = torch.cat((torch.full((6, 4, WIDTH), 9.0), embeds), dim=1)
    padding = torch.cat((torch.zeros(6, 4, dtype=torch.long), mask), dim=1)
    assert decode(llm, padded, padding, decoding, tokenizer) == together


def test_one_beam_is_greedy_under_both_rules(llm):
    embeds, mask = prompts(8)
    plain = Decoding(beams=1, max_new_tokens=6, repetition_penalty=1.0)
    hf = write_hf(llm, embeds, mask, plain, EOS)
    ours = write_r2gen(llm, embeds, mask, r2gen(1, longest=6), EOS)
    for prompt, a, b in zip(embeds, hf, ours, strict=True):
        written: list[int] = []
        while len(written) < 6 and EOS not in written:
            written.append(logp_next(llm, prompt, written).argmax().item())
        assert until_eos(a) == until_eos(b) == written


def test_hf_rule_divides_by_the_length_of_what_was_written(llm):
    """With every hypothesis on the beam, the answer is that of the definition: score / length**length_penalty."""
    embeds, mask = prompts(4)
    wide = Decoding(beams=36, max_new_tokens=2, length_penalty=1.5, repetition_penalty=1.0)
    words = [w for w in range(len(WORDS)) if w != EOS]
    choices = [[EOS], *([w, EOS] for w in words), *([v, w] for v in words for w in words)]
    for prompt, row in zip(embeds, write_hf(llm, embeds, mask, wide, EOS), strict=True):
        assert until_eos(row) == max(choices, key=lambda ids: summed(llm, prompt, ids) / len(ids) ** 1.5)


def test_hf_rule_penalises_words_that_were_written(llm, tokenizer):
    embeds, mask = prompts(8)
    free = decode(llm, embeds, mask, Decoding(beams=1, max_new_tokens=12, repetition_penalty=1.0), tokenizer)
    strict = decode(llm, embeds, mask, Decoding(beams=1, max_new_tokens=12, repetition_penalty=50.0), tokenizer)

    def repeats(reports):
        return sum(len(r.text.split()) - len(set(r.text.split())) for r in reports)

    assert repeats(strict) < repeats(free)


@pytest.mark.parametrize("rule", ["hf", "r2gen"])
@pytest.mark.parametrize("beams", [1, 3])
def test_lengths_are_kept_and_reported(llm, tokenizer, rule, beams):
    embeds, mask = prompts(10)
    decoding = Decoding(length_rule=rule, beams=beams, min_new_tokens=4, max_new_tokens=6)
    for report in decode(llm, embeds, mask, decoding, tokenizer):
        assert 4 <= report.tokens <= 6
        assert report.tokens == len(report.text.split())
        assert report.truncated == (report.tokens == 6)
    exact = Decoding(length_rule=rule, beams=beams, min_new_tokens=5, max_new_tokens=5)
    assert {(r.tokens, r.truncated) for r in decode(llm, embeds, mask, exact, tokenizer)} == {(5, True)}


@pytest.mark.parametrize("beams", [1, 3])
def test_the_models_own_generation_settings_have_no_say(llm, tokenizer, beams):
    embeds, mask = prompts(6)
    decoding = Decoding(beams=beams, max_new_tokens=8)
    expected = decode(llm, embeds, mask, decoding, tokenizer)
    own = llm.generation_config
    llm.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, top_p=0.5, no_repeat_ngram_size=1, suppress_tokens=[1, 2], eos_token_id=3
    )
    try:
        assert decode(llm, embeds, mask, decoding, tokenizer) == expected
        assert llm.generation_config.temperature == 5.0
    finally:
        llm.generation_config = own


def test_an_empty_report_has_no_tokens_and_is_not_truncated(llm, tokenizer):
    embeds, mask = prompts(64)
    reports = decode(llm, embeds, mask, r2gen(1), tokenizer)
    firsts = [logp_next(llm, prompt, []).argmax().item() for prompt in embeds]
    empty = [report for report, first in zip(reports, firsts, strict=True) if first == EOS]
    assert empty and set(empty) == {("", 0, False)}
