"""VLM-KG's training step: studies that share rows of the language model against padded batches of two, as in the paper.

One model, one run, the same studies in the same order: forward, backward and an AdamW step over a global batch. padded:
micro-batches of two, each padded to its longest (reports vary twentyfold in length); padded, larger: micro-batches of
ours, padded; ours: the same, in shared rows (`model.llm.packing`). Weights are random; reports and triples are strung
together from drawn sentences, so that their lengths vary as real ones do. On a GPU the sizes are Qwen1.5-0.5B's, the
mapper's k = n = 64 and bf16; on CPUs small ones. Films stand as vectors: the tower is frozen, its features streamed.

    python -m bench.vlmkg_step
"""

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from bench.ingest import machine
from jobs.cli import run
from r2kg.modules.config import Llm, TinyLm
from r2kg.modules.llm.packing import IGNORED
from r2kg.modules.llm.writer import ReportWriter
from r2kg.modules.tiny_lm import write_tiny_lm
from r2kg.systems.vlm_kg.config import Projector, VlmKgConfig
from r2kg.systems.vlm_kg.mapper import Mapper
from shards.graphs.text import triples_text

SENTENCES = (
    "the heart is mildly enlarged .", "no pleural effusion is seen .", "a small left pneumothorax is present .",
    "the lungs are clear .", "there is a device over the right chest .", "opacity at the left base may be edema .",
)  # fmt: skip
TRIPLES = (
    ("mildly", "modify", "enlarged"), ("enlarged", "located_at", "heart"), ("effusion", "located_at", "pleural"),
    ("small", "modify", "pneumothorax"), ("opacity", "suggestive_of", "atelectasis"), ("device", "located_at", "chest"),
    ("left", "modify", "base"), ("clear", "modify", "lungs"),
)  # fmt: skip
PADDED, LARGER, OURS = "padded, batches of two", "padded", "ours"


class Step(nn.Module):
    """Mapper and language model; the film is a vector."""

    def __init__(self, writer: ReportWriter, projector: Projector, channels: int) -> None:
        super().__init__()
        self.writer, self.mapper = writer, Mapper(projector, channels, writer.width)

    def forward(self, vectors: Tensor, reports: list[str], answers: list[str], packing: bool) -> tuple[Tensor, Tensor]:
        """Summed loss and the number of target tokens."""
        self.writer.config = self.writer.config.model_copy(update={"packing": packing})
        asked = self.writer.ask(reports, 400)
        ids, labels = self.writer.tokenize([*answers], 512)
        asked = type(asked)(*(one.to(vectors.device) for one in asked))
        ids, labels = ids.to(vectors.device), labels.to(vectors.device)
        return self.writer.loss(self.mapper(vectors), ids, labels, None, asked), (labels != IGNORED).sum()


def made(folder: Path, gpu: bool) -> Step:
    """The model at the paper's shapes, or small."""
    texts = [*SENTENCES, *(triples_text([triple]) for triple in TRIPLES)]
    lm = write_tiny_lm(texts * 4, folder / "lm", TinyLm(width=128, layers=2, heads=4, vocabulary=600, epochs=1), 0)
    if gpu:
        sizes = Qwen2Config(
            vocab_size=151_936, hidden_size=1024, intermediate_size=2816, num_hidden_layers=24,
            num_attention_heads=16, num_key_value_heads=16, tie_word_embeddings=True,
        )  # fmt: skip
        Qwen2ForCausalLM(sizes).to(torch.bfloat16).save_pretrained(lm)
    config = VlmKgConfig(llm=Llm(source=str(lm), tuning="full"))
    projector = Projector() if gpu else Projector(clip_length=8, prefix_length=8, layers=2, heads=4)
    return Step(ReportWriter(config.llm, config.frame), projector, 512)


def drawn(count: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Reports of one to twenty sentences, and triples of them."""
    reports, answers = list[str](), list[str]()
    for sentences in np.clip(rng.lognormal(1.6, 0.7, count).astype(int), 1, 20):
        picked = rng.integers(0, len(SENTENCES), sentences)
        reports.append(" ".join(SENTENCES[at] for at in picked))
        told = {TRIPLES[at] for at in rng.integers(0, len(TRIPLES), sentences)}
        answers.append(triples_text(sorted(told)))
    return reports, answers


def main(
    batch: Annotated[int, typer.Option(help="studies of an optimiser step")] = 32,
    micro: Annotated[int, typer.Option(help="studies of our micro-batch")] = 32,
    rounds: Annotated[int, typer.Option(help="steps of each contender")] = 8,
) -> None:
    """Measure; the last lines have the ratios of time, medians over rounds with the range."""
    gpu = torch.cuda.is_available()
    device, rng = torch.device("cuda" if gpu else "cpu"), np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        model = made(Path(folder), gpu)
    model.to(device, torch.bfloat16 if gpu else torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)  # all are measured at the same weights
    contenders: dict[str, tuple[int, bool]] = {PADDED: (2, False), LARGER: (micro, False), OURS: (micro, True)}
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    facts: dict[str, Any] = {name: np.zeros(2) for name in contenders}
    for number in range(rounds + 1):
        reports, answers = drawn(batch, rng)
        vectors = torch.tensor(rng.normal(size=(batch, 512)), dtype=torch.bfloat16 if gpu else torch.float32)
        losses = []
        for name, (size, packing) in contenders.items():
            model.writer.read = [0, 0]
            began = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            loss, tokens = torch.zeros((), device=device), 0
            for at in range(0, batch, size):
                here = slice(at, at + size)
                nll, count = model(vectors[here].to(device), reports[here], answers[here], packing)
                nll.backward()
                loss, tokens = loss + nll.detach(), tokens + count
            losses.append(float(loss / tokens))
            optimizer.step()
            if gpu:
                torch.cuda.synchronize()
            if number:  # the first round warms up
                taken[name].append(time.perf_counter() - began)
                facts[name] += model.writer.read
        print(f"losses {', '.join(f'{loss:.4f}' for loss in losses)}")
    if gpu:
        print(f"peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    print(f"{machine()}; {'paper' if gpu else 'small'} sizes, steps of {batch}")
    for name, those in taken.items():
        read, padding = facts[name]
        print(
            f"{name}: {batch * rounds / sum(those):.1f} studies/s, {read / sum(those):,.0f} tokens/s, padding "
            f"{100 * padding / (read + padding):.1f} % of the places"
        )
    for name in (PADDED, LARGER):
        ratios = [plain / ours for plain, ours in zip(taken[name], taken[OURS], strict=True)]
        words = name.replace(", ", "_").replace(" ", "_")
        print(f"{words}_to_ours={statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    run(main)
