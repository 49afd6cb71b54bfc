"""The small causal LM that stands in for a hub model: tokenizer and weights both trained on the training reports.

Half of the rows are framed as the film's prompt is, so that reports are expected after it. Frozen, so small a model can
hardly be steered by soft tokens: train it along with the encoder (model.llm.tuning=full, or lora).
"""

import json
import math
import shutil
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from tempfile import mkdtemp

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from r2kg.config.needs import Artefact
from r2kg.config.run import Run
from r2kg.modules.config import PROMPT, TinyLm
from r2kg.modules.hub import weight_hashes
from r2kg.modules.llm.packing import IGNORED
from r2kg.modules.llm.writer import frame
from shards.errors import DataError
from shards.stream.index import read_targets
from shards.tars.format import Manifest

CARD = "tiny_lm.json"
"""File beside the weights: reports, epochs, final_loss, fingerprint; nothing that differs from one time to the next."""
BATCH_TOKENS = 800
"""Tokens per optimiser step, padding included."""
WARMUP = 0.05
"""Part of the epochs over which the learning rate rises."""


def write_tiny_lm(reports: Iterable[str], out: Path, config: TinyLm, seed: int, instruction: str = PROMPT) -> Path:
    """Train tokenizer and model on `reports` and save them as a Hugging Face directory (safetensors) with a card.

    It holds the wording of the reports: keep it where the reports may be kept. A directory already at `out` is
    replaced, at once. With the same reports, seed and thread count the result is the same.

    Args:
        reports: cleaned reports of the training split.
        out: directory to make.
        config: sizes and epochs.
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
        llm, final_loss = _train(texts, tokenizer, instruction, config, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card = {"reports": len(texts), "epochs": config.epochs, "final_loss": final_loss}
    (folder / CARD).write_text(json.dumps({**card, "fingerprint": weight_hashes(folder)}, indent=2) + "\n")
    replaced = Path(mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
    if out.exists():
        out.rename(replaced / out.name)
    folder.rename(out)
    shutil.rmtree(replaced)
    return out


def artefact(config: TinyLm, run: Run, manifest: Manifest, prompt: str, into: str) -> Artefact:
    """The LM that stands in for a hub model, as what a run needs made; `into` is the field that gets its directory."""

    def make(folder: Path) -> None:
        unread: dict[str, str] | None = {} if run.data.on_bad == "skip" else None
        write_tiny_lm(read_targets(run.data.shards, "train", unread), folder, config, run.train.seed, prompt)

    return Artefact(
        name="tiny-lm",
        settings={
            "shards": manifest.fingerprint, "config": config.model_dump(), "seed": run.train.seed, "prompt": prompt
        },
        make=make,
        into=into,
        sentence=f"Training a small language model on {manifest.splits['train'].studies:,} reports",
    )  # fmt: skip


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


def _epoch_batches(
    reports: list[list[int]],
    tokenizer: PreTrainedTokenizerFast,
    instruction: str,
    number: int,
    random: torch.Generator,
) -> list[tuple[Tensor, Tensor]]:
    """Every report (token ids) once, in shuffled batches of input_ids and labels, int64 [rows, tokens].

    Half of the reports are framed as the prompt is, in the next epoch the other half. Rows are batched by length, so
    that little is padding. Neither the prompt nor padding is a target.
    """
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    before, after = tokenizer(list(frame(instruction)), add_special_tokens=False).input_ids
    prompts = [bos, *before, *after], [bos]
    rows = []
    for i, report in enumerate(reports):
        prompt = prompts[(i + number) % 2]
        rows.append(([*prompt, *report, eos], len(prompt)))
    rows.sort(key=lambda row: len(row[0]))
    batches: list[list[tuple[list[int], int]]] = [[]]
    for row in rows:
        if batches[-1] and (len(batches[-1]) + 1) * len(row[0]) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(row)
    padded = []
    for batch in batches:
        longest = len(batch[-1][0])
        input_ids = [ids + [pad] * (longest - len(ids)) for ids, _ in batch]
        labels = [[IGNORED] * skip + ids[skip:] + [IGNORED] * (longest - len(ids)) for ids, skip in batch]
        padded.append((torch.tensor(input_ids), torch.tensor(labels)))
    return [padded[i] for i in torch.randperm(len(padded), generator=random)]


def _train(
    texts: list[str], tokenizer: PreTrainedTokenizerFast, instruction: str, config: TinyLm, seed: int
) -> tuple[LlamaForCausalLM, float]:
    """A new model after config.epochs of AdamW with warm-up and cosine, and the mean loss of its last 20 steps."""
    llm = LlamaForCausalLM(
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
    reports = tokenizer(texts, add_special_tokens=False).input_ids
    random = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(llm.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    recent: deque[float] = deque(maxlen=20)
    llm.train()
    for number in range(config.epochs):
        batches = _epoch_batches(reports, tokenizer, instruction, number, random)
        for i, (input_ids, labels) in enumerate(batches):
            done = (number + i / len(batches)) / config.epochs
            warm = min(1.0, done / WARMUP + 0.01)
            optimiser.param_groups[0]["lr"] = config.lr * warm * (1 + math.cos(math.pi * done)) / 2
            mask = input_ids.ne(tokenizer.pad_token_id).long()
            logits = llm(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
            optimiser.step()
            recent.append(loss.item())
    return llm, round(sum(recent) / len(recent), 4)
