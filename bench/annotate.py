"""How fast rules annotate reports, beside the tokenizer that they stand on, and what part of it takes how long.

python -m bench.annotate [--shards DIR]
"""

import time
from typing import Annotated

import typer

from jobs.cli import run
from r2kg.graph.extract import rules
from shards.sources.phantom.source import Phantom
from shards.stream.index import read_studies


def main(
    studies: Annotated[int, typer.Option(help="drawn reports")] = 3000,
    rounds: Annotated[int, typer.Option(help="passes, the contenders in turn")] = 3,
    shards: Annotated[str, typer.Option(help="take the training reports of these instead")] = "",
) -> None:
    """Print reports a second of one process, and the ratio."""
    phantom = Phantom(studies=studies)
    drawn = (phantom.case(index)[2] for index in range(studies))
    reports = [study.report for study in read_studies(shards, "train")] if shards else list(drawn)
    language, _, _ = rules.matchers()
    extractor, times = rules.Rules(), {"spaCy's tokens and sentences": list[float](), "ours": list[float]()}
    for _ in range(rounds):
        for name, work in (
            ("spaCy's tokens and sentences", lambda: [[*language(report).sents] for report in reports]),
            ("ours", lambda: extractor.annotate(reports)),
        ):
            began = time.process_time()
            work()
            times[name].append(time.process_time() - began)
    words = sum(len(report.split()) for report in reports) / len(reports)
    print(f"{len(reports):,} reports of {words:.0f} words, CPU seconds of one process, best of {rounds}")
    for name, taken in times.items():
        print(f"{name:30} {len(reports) / min(taken):8,.0f} reports/s")
    print(f"tokens_to_ours={min(times['ours']) / min(next(iter(times.values()))):.2f}")


if __name__ == "__main__":
    run(main)
