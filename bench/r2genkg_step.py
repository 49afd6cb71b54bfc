"""R2GenKG's training step, ours against a plain one of equal sizes: time of its forward and backward ÷ time of ours.

The plain step has the cost structure of the released forward: every level through R-GCN and all of their nodes through
the fusion, reports padded to their longest allowed length, and logits over the whole prompt. It is measured in two
ways, as released with the graphs encoded once a forward, and with the graphs encoded for every study as a loop over
studies does it. Ours is the model as it is trained: reports padded to the longest of the batch, the head over report
tokens alone. Weights are random, films noise, reports drawn lengths; nothing is read from disk but the language
model's configuration. On a GPU it is done at the paper's sizes in bf16 (Llama-2-7b's shapes, Swin-B), on CPUs at small
ones.

    python -m bench.r2genkg_step
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from bench.ingest import machine
from jobs.cli import run
from r2kg.graph.levels import ARRAYS, FILE
from r2kg.modules.config import Llm, TinyLm, Vision
from r2kg.modules.tiny_lm import write_tiny_lm
from r2kg.recipes.r2gengpt import TINY_VISION
from r2kg.systems.r2genkg.config import R2GenKGConfig
from r2kg.systems.r2genkg.model import R2GenKG
from r2kg.systems.r2genkg.parts import Bank, Graph, Queries
from r2kg.systems.r2genkg.queries import CELLS
from r2kg.systems.r2genkg.queries import FILE as TOKENS

NODES, EDGES = (101, 206, 319, 400, 558), (106, 342, 623, 904, 1402)
"""Of the paper's five levels, and their triples."""
PER_LABEL, LABELS = 496, 14
PLAIN_STUDY, PLAIN, OURS = "plain, graphs for every study", "plain, graphs once a forward", "ours"


def make_model(folder: Path, paper: bool, report_tokens: int) -> R2GenKG:
    """The model over drawn levels and a drawn bank, at the paper's widths or at small ones, with as many nodes."""
    width, rng = 768 if paper else 64, np.random.default_rng(0)
    arrays: dict[str, Any] = {"features": rng.normal(size=(NODES[-1], width)).astype(np.float32)}
    for at, (nodes, edges) in enumerate(zip(NODES, EDGES, strict=True)):
        arrays |= {f"node.{at}": np.arange(nodes), f"edge_index.{at}": rng.integers(0, nodes, (2, edges))}
        arrays |= {f"edge_type.{at}": rng.integers(0, 3, edges)}
    names = [f"node {at}" for at in range(NODES[-1])]
    told = {"names": names, "thresholds": [1] * 5, "graph": "0" * 64, "studies": [[] for _ in names]}
    save_file(arrays, folder / ARRAYS)
    (folder / FILE).write_text(json.dumps(told))
    tokens = rng.normal(size=(PER_LABEL * LABELS, width)).astype(np.float32)
    save_file({"tokens": tokens}, folder / TOKENS)
    (folder / CELLS).write_text(json.dumps([["drawn", ""]] * len(tokens)))
    lm = write_tiny_lm(["the heart is large ."] * 8, folder / "lm", TinyLm(width=64, layers=2, heads=2, epochs=1), 0)
    if paper:
        sizes = LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
        LlamaForCausalLM(sizes).to(torch.bfloat16).save_pretrained(lm)
    small = {"hidden": 32, "fusion_layers": 2, "fusion_heads": 8, "heads": 8}
    queries = {"width": 64, "layers": 4, "heads": 4, "film_width": 96}
    config = R2GenKGConfig(
        vision=Vision(weights="random") if paper else TINY_VISION,
        graph=Graph(levels_at=str(folder), width=width, **({} if paper else small)),
        queries=Queries(bank=Bank(tokens_at=str(folder)), **({} if paper else queries)),
        llm=Llm(source=str(lm)),
        report_tokens=report_tokens,
    )
    torch.manual_seed(0)
    return R2GenKG(config)


def drawn_batch(model: R2GenKG, studies: int, most: int, generator: torch.Generator) -> dict[str, Any]:
    """Noise for films; reports of CheXpert Plus' lengths (about 60 words, some cut at `most` tokens)."""
    side = model.config.vision.image_px
    lengths = (torch.randn(studies, generator=generator) * 0.35 * most + 0.6 * most).clamp(8, most).long()
    ids = torch.randint(300, (studies, int(lengths.max())), generator=generator)
    labels = ids.masked_fill(torch.arange(ids.shape[1]) >= lengths[:, None], -100)
    images = torch.randint(256, (studies, 1, side, side), generator=generator, dtype=torch.uint8)
    mask = torch.ones(studies, 1, dtype=torch.bool)
    return {"images": images, "view_mask": mask, "input_ids": ids, "labels": labels}


def plain_loss(model: R2GenKG, batch: dict[str, Any], most: int, each: bool) -> Tensor:
    """The same objective in the released order of work; `each`: graphs are encoded for every study."""
    film, _ = model.vision.see(batch, model.projection.weight.dtype)
    assert model.graph and model.queries
    tokens = model.graph.tokens
    assert tokens.fusion
    graphs = list[Tensor]()
    for _ in range(len(film) if each else 1):
        states = [tokens.states(tokens.features.to(film.dtype), number) for number in range(len(NODES))]
        graphs.append(tokens.project(tokens.fusion(states).split(NODES)[tokens.config.shown]))
    graph = torch.stack(graphs).expand(len(film), -1, -1)
    assert model.graph.g2i and model.graph.i2g
    shown, answer = model.graph.g2i(graph, film)[0], model.graph.i2g(film, graph)[0]
    states = model.queries(film, None)[0]
    soft = model.norm(model.projection(torch.cat((film, shown, answer, states), 1)))
    writer, pad = model.writer, most - batch["input_ids"].shape[1]
    ids, labels = F.pad(batch["input_ids"], (0, pad)), F.pad(batch["labels"], (0, pad), value=-100)
    prompt = writer.prompt(soft)
    embeds = torch.cat((prompt, writer.llm.get_input_embeddings()(ids)), 1)
    there = torch.cat((torch.ones(prompt.shape[:2], device=ids.device), (labels != -100).float()), 1).long()
    logits = writer.llm(inputs_embeds=embeds, attention_mask=there, use_cache=False).logits.float()  # of every place
    targets = torch.cat((torch.full(prompt.shape[:2], -100, device=ids.device), labels), 1)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100)


def our_loss(model: R2GenKG, batch: dict[str, Any]) -> Tensor:
    """What the loop minimises."""
    (term,) = model.loss(batch).values()  # type: ignore[arg-type]
    return term.sum / max(1.0, term.count)


def seconds(work: Callable[[], Tensor], model: nn.Module, gpu: bool) -> tuple[float, float]:
    """Time of a forward and backward, and the loss."""
    model.zero_grad(set_to_none=True)
    if gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    loss = work()
    loss.backward()
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began, float(loss.detach())


def main(
    studies: Annotated[int, typer.Option(help="of a micro-batch; the paper's is 6")] = 6,
    report_tokens: Annotated[int, typer.Option(help="longest report")] = 100,
    rounds: Annotated[int, typer.Option(help="rounds of all three")] = 12,
    profile: Annotated[bool, typer.Option(help="print where our step's time goes")] = False,
) -> None:
    """Measure; the last line has the ratios, medians over rounds with the range."""
    gpu = torch.cuda.is_available()
    device, generator = torch.device("cuda" if gpu else "cpu"), torch.Generator().manual_seed(0)
    with TemporaryDirectory() as folder:
        model = make_model(Path(folder), gpu, report_tokens)
    if gpu:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    model.to(device).train()
    ratios: dict[str, list[float]] = {PLAIN_STUDY: [], PLAIN: []}
    for number in range(rounds + 1):
        batch = {
            name: value.to(device) for name, value in drawn_batch(model, studies, report_tokens, generator).items()
        }
        works = {
            PLAIN_STUDY: lambda batch=batch: plain_loss(model, batch, report_tokens, True),
            PLAIN: lambda batch=batch: plain_loss(model, batch, report_tokens, False),
            OURS: lambda batch=batch: our_loss(model, batch),
        }
        taken = {name: seconds(work, model, gpu) for name, work in works.items()}
        if number:  # the first round warms up
            for name, those in ratios.items():
                those.append(taken[name][0] / taken[OURS][0])
            print(", ".join(f"{name} {1000 * each:.0f} ms (loss {loss:.3f})" for name, (each, loss) in taken.items()))
    if profile:
        kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if gpu else [])]
        with torch.profiler.profile(activities=kinds) as traced:
            our_loss(model, batch).backward()
        print(traced.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=15))
    if gpu:
        print(f"peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    print(f"{machine()}; {'paper' if gpu else 'small'} sizes, {studies} studies, {sum(NODES)} nodes")
    for name, those in ratios.items():
        words = name.replace(", ", "_").replace(" ", "_")
        print(f"{words}={statistics.median(those):.2f} ({min(those):.2f}-{max(those):.2f})")


if __name__ == "__main__":
    run(main)
