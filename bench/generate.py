"""What a second writer gains: studies written per second by two over those by one, on two cores.

Both write the same split with the same weights in one Ray session, in turn; only ratios within a round are compared,
since machines are shared. The speed is taken from the first block's file to the last one's; the start of the actors,
which two do at once, is told beside it. The model is the tiny recipe's, its weights random.

    python -m bench.generate
"""

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer

from bench.ingest import machine, start_ray
from jobs.cli import run as run_job
from r2kg.modules.config import TinyLm
from r2kg.modules.tiny_lm import write_tiny_lm
from r2kg.recipes import find_recipe
from r2kg.rundir import RunFiles
from r2kg.scoring.writing.writer import write_reports
from r2kg.systems.contract import build_model, stored
from r2kg.training.checkpoint import write_checkpoint
from shards.sources.phantom.source import Phantom
from shards.stream.index import Index, read_targets
from shards.tars.shards import write_shards


def main(
    studies: Annotated[int, typer.Option(help="studies to draw; seven in ten are written about")] = 1200,
    rounds: Annotated[int, typer.Option(help="how often each writes")] = 3,
) -> None:
    """Print seconds of one and of two writers by round, and the median ratio."""
    print(machine())
    start_ray(2)
    with TemporaryDirectory() as folder:
        shards, root = Path(folder) / "shards", Path(folder) / "runs"
        write_shards(Phantom(studies=studies, size=128), shards, size=128, studies_per_shard=64)
        lm = write_tiny_lm(read_targets(shards, "train"), Path(folder) / "lm", TinyLm(epochs=1), seed=0)
        changes = {"root": str(root), "data.shards": str(shards), "model.llm.source": str(lm)}
        run = find_recipe("r2gengpt.tiny").change(changes | {"train.cpus_per_worker": 0.7})
        RunFiles(run.directory).begin(run)
        torch.manual_seed(run.train.seed)  # as a writer does: what is frozen must be the same
        model = build_model(run.model)
        weights = {name: value.detach() for name, value in stored(model).items()}
        state = {"step": 1, "frozen": model.fingerprint()}
        checkpoint = write_checkpoint(run.directory, weights, state, 0, 1, lambda mine: [mine])
        index, ratios = Index.open(str(shards), "train"), []
        for number in range(rounds):
            speed, said = dict[int, float](), list[str]()
            for writers in (1, 2) if number % 2 else (2, 1):
                began, parts = time.time(), root / f"parts-{number}-{writers}"
                write_reports(run, index, "synthetic", checkpoint, writers, parts)
                ended = sorted(file.stat().st_mtime for file in parts.glob("part-*"))
                speed[writers] = len(index) * (1 - writers / len(ended)) / (ended[-1] - ended[0])
                said.append(f"{writers}: {speed[writers]:.1f} studies/s after a start of {ended[0] - began:.1f} s")
            ratios.append(speed[2] / speed[1])
            print(f"round {number}: {'; '.join(said)}; ratio {ratios[-1]:.2f}")
        print(f"{len(index)} studies, ratio_two_writers={statistics.median(ratios):.2f}")


if __name__ == "__main__":
    run_job(main)
