"""Beam search against exhaustive enumeration and a plain reference; the hf rule and sampling against definitions."""

import itertools

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from torch.nn import functional as F
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from r2kg.config.parts import Decoding
from r2kg.modules.beams import CausalLmDecoder, Prompt, decode, write_hf, write_r2gen, write_sampled
from shards.errors import ConfigError
from tests.r2kg.modules.decoder_checks import check_cached_equals_uncached

WORDS = ["</s>", "the", "heart", "is", "not", "large"]
EOS = 0
WIDTH = 16


class Reader(nn.Module):
    """A decoder that is no language model of transformers: each token attends to a film's memory and to those before.

    A batch is a memory [B, M, D]; the cache is it and the tokens so far, keyed as nothing of transformers is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(len(WORDS) + 1, WIDTH), nn.Embedding(32, WIDTH)
        self.query, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, len(WORDS))
        for weight in (self.query.weight, self.out.weight):
            nn.init.normal_(weight, std=0.4)
        nn.init.zeros_(self.out.bias)
        self.out.bias.data[EOS] = -2.0  # so that some rows end and some are cut

    def read(self, token: torch.Tensor, memory: torch.Tensor, past: torch.Tensor):
        x = self.embed(token) + self.place.weight[past.shape[1]]
        past = torch.cat((past, x[:, None]), dim=1)
        seen = torch.cat((memory, past), dim=1)
        attended = F.scaled_dot_product_attention(self.query(x)[:, None], seen, seen)[:, 0]
        return self.out(torch.tanh(attended + x)), {"memory": memory, "past": past}

    def first(self, batch: torch.Tensor):
        start = torch.full((len(batch),), len(WORDS))
        return self.read(start, batch, batch[:, :0])

    def step(self, tokens: torch.Tensor, cache: dict):
        return self.read(tokens, **cache)

    def reorder(self, cache: dict, parents: torch.Tensor):
        return {name: kept[parents] for name, kept in cache.items()}

    def uncached(self, batch: torch.Tensor, row: int, written: list[int]) -> torch.Tensor:
        """All tokens at once under a causal mask, as in training."""
        x = self.embed(torch.tensor([len(WORDS), *written])) + self.place.weight[: len(written) + 1]
        seen = torch.cat((batch[row], x))
        causal = torch.ones(len(x), len(seen), dtype=torch.bool).tril(len(batch[row]))
        attended = F.scaled_dot_product_attention(self.query(x)[None], seen[None], seen[None], attn_mask=causal[None])
        return self.out(torch.tanh(attended[0] + x))[-1]


class Causal(CausalLmDecoder):
    """The adapter under test, and a reading of the same rows without cache, padding and other rows."""

    def uncached(self, batch: Prompt, row: int, written: list[int]) -> torch.Tensor:
        tokens = self.llm.get_input_embeddings()(torch.tensor(written, dtype=torch.long))
        embeds = torch.cat((batch.embeds[row][batch.mask[row] == 1], tokens))
        return self.llm(inputs_embeds=embeds[None], use_cache=False).logits[0, -1]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


SIZES = {
    "vocab_size": len(WORDS), "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "initializer_range": 0.6, "eos_token_id": EOS, "bos_token_id": None, "pad_token_id": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def llm():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


@pytest.fixture(scope="module", params=["causal LM", "own decoder"])
def decoder(request, llm):
    torch.manual_seed(1)
    return Causal(llm) if request.param == "causal LM" else Reader().eval()


def prompts(batch: int, length: int = 3) -> Prompt:
    embeds = torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(5))
    return Prompt(embeds, torch.ones(batch, length, dtype=torch.long))


def inputs(decoder, batch: int) -> Prompt | torch.Tensor:
    return prompts(batch).embeds if isinstance(decoder, Reader) else prompts(batch)


def r2gen(beams: int, longest: int = 8, shortest: int = 0) -> Decoding:
    return Decoding(length_rule="r2gen", beams=beams, max_new_tokens=longest, min_new_tokens=shortest)


@torch.no_grad()
def logp_next(decoder, batch, row: int, written: list[int]) -> torch.Tensor:
    """log p(word | row of the batch, written), computed from scratch without a cache."""
    return decoder.uncached(batch, row, written).log_softmax(-1)


def summed(decoder, batch, row: int, written: list[int]) -> float:
    return sum(logp_next(decoder, batch, row, written[:i])[word].item() for i, word in enumerate(written))


def until_eos(row: torch.Tensor) -> list[int]:
    ids = row.tolist()
    return ids[: ids.index(EOS) + 1] if EOS in ids else ids


def plain_beam_search(decoder, batch, row: int, beams: int, longest: int) -> list[int]:
    """The search of the R2Gen family, one row, one list per hypothesis, no early end."""
    alive, aside = [([], 0.0)], []
    for step in range(longest):
        candidates = [
            ([*written, word], score + logp)
            for written, score in alive
            for word, logp in enumerate(logp_next(decoder, batch, row, written).tolist())
        ]
        alive = sorted(candidates, key=lambda c: -c[1])[:beams]
        for i, (written, score) in enumerate(alive):
            if written[-1] == EOS or step == longest - 1:
                aside.append((written, score))
                alive[i] = (written, score - 1000)
    best = max(aside, key=lambda c: c[1])[0]
    return best[: best.index(EOS) + 1] if EOS in best else best


def test_r2gen_rule_is_exact_when_the_beam_holds_everything(decoder):
    batch, longest = inputs(decoder, 4), 3
    rows = write_r2gen(decoder, batch, r2gen(beams=len(WORDS) ** longest, longest=longest), EOS)
    words = [w for w in range(len(WORDS)) if w != EOS]
    ended = [[*body, EOS] for n in range(longest) for body in itertools.product(words, repeat=n)]
    cut = [list(body) for body in itertools.product(words, repeat=longest)]
    for row, found in enumerate(rows):
        assert until_eos(found) == max(ended + cut, key=lambda ids, row=row: summed(decoder, batch, row, ids))


@pytest.mark.parametrize("beams", [1, 2, 3, 6])
def test_r2gen_rule_equals_the_plain_search_without_cache(decoder, beams):
    batch = inputs(decoder, 12)
    rows = write_r2gen(decoder, batch, r2gen(beams, longest=7), EOS)
    found = [until_eos(row) for row in rows]
    assert found == [plain_beam_search(decoder, batch, row, beams, 7) for row in range(12)]
    if beams == 3:
        assert any(ids[-1] == EOS for ids in found) and any(ids[-1] != EOS for ids in found)


def left_padded(lengths: list[int]) -> Prompt:
    """Prompts of several lengths behind padding that would show if it were read."""
    embeds, longest = prompts(len(lengths), max(lengths)).embeds, max(lengths)
    mask = torch.stack([(torch.arange(longest) >= longest - length).long() for length in lengths])
    return Prompt(torch.where(mask[..., None] == 1, embeds, 9.0), mask)


@pytest.mark.parametrize(
    "causal",
    [
        LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1)),
        MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=4)),
        GPT2LMHeadModel(GPT2Config(vocab_size=len(WORDS), n_embd=WIDTH, n_layer=2, n_head=2, initializer_range=0.6)),
    ],
    ids=["grouped queries", "sliding window", "learned positions"],
)
def test_cached_equals_uncached(causal):
    decoder, batch = Causal(causal.eval()), left_padded([3, 6, 5])
    check_cached_equals_uncached(decoder, batch, lambda row, written: decoder.uncached(batch, row, written))


def test_cached_equals_uncached_for_a_decoder_of_ones_own_and_tells_when_it_does_not():
    torch.manual_seed(1)
    reader, memory = Reader().eval(), prompts(4).embeds

    def check(decoder) -> None:
        check_cached_equals_uncached(decoder, memory, lambda row, written: reader.uncached(memory, row, written))

    class Unmoved(Reader):
        def reorder(self, cache, parents):
            return super().reorder(cache, parents.sort().values)

    class FilmsUnmoved(Reader):
        def reorder(self, cache, parents):
            moved = super().reorder(cache, parents)
            return moved if len(parents) != len(cache["memory"]) else moved | {"memory": cache["memory"]}

    class Forgetful(Reader):
        def step(self, tokens, cache):
            logits, longer = super().step(tokens, cache)
            longer["past"][:, -1] = 0
            return logits, longer

    class Spoiling(Reader):
        def reorder(self, cache, parents):
            moved = super().reorder(cache, parents)
            memory.mul_(1.001)
            return moved

    check(reader)
    for broken in (Unmoved(), FilmsUnmoved(), Forgetful(), Spoiling()):
        broken.load_state_dict(reader.state_dict())
        with pytest.raises(AssertionError):
            check(broken.eval())


@pytest.mark.parametrize("rule", ["hf", "r2gen"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_row_is_the_same_alone_in_a_batch_and_behind_padding(llm, tokenizer, rule, beams):
    decoding = Decoding(length_rule=rule, beams=beams, max_new_tokens=8)
    decoder, (embeds, mask) = CausalLmDecoder(llm), prompts(6)
    together = decode(decoder, Prompt(embeds, mask), decoding, tokenizer)
    alone = [decode(decoder, Prompt(embeds[[i]], mask[[i]]), decoding, tokenizer)[0] for i in range(6)]
    assert together == alone
    padded = torch.cat((torch.full((6, 4, WIDTH), 9.0), embeds), dim=1)
    padding = torch.cat((torch.zeros(6, 4, dtype=torch.long), mask), dim=1)
    assert decode(decoder, Prompt(padded, padding), decoding, tokenizer) == together


def test_one_beam_is_greedy_under_both_rules(llm):
    decoder, batch = Causal(llm), prompts(8)
    plain = Decoding(beams=1, max_new_tokens=6, repetition_penalty=1.0)
    hf = write_hf(decoder, batch, plain, EOS)
    ours = write_r2gen(decoder, batch, r2gen(1, longest=6), EOS)
    for row, (a, b) in enumerate(zip(hf, ours, strict=True)):
        written: list[int] = []
        while len(written) < 6 and EOS not in written:
            written.append(logp_next(decoder, batch, row, written).argmax().item())
        assert until_eos(a) == until_eos(b) == written


def test_hf_rule_divides_by_the_length_of_what_was_written(llm):
    """With every hypothesis on the beam, the answer is that of the definition: score / length**length_penalty."""
    decoder, batch = Causal(llm), prompts(4)
    wide = Decoding(beams=36, max_new_tokens=2, length_penalty=1.5, repetition_penalty=1.0)
    words = [w for w in range(len(WORDS)) if w != EOS]
    choices = [[EOS], *([w, EOS] for w in words), *([v, w] for v in words for w in words)]
    for row, found in enumerate(write_hf(decoder, batch, wide, EOS)):
        best = max(choices, key=lambda ids, row=row: summed(decoder, batch, row, ids) / len(ids) ** 1.5)
        assert until_eos(found) == best


def test_hf_rule_needs_a_decoder_with_transformers_generate(tokenizer):
    with pytest.raises(ConfigError, match="generate, which Reader does not have: set model.decoding.length_rule=r2gen"):
        decode(Reader(), prompts(2).embeds, Decoding(), tokenizer)


def test_hf_rule_penalises_words_that_were_written(llm, tokenizer):
    decoder, batch = Causal(llm), prompts(8)
    free = decode(decoder, batch, Decoding(beams=1, max_new_tokens=12, repetition_penalty=1.0), tokenizer)
    strict = decode(decoder, batch, Decoding(beams=1, max_new_tokens=12, repetition_penalty=50.0), tokenizer)

    def repeats(reports):
        return sum(len(r.text.split()) - len(set(r.text.split())) for r in reports)

    assert repeats(strict) < repeats(free)


@pytest.mark.parametrize("rule", ["hf", "r2gen"])
@pytest.mark.parametrize("beams", [1, 3])
def test_lengths_are_kept_and_reported(llm, tokenizer, rule, beams):
    decoder, batch = Causal(llm), prompts(10)
    decoding = Decoding(length_rule=rule, beams=beams, min_new_tokens=4, max_new_tokens=6)
    for report in decode(decoder, batch, decoding, tokenizer):
        assert 4 <= report.tokens <= 6
        assert report.tokens == len(report.text.split())
        assert report.truncated == (report.tokens == 6)
    exact = Decoding(length_rule=rule, beams=beams, min_new_tokens=5, max_new_tokens=5)
    assert {(r.tokens, r.truncated) for r in decode(decoder, batch, exact, tokenizer)} == {(5, True)}


@pytest.mark.parametrize("beams", [1, 3])
def test_the_models_own_generation_settings_have_no_say(llm, tokenizer, beams):
    decoder, batch = Causal(llm), prompts(6)
    decoding = Decoding(beams=beams, max_new_tokens=8)
    expected = decode(decoder, batch, decoding, tokenizer)
    own = llm.generation_config
    llm.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, top_p=0.5, no_repeat_ngram_size=1, suppress_tokens=[1, 2], eos_token_id=3
    )
    try:
        assert decode(decoder, batch, decoding, tokenizer) == expected
        assert llm.generation_config.temperature == 5.0
    finally:
        llm.generation_config = own


def test_an_empty_report_has_no_tokens_and_is_not_truncated(llm, tokenizer):
    decoder, batch = Causal(llm), prompts(64)
    reports = decode(decoder, batch, r2gen(1), tokenizer)
    firsts = [logp_next(decoder, batch, row, []).argmax().item() for row in range(64)]
    empty = [report for report, first in zip(reports, firsts, strict=True) if first == EOS]
    assert empty and all(report == ("", 0, False, {}) for report in empty)


def sampled(longest: int = 8, **changes) -> Decoding:
    return Decoding(**{"sample": True, "beams": 1, "repetition_penalty": 1.0, "max_new_tokens": longest} | changes)


@pytest.mark.parametrize(
    "cut", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}, {"temperature": 2.0, "top_k": 4, "top_p": 0.8}]
)
def test_first_tokens_are_drawn_as_their_probabilities_say(decoder, cut):
    """Pearson's χ² of 4,000 draws stays under its 0.9999 quantile; a cut keeps what its definition keeps."""
    draws, alone = 4000, inputs(decoder, 1)
    repeated = [part.repeat_interleave(draws, dim=0) for part in (alone if isinstance(alone, Prompt) else [alone])]
    batch = Prompt(*repeated) if isinstance(alone, Prompt) else repeated[0]
    found = write_sampled(decoder, batch, sampled(1, **cut), EOS, torch.arange(draws))[:, 0].bincount(minlength=6)

    p = (logp_next(decoder, alone, 0, []) / cut.get("temperature", 1.0)).double().softmax(-1)
    order = p.argsort(descending=True)
    keep = order[: cut.get("top_k", len(WORDS))]
    p = torch.zeros_like(p).index_copy(0, keep, p[keep] / p[keep].sum())
    before = p[order].cumsum(0) - p[order]
    p = p.index_fill(0, order[before >= cut.get("top_p", 1.0)], 0.0)
    p /= p.sum()
    assert found[p == 0].sum() == 0
    if "top_k" in cut or "top_p" in cut:
        assert (p == 0).any()
    expected = draws * p[p > 0]
    assert ((found[p > 0] - expected) ** 2 / expected).sum() < 25.7  # 5 degrees of freedom at most


def test_later_tokens_are_drawn_given_those_before(decoder):
    """What is drawn with a cache is what the same numbers draw from logits read from scratch."""
    batch, rows, decoding = inputs(decoder, 6), torch.tensor([3, 0, 9, 41, 5, 7]), sampled(6, seed=11)
    found = write_sampled(decoder, batch, decoding, EOS, rows)
    for at, row in enumerate(rows.tolist()):
        raw = np.random.Philox(np.random.SeedSequence([11, row + 1])).random_raw(6)
        written: list[int] = []
        while len(written) < 6 and EOS not in written:
            u = float(raw[len(written)]) / 2**64
            written.append(int((logp_next(decoder, batch, at, written).exp().cumsum(0) <= u).sum()))
        assert until_eos(found[at]) == written
    assert len({tuple(row) for row in found.tolist()}) > 3


def test_one_most_probable_token_to_draw_from_is_greedy(decoder, tokenizer):
    batch, rows = inputs(decoder, 8), torch.arange(8)
    greedy = decode(decoder, batch, r2gen(1), tokenizer)
    for cut in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        assert decode(decoder, batch, sampled(**cut), tokenizer, rows) == greedy


def test_a_sampled_text_depends_on_seed_and_study_only(decoder, tokenizer):
    """Not on the batch, the row's place in it, rows that fill it, or on how long others write."""
    batch, decoding = inputs(decoder, 12), sampled(12)

    def write(places: list[int], decoding: Decoding = decoding, rows: list[int] | None = None):
        part = Prompt(*(kept[places] for kept in batch)) if isinstance(batch, Prompt) else batch[places]
        return decode(decoder, part, decoding, tokenizer, torch.tensor(places if rows is None else rows))

    together = write(list(range(12)))
    assert together == write(list(range(12)))
    assert together == [write([row])[0] for row in range(12)]
    assert together[::-1] == write(list(range(12))[::-1])
    assert together[:5] == write([0, 1, 2, 3, 4, 0, 0], rows=[0, 1, 2, 3, 4, -1, -1])[:5]
    assert together != write(list(range(12)), sampled(12, seed=1))
    assert len({report.text for report in write([0] * 30, rows=list(range(30)))}) > 10
    shorter = write(list(range(12)), sampled(6))
    assert [r.text.split()[:6] for r in together] == [r.text.split() for r in shorter]


def test_sampling_keeps_lengths(decoder, tokenizer):
    batch, rows = inputs(decoder, 12), torch.arange(12)
    for report in decode(decoder, batch, sampled(6, min_new_tokens=4), tokenizer, rows):
        assert 4 <= report.tokens <= 6 and report.truncated == (report.tokens == 6)


def test_sampling_penalises_words_that_were_written(decoder):
    """As the hf rule does: positive logits are divided, negative ones multiplied, before anything else."""
    batch, penalised = inputs(decoder, 8), {"repetition_penalty": 3.0}
    found = write_sampled(decoder, batch, sampled(6, top_k=1, **penalised), EOS, torch.arange(8))
    for row, ids in enumerate(found):
        written: list[int] = []
        while len(written) < 6 and EOS not in written:
            with torch.no_grad():
                logits = decoder.uncached(batch, row, written)
            divided = torch.where(logits > 0, logits / 3, logits * 3)
            seen = torch.isin(torch.arange(len(WORDS)), torch.tensor(written, dtype=torch.long))
            written.append(torch.where(seen, divided, logits).argmax().item())
        assert until_eos(ids) == written
    assert not torch.equal(found, write_sampled(decoder, batch, sampled(6, top_k=1), EOS, torch.arange(8)))
    if isinstance(decoder, Causal):
        hf = write_hf(decoder, batch, Decoding(beams=1, max_new_tokens=6, **penalised), EOS)
        assert torch.equal(found[:, : hf.shape[1]], hf)


def test_sampling_asks_for_the_studies_and_for_one_beam(decoder, tokenizer):
    with pytest.raises(ConfigError, match="sample=true draws by a study's place.*hand `index` on"):
        decode(decoder, inputs(decoder, 2), sampled(), tokenizer)
    with pytest.raises(
        ValueError, match="sample=true draws one text, model.decoding.beams=3 .* model.decoding.beams=1"
    ):
        Decoding(sample=True)
    with pytest.raises(
        ValueError, match="decoding.top_k=5, model.decoding.top_p=0.9 has no effect with model.decoding.sample=false"
    ):
        Decoding(top_p=0.9, top_k=5)
