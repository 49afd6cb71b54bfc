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
    reports = []
    for ids in rule(llm, inputs_embeds, attention_mask, decoding, eos).tolist():
        tokens = ids.index(eos) if eos in ids else len(ids)
        # Blanks are left as written: reports are cleaned to ` .` and metrics split on blanks.
        text = tokenizer.decode(ids[:tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        reports.append(Generated(str(text).strip(), tokens, truncated=eos not in ids))
    return reports


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
        return llm.generate(  # type: ignore[operator]  # PreTrainedModel does not declare it
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
    batch, beams, device = len(embeds), decoding.beams, embeds.device
    rows, last = torch.arange(batch, device=device), decoding.max_new_tokens - 1
    scores = torch.full((batch, beams), -torch.inf, device=device)  # [B, K]
    scores[:, 0] = 0.0  # one empty hypothesis
    written = torch.empty(batch, beams, 0, dtype=torch.long, device=device)  # [B, K, t]
    best = torch.full((batch, decoding.max_new_tokens), eos, device=device)
    best_score = torch.full((batch,), -torch.inf, device=device)

    # The prompts are read once; logits, cache and mask are then repeated for every beam.
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = llm(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    cache: Cache = out.past_key_values
    cache.batch_repeat_interleave(beams)
    mask = mask.repeat_interleave(beams, dim=0)
    logits = out.logits[:, -1].repeat_interleave(beams, dim=0)  # [B*K, words]
    for step in range(decoding.max_new_tokens):
        logp = logits.float().log_softmax(-1).view(batch, beams, -1)  # [B, K, words]
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
        cache.reorder_cache((rows[:, None] * beams + parents).flatten())
        mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
        positions = mask.sum(1, keepdim=True) - 1
        logits = llm(
            input_ids=tokens.view(-1, 1), attention_mask=mask, position_ids=positions, past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]  # fmt: skip
    return best


RULES = {"hf": write_hf, "r2gen": write_r2gen}
"""Decoding.length_rule → how it is done."""
