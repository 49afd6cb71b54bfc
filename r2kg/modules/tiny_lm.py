"""The small causal LM that stands in for a hub model: tokenizer and weights both trained on the training reports.

Half of the rows are framed as the film's prompt is, so that reports are expected after it. Frozen, so small a model can
hardly be steered by soft tokens: train it along with the encoder (model.llm.tuning=full, or lora).
"""

import json
import math
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from r2kg.config import Model, TinyLm
from r2kg.modules.llm import IGNORED, frame, weight_hashes
from shards.errors import DataError

CARD = "tiny_lm.json"
"""File beside the weights: reports, epochs, seconds, final_loss, fingerprint."""
BATCH_TOKENS = 800
"""Tokens per optimiser step, padding included."""
WARMUP = 0.05
"""Part of the epochs over which the learning rate rises."""
CLOCK_FROM = 0.7
"""Part of the seconds after which a training that will not finish in time begins to end."""
Row = tuple[list[int], int]
"""Token ids, and how many of the first are prompt and no target."""


def write_tiny_lm(
    reports: Iterable[str], out: Path, config: TinyLm, seed: int, instruction: str = Model().prompt
) -> Path:
    """Train tokenizer and model on `reports` and save them as a Hugging Face directory (safetensors) with a card.

    It holds the wording of the reports: keep it where the reports may be kept. A directory already at `out` is
    replaced, at once. With the same reports, seed and thread count the result is the same, unless the clock
    (config.seconds) ends the training before config.epochs do.

    Args:
        reports: cleaned reports of the training split.
        out: directory to make.
        config: sizes and budget.
        seed: of initial weights and order; the process's own random state is not touched.
        instruction: what model.prompt will be, so that the model has seen it.

    Returns:
        out.

    Raises:
        DataError: no report has any text.
    """
    texts = [text for text in reports if text.strip()]
    if not texts:
        raise DataError("no report to train the tiny language model on: the training split has no target text")
    tokenizer = _train_tokenizer(texts, config.vocabulary, instruction)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        llm = _new_llm(config, tokenizer)
        facts = _train(llm, _Rows(texts, tokenizer, instruction, seed), config)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card = {"reports": len(texts), **facts, "fingerprint": weight_hashes(folder)}
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")
    _move_into_place(folder, out)
    return out


def _train_tokenizer(texts: list[str], vocabulary: int, instruction: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text comes back as it was. The prompt is part of the corpus, or it would be read in bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    prompts = [*frame(instruction)] * (1 + len(texts) // 10)
    tokenizer.train_from_iterator([*texts, *prompts], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="right"
    )


def _new_llm(config: TinyLm, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=3 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class _Rows:
    """Training rows, batched by length so that little is padding."""

    def __init__(self, texts: list[str], tokenizer: PreTrainedTokenizerFast, instruction: str, seed: int) -> None:
        self.reports = tokenizer(texts, add_special_tokens=False).input_ids
        self.before, self.after = tokenizer(list(frame(instruction)), add_special_tokens=False).input_ids
        self.bos, self.eos, self.pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        self.random = torch.Generator().manual_seed(seed)

    def stream(self, epochs: int) -> Iterator[tuple[float, Tensor, Tensor]]:
        """(part of the epochs that is behind, input_ids, labels) of every step."""
        for number in range(epochs):
            batches = self.epoch(number)
            for i, (input_ids, labels) in enumerate(batches):
                yield (number + i / len(batches)) / epochs, input_ids, labels

    def epoch(self, number: int) -> list[tuple[Tensor, Tensor]]:
        """Every report once, in shuffled batches of input_ids and labels [rows, tokens]; framed every other epoch."""
        rows = [self._row(ids, framed=(i + number) % 2 == 0) for i, ids in enumerate(self.reports)]
        rows.sort(key=lambda row: len(row[0]))
        batches = [self._pad(batch) for batch in _by_tokens(rows)]
        return [batches[i] for i in torch.randperm(len(batches), generator=self.random)]

    def _row(self, report: list[int], framed: bool) -> Row:
        if not framed:
            return [self.bos, *report, self.eos], 1
        prompt = [self.bos, *self.before, *self.after]
        return [*prompt, *report, self.eos], len(prompt)

    def _pad(self, rows: list[Row]) -> tuple[Tensor, Tensor]:
        longest = max(len(ids) for ids, _ in rows)
        input_ids = torch.tensor([ids + [self.pad] * (longest - len(ids)) for ids, _ in rows])
        labels = [[IGNORED] * skip + ids[skip:] + [IGNORED] * (longest - len(ids)) for ids, skip in rows]
        return input_ids, torch.tensor(labels)


def _by_tokens(rows: list[Row]) -> Iterator[list[Row]]:
    """Cut rows, sorted by length, into batches of about BATCH_TOKENS."""
    batch: list[Row] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(row[0]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _train(llm: LlamaForCausalLM, rows: _Rows, config: TinyLm) -> dict[str, float]:
    """AdamW until the epochs or the seconds are used up. Returns epochs done, seconds and the recent mean loss."""
    optimiser = torch.optim.AdamW(llm.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    schedule = _Schedule(config)
    recent: deque[float] = deque(maxlen=20)
    llm.train()
    for done, input_ids, labels in rows.stream(config.epochs):
        rate = schedule.rate(done)
        if rate == 0 and recent:
            break
        optimiser.param_groups[0]["lr"] = rate
        recent.append(_step(llm, optimiser, input_ids, labels))
    else:
        done = 1.0
    return {
        "epochs": round(done * config.epochs, 2),
        "seconds": round(schedule.elapsed(), 1),
        "final_loss": round(sum(recent) / len(recent), 4),
    }


def _step(llm: LlamaForCausalLM, optimiser: torch.optim.Optimizer, input_ids: Tensor, labels: Tensor) -> float:
    mask = (input_ids != llm.config.pad_token_id).long()
    logits = llm(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
    optimiser.step()
    return loss.item()


class _Schedule:
    """Learning rate: warm-up and cosine over the epochs, or, where the clock will end them, a linear way down to 0.

    The clock is looked at only after CLOCK_FROM of the seconds, so a training that fits does not depend on it.
    """

    def __init__(self, config: TinyLm) -> None:
        self.config = config
        self.start = time.monotonic()
        self.falling: tuple[float, float] | None = None  # clock and rate when the linear way down began

    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def rate(self, done: float) -> float:
        """Rate at `done`, the part of the epochs that is behind; 0 when time is up."""
        clock = min(1.0, self.elapsed() / self.config.seconds)
        warm = min(1.0, done / WARMUP + 0.01)
        rate = self.config.lr * warm * (1 + math.cos(math.pi * done)) / 2
        if self.falling is None and clock > max(CLOCK_FROM, done):
            self.falling = (clock, rate)
        if self.falling is None:
            return rate
        began, peak = self.falling
        return peak * (1 - clock) / max(1 - began, 1e-9)


def _move_into_place(folder: Path, out: Path) -> None:
    """Rename, putting aside and then removing what is there."""
    old = Path(mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
    if out.exists():
        out.rename(old / out.name)
    folder.rename(out)
    shutil.rmtree(old)
