"""Seconds to score as many reports as MIMIC-CXR's test split has, with intervals and without Java, and pycocoevalcap's.

Reports are drawn; a prediction is the report of its study in which sentences are left out or come from another study,
so that some words are right. Contenders take turns, and only ratios within a round are compared: machines are shared.

    python -m bench.scoring
"""

import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from bench.ingest import machine
from jobs.cli import run
from r2kg.scoring.evaluate import evaluate
from r2kg.scoring.metrics.nlg import bleu, cider_d, rouge_l
from shards.clean import clean
from shards.sources.phantom.source import Phantom

CLEANING = "clean-1"


def pairs(studies: int) -> tuple[list[str], list[str]]:
    """References, and hypotheses with noise."""
    random, phantom = np.random.default_rng(0), Phantom(studies=studies)
    reports = [phantom.case(index)[2] for index in range(studies)]
    said = []
    for report in reports:
        kept = [one for one in report.split(". ") if random.random() > 0.3]
        other = reports[random.integers(studies)].split(". ")
        said.append(". ".join([*kept, *(one for one in other if random.random() < 0.3)]))
    return [clean(CLEANING, report) for report in reports], [clean(CLEANING, text) for text in said]


def ours(references: list[str], hypotheses: list[str]) -> dict[str, float]:
    """BLEU, ROUGE-L and CIDEr-D of this project."""
    means = {"rouge_l": rouge_l(references, hypotheses).mean(), "cider_d": cider_d(references, hypotheses).mean()}
    return bleu(references, hypotheses) | {name: float(value) for name, value in means.items()}


def coco(references: list[str], hypotheses: list[str]) -> dict[str, float]:
    """The same of pycocoevalcap."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    wanted, said = ({at: [text] for at, text in enumerate(side)} for side in (references, hypotheses))
    with contextlib.redirect_stdout(io.StringIO()):
        by_order = Bleu(4).compute_score(wanted, said, verbose=0)[0]
    scores = {f"bleu{n}": float(value) for n, value in enumerate(by_order, start=1)}
    scores["rouge_l"] = float(Rouge().compute_score(wanted, said)[0])
    return scores | {"cider_d": float(Cider().compute_score(wanted, said)[0])}


def seconds(work: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """How long a call took, and what it gave."""
    began = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - began, result


def main(
    studies: Annotated[int, typer.Option(help="drawn reports")] = 3_858,
    rounds: Annotated[int, typer.Option(help="passes, the contenders in turn")] = 3,
) -> None:
    """Print seconds of a whole `evaluate` under one protocol with both floors, and the ratio to pycocoevalcap."""
    references, hypotheses = pairs(studies)
    os.environ["PATH"] = ""  # no Java
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.jsonl"
        for name, texts in (("predictions", hypotheses), ("shuffled", hypotheses[1:] + hypotheses[:1])):
            lines = [
                {"id": str(at), "patient": str(at // 2), "split": "test", "prediction": text, "reference": reference}
                for at, (text, reference) in enumerate(zip(texts, references, strict=True))
            ]
            path.with_name(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        context = {"cleaning": CLEANING, "task": "report", "floor": {"full-text": references[0]}}
        path.with_name("context.json").write_text(json.dumps(context))
        whole = [seconds(evaluate, path, ["full-text"])[0] for _ in range(rounds)]
    turns = [(seconds(ours, references, hypotheses), seconds(coco, references, hypotheses)) for _ in range(rounds)]
    for (_, found), (_, wanted) in turns:
        assert all(abs(found[name] - wanted[name]) < 1e-9 for name in wanted), (found, wanted)
    print(f"{machine()}; {studies:,} reports, {sum(len(text.split()) for text in references) / studies:.0f} words each")
    print(f"evaluate, one protocol, floor, shuffled and intervals: {statistics.median(whole):.1f} s "
          f"({min(whole):.1f}-{max(whole):.1f})")  # fmt: skip
    for name, at in (("ours", 0), ("pycocoevalcap", 1)):
        taken = [turn[at][0] for turn in turns]
        print(f"{name}: {statistics.median(taken):.2f} s ({min(taken):.2f}-{max(taken):.2f})")
    ratios = [theirs[0] / own[0] for own, theirs in turns]
    print(f"coco_to_ours={statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    run(main)
