"""Reading a report out of a language model: transformers' generate, or the beam search the R2Gen family scores with.

Shapes: B batch, K beams, L prompt tokens, t tokens written so far, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.cache_utils import Cache

from r2kg.config import Decoding
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


@torch.no_grad()
def decode(
    llm: PreTrainedModel,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    decoding: Decoding,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Generated]:
    """Write one report per row, by the rule that `decoding` names; nothing is sampled.

    Args:
        llm: causal LM, in eval mode.
        inputs_embeds: [B, L, D], prompts, padded on the left if at all.
        attention_mask: int64 [B, L], 0 on padding.
        decoding: beams, lengths, rule.
        tokenizer: names EOS and turns tokens into text.
    """
    rule = RULES.get(decoding.length_rule)
    if rule is None:
        raise ConfigError(f"decoding.length_rule={decoding.length_rule!r}: one of {', '.join(RULES)}")
    eos = tokenizer.eos_token_id
    rows = rule(llm, inputs_embeds, attention_mask, decoding, eos).tolist()
    return [_generated(ids, eos, tokenizer) for ids in rows]


def write_hf(llm: PreTrainedModel, embeds: Tensor, mask: Tensor, decoding: Decoding, eos: int) -> Tensor:
    """transformers' greedy or beam search: score / length**length_penalty. Returns int64 [B, t], EOS-padded.

    The model's own generation_config is set aside meanwhile: transformers would fill every value left open here from
    it, e.g. a chat model's temperature or top_p. The repetition penalty counts written tokens only; it is handed over
    as a processor because transformers, given the number itself, would skip as many tokens as a prompt has padding.
    """
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
        return llm.generate(
            inputs_embeds=embeds, attention_mask=mask, generation_config=config, logits_processor=penalty
        )
    finally:
        llm.generation_config = own


def write_r2gen(llm: PreTrainedModel, embeds: Tensor, mask: Tensor, decoding: Decoding, eos: int) -> Tensor:
    """Beam search of the R2Gen family: summed log-probabilities, no length normalisation. Returns int64 [B, t].

    A beam that writes EOS, or reaches max_new_tokens, is set aside with its score and goes on at FINISHED; the best set
    aside wins. A row stops changing once no unfinished beam scores above its best, because scores only fall, so the
    search ends when that holds for every row. Rows are EOS-padded.
    """
    last = decoding.max_new_tokens - 1
    beams = _Beams(len(embeds), decoding.beams, decoding.max_new_tokens, eos, embeds.device)
    logits, cache = _first_step(llm, embeds, mask, decoding.beams)
    mask = mask.repeat_interleave(decoding.beams, dim=0)
    for step in range(decoding.max_new_tokens):
        parents, tokens = beams.extend(logits, may_end=step >= decoding.min_new_tokens, must_end=step == last)
        if step == last or beams.settled():
            break
        cache.reorder_cache(parents)
        mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
        logits = _next_step(llm, tokens, mask, cache)
    return beams.best


RULES = {"hf": write_hf, "r2gen": write_r2gen}
"""Decoding.length_rule → how it is done."""


class _Beams:
    """The K hypotheses of every row, and the best one that each row has set aside."""

    def __init__(self, batch: int, beams: int, longest: int, eos: int, device: torch.device) -> None:
        self.eos = eos
        self.scores = torch.full((batch, beams), -torch.inf, device=device)  # [B, K]
        self.scores[:, 0] = 0.0  # one empty hypothesis
        self.written = torch.empty(batch, beams, 0, dtype=torch.long, device=device)  # [B, K, t]
        self.best = torch.full((batch, longest), eos, device=device)
        self.best_score = torch.full((batch,), -torch.inf, device=device)
        self.first_row = (torch.arange(batch, device=device) * beams)[:, None]  # [B, 1]

    def extend(self, logits: Tensor, may_end: bool, must_end: bool) -> tuple[Tensor, Tensor]:
        """Write one token on every beam.

        Args:
            logits: [B*K, words] of the next token.
            may_end: EOS is allowed.
            must_end: the longest length is reached, every beam is set aside.

        Returns:
            int64 [B*K]: the row each new beam continues, and int64 [B*K, 1]: its new token.
        """
        logp = logits.float().log_softmax(-1).view(*self.scores.shape, -1)  # [B, K, words]
        if not may_end:
            logp[..., self.eos] = -torch.inf
        words = logp.shape[-1]
        self.scores, picks = (self.scores[..., None] + logp).flatten(1).topk(self.scores.shape[1])
        parents, tokens = picks // words, picks % words  # [B, K]
        history = self.written.gather(1, parents[..., None].expand(-1, -1, self.written.shape[2]))
        self.written = torch.cat((history, tokens[..., None]), dim=2)
        self._set_aside(ended=(tokens == self.eos) | must_end)
        return (self.first_row + parents).flatten(), tokens.view(-1, 1)

    def settled(self) -> bool:
        """No row can improve: scores only fall, and none of those left is above the best set aside."""
        return bool((self.best_score >= self.scores.amax(1)).all())

    def _set_aside(self, ended: Tensor) -> None:
        score, beam = self.scores.masked_fill(~ended, -torch.inf).max(1)  # [B]
        better = score > self.best_score
        length = self.written.shape[2]
        found = self.written[torch.arange(len(beam), device=beam.device), beam]  # [B, t]
        self.best[better, :length] = found[better]
        self.best_score = torch.where(better, score, self.best_score)
        self.scores = torch.where(ended, self.scores + FINISHED, self.scores)


def _first_step(llm: PreTrainedModel, embeds: Tensor, mask: Tensor, beams: int) -> tuple[Tensor, Cache]:
    """Read the prompts once; logits [B*K, words] and the cache are then repeated for every beam."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = llm(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    out.past_key_values.batch_repeat_interleave(beams)
    return out.logits[:, -1].repeat_interleave(beams, dim=0), out.past_key_values


def _next_step(llm: PreTrainedModel, tokens: Tensor, mask: Tensor, cache: Cache) -> Tensor:
    positions = mask.sum(1, keepdim=True) - 1
    out = llm(input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    return out.logits[:, -1]


def _generated(ids: list[int], eos: int, tokenizer: PreTrainedTokenizerBase) -> Generated:
    """Cut at EOS. Blanks are left as written: reports are cleaned to ` .` and metrics split on blanks."""
    tokens = ids.index(eos) if eos in ids else len(ids)
    text = tokenizer.decode(ids[:tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Generated(str(text).strip(), tokens, truncated=eos not in ids)
