"""Reading a text out of a decoder: transformers' generate, the beam search the R2Gen family scores with, or sampling.

Shapes: B batch, K beams, L prompt tokens, t tokens written so far, n rows of a cache, D width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import Cache

from r2kg.config.parts import Decoding
from shards.errors import ConfigError

FINISHED = -1000.0
"""Added to the score of a beam that has written EOS, as in R2Gen: it goes on, but can hardly win."""


class Generated(NamedTuple):
    """One report as it was written."""

    text: str
    """Without special tokens and outer blanks."""
    tokens: int
    """Tokens before EOS."""
    truncated: bool
    """No EOS within max_new_tokens."""
    extra: Mapping[str, Any] = {}
    """What a system adds, by name: `report._replace(extra={...})`."""


class Decoder(Protocol):
    """What writes one token after another; the search below knows no more of a model.

    What a cache is, is the decoder's own affair. One that was handed to `step` or `reorder` is spent: the decoder may
    have changed it in place. `tests/r2kg/modules/decoder_checks.py` tells whether an adapter keeps what is said here.
    """

    def first(self, batch: Any) -> tuple[Tensor, Any]:
        """Read the batch: logits [B, words] of the first token of every row, and a cache of B rows."""

    def step(self, tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Read one more token per row, int64 [n]: logits [n, words] of the next, and the longer cache."""

    def reorder(self, cache: Any, parents: Tensor) -> Any:
        """A cache whose row i goes on from row parents[i], int64 [n]: rows may be repeated, moved and left out."""


class Prompt(NamedTuple):
    """What a causal LM reads before it writes."""

    embeds: Tensor
    """[B, L, D], padded on the left if at all."""
    mask: Tensor
    """int64 [B, L], 0 on padding."""


class CausalCache(NamedTuple):
    """What a causal LM has read."""

    past: Cache
    """Keys and values, changed in place."""
    mask: Tensor
    """int64 [n, L + t], 0 on padding."""


@dataclass(frozen=True, eq=False)
class CausalLmDecoder:
    """Any Hugging Face causal LM, in eval mode, as a Decoder of `Prompt`s."""

    llm: PreTrainedModel

    def first(self, batch: Prompt) -> tuple[Tensor, CausalCache]:
        """Read the prompts. The LM head sees their last position only."""
        out = self.llm(
            inputs_embeds=batch.embeds, attention_mask=batch.mask, position_ids=(batch.mask.cumsum(1) - 1).clamp(min=0),
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        return out.logits[:, -1], CausalCache(out.past_key_values, batch.mask)

    def step(self, tokens: Tensor, cache: CausalCache) -> tuple[Tensor, CausalCache]:
        """Read one token per row, at the position after the row's last; padding has none."""
        mask = torch.cat((cache.mask, cache.mask.new_ones(len(tokens), 1)), dim=1)
        out = self.llm(
            input_ids=tokens[:, None], attention_mask=mask, position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=cache.past, use_cache=True,
        )  # fmt: skip
        return out.logits[:, -1], CausalCache(out.past_key_values, mask)

    def reorder(self, cache: CausalCache, parents: Tensor) -> CausalCache:
        """Row i goes on from row parents[i]."""
        cache.past.reorder_cache(parents)  # type: ignore[arg-type]  # int64, which is what LongTensor stands for
        return CausalCache(cache.past, cache.mask[parents])


@torch.no_grad()
def decode(
    decoder: Decoder,
    batch: Any,
    decoding: Decoding,
    tokenizer: PreTrainedTokenizerBase,
    rows: Tensor | None = None,
) -> list[Generated]:
    """Write one text per row, by the rule that `decoding` names.

    Args:
        decoder: its model in eval mode.
        batch: what the decoder's `first` reads.
        decoding: beams, lengths, rule; or how tokens are drawn.
        tokenizer: names EOS and turns tokens into text.
        rows: int64 [B], each study's place in its split (the stream's `index`), -1 on rows that only fill the batch;
            asked for by sampling only.

    Raises:
        ConfigError: no such rule, one that this decoder cannot follow, or sampling without `rows`.
    """
    rule = RULES.get(decoding.length_rule)
    if rule is None:
        raise ConfigError(f"decoding.length_rule={decoding.length_rule!r}: one of {', '.join(RULES)}")
    eos = tokenizer.eos_token_id
    if not decoding.sample:
        written = rule(decoder, batch, decoding, eos)
    elif rows is not None:
        written = write_sampled(decoder, batch, decoding, eos, rows)
    else:
        raise ConfigError(
            "model.decoding.sample=true draws by a study's place in its split, which this batch does not hold: let the "
            "system's collate hand `index` on, or set model.decoding.sample=false"
        )
    reports = []
    for ids in written.tolist():
        tokens = ids.index(eos) if eos in ids else len(ids)
        # Blanks are left as written: reports are cleaned to ` .` and metrics split on blanks.
        text = tokenizer.decode(ids[:tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        reports.append(Generated(str(text).strip(), tokens, truncated=eos not in ids))
    return reports


def write_hf(decoder: Decoder, batch: Any, decoding: Decoding, eos: int) -> Tensor:
    """transformers' greedy or beam search: score / length**length_penalty. Returns int64 [B, t], EOS-padded.

    The model's own generation_config is set aside meanwhile: transformers would fill every value left open here from
    it, e.g. a chat model's temperature or top_p. The repetition penalty counts written tokens only; it is handed over
    as a processor because transformers, given the number itself, would skip as many tokens as a prompt has padding.

    Raises:
        ConfigError: the decoder is no causal LM of transformers, which alone has a generate to call.
    """
    if not isinstance(decoder, CausalLmDecoder):
        raise ConfigError(
            f"decoding.length_rule='hf' is transformers' generate, which {type(decoder).__name__} does not have: "
            "set model.decoding.length_rule=r2gen"
        )
    llm = decoder.llm
    config = GenerationConfig(
        do_sample=False,
        num_beams=decoding.beams,
        length_penalty=decoding.length_penalty if decoding.beams > 1 else None,
        min_new_tokens=decoding.min_new_tokens or None,
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    penalty = LogitsProcessorList()
    if decoding.repetition_penalty != 1:
        penalty.append(RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty))
    own, llm.generation_config = llm.generation_config, GenerationConfig(eos_token_id=eos, pad_token_id=eos)
    try:
        return llm.generate(  # type: ignore[operator]  # PreTrainedModel does not declare it
            inputs_embeds=batch.embeds, attention_mask=batch.mask, generation_config=config, logits_processor=penalty
        )
    finally:
        llm.generation_config = own


def write_r2gen(decoder: Decoder, batch: Any, decoding: Decoding, eos: int) -> Tensor:
    """Beam search of the R2Gen family: summed log-probabilities, no length normalisation. Returns int64 [B, t].

    A beam that writes EOS, or reaches max_new_tokens, is set aside with its score and goes on at FINISHED; the best set
    aside wins. A row stops changing once no unfinished beam scores above its best, because scores only fall, so the
    search ends when that holds for every row. Rows are EOS-padded.
    """
    logits, cache = decoder.first(batch)
    studies, beams, device = len(logits), decoding.beams, logits.device
    rows, last = torch.arange(studies, device=device), decoding.max_new_tokens - 1
    scores = torch.full((studies, beams), -torch.inf, device=device)  # [B, K]
    scores[:, 0] = 0.0  # one empty hypothesis
    written = torch.empty(studies, beams, 0, dtype=torch.long, device=device)  # [B, K, t]
    best = torch.full((studies, decoding.max_new_tokens), eos, device=device)
    best_score = torch.full((studies,), -torch.inf, device=device)

    repeated = rows.repeat_interleave(beams)
    logits, cache = logits[repeated], decoder.reorder(cache, repeated)  # [B*K, words]
    for step in range(decoding.max_new_tokens):
        logp = logits.float().log_softmax(-1).view(studies, beams, -1)  # [B, K, words]
        if step < decoding.min_new_tokens:
            logp[..., eos] = -torch.inf
        words = logp.shape[-1]
        scores, picks = (scores[..., None] + logp).flatten(1).topk(beams)
        parents, tokens = picks // words, picks % words  # [B, K]: the beam each new one continues, and its new token
        history = written.gather(1, parents[..., None].expand(-1, -1, step))
        written = torch.cat((history, tokens[..., None]), dim=2)

        ended = (tokens == eos) | (step == last)
        score, beam = scores.masked_fill(~ended, -torch.inf).max(1)  # [B]
        better = score > best_score
        best[better, : step + 1] = written[rows, beam][better]
        best_score = torch.where(better, score, best_score)
        scores = torch.where(ended, scores + FINISHED, scores)
        if step == last or (best_score >= scores.amax(1)).all():
            break
        cache = decoder.reorder(cache, (rows[:, None] * beams + parents).flatten())
        logits, cache = decoder.step(tokens.flatten(), cache)
    return best


def write_sampled(decoder: Decoder, batch: Any, decoding: Decoding, eos: int, rows: Tensor) -> Tensor:
    """Draw every token from softmax(logits / temperature), cut to top_k, then top_p. Returns int64 [B, t], EOS-padded.

    Token t of a row is the first whose cumulated probability exceeds u, which is word t of a Philox stream keyed by the
    seed and the row: a study gets the same u whatever its batch and however many write. Raw words are taken because
    NumPy keeps them fixed between versions; probabilities are cumulated in float64 on the CPU, in one order everywhere.
    Logits alone differ in rounding between batch sizes and devices, and may tip a u that lies on a border.

    Args:
        rows: int64 [B], -1 or more.
    """
    logits, cache = decoder.first(batch)
    chain = LogitsProcessorList()  # in transformers' order
    if decoding.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty))
    if decoding.min_new_tokens:
        chain.append(MinNewTokensLengthLogitsProcessor(0, decoding.min_new_tokens, eos, str(logits.device)))
    if decoding.temperature != 1:
        chain.append(TemperatureLogitsWarper(decoding.temperature))
    if decoding.top_k:
        chain.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p < 1:
        chain.append(TopPLogitsWarper(decoding.top_p))

    streams = [np.random.Philox(np.random.SeedSequence([decoding.seed, row + 1])) for row in rows.tolist()]
    words = np.stack([stream.random_raw(decoding.max_new_tokens) for stream in streams])
    # 52 bits: u * total then stays below total, so that no token of probability 0 is drawn at the end.
    uniform = torch.from_numpy((words >> np.uint64(12)) * 2.0**-52)  # float64 [B, max_new_tokens], in [0, 1)

    written = torch.empty(len(logits), 0, dtype=torch.long, device=logits.device)  # [B, t]
    ended = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    for step in range(decoding.max_new_tokens):
        kept = chain(written, logits.float())  # type: ignore[arg-type]  # int64, which is what LongTensor stands for
        cumulated = kept.cpu().double().softmax(-1).cumsum(-1)  # [B, words]
        drawn = torch.searchsorted(cumulated, uniform[:, [step]] * cumulated[:, -1:], right=True)[:, 0]
        tokens = drawn.to(logits.device).masked_fill(ended, eos)
        written = torch.cat((written, tokens[:, None]), dim=1)
        ended |= tokens == eos
        if ended.all() or step == decoding.max_new_tokens - 1:
            break
        logits, cache = decoder.step(tokens, cache)
    return written


RULES: dict[str, Callable[[Decoder, Any, Decoding, int], Tensor]] = {"hf": write_hf, "r2gen": write_r2gen}
"""Decoding.length_rule → how it is done."""
