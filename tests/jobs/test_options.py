"""Options of `r2kg graph` that have no effect beside others are refused before anything is read."""

import pytest

from jobs.graph import annotate, bank, build, evaluate, learn, matrix
from shards.errors import ConfigError

IDLE = {
    "--pooling, --width, --seed would have no effect beside --classifier": (
        matrix, {"classifier": "run", "pooling": "cls", "width": 512, "seed": 0},
    ),
    "--checkpoint, --actors, --wait-minutes, --on-bad would have no effect beside --text": (
        matrix, {"text": "encoder", "checkpoint": "best", "actors": 1, "wait_minutes": 0.0, "on_bad": "skip"},
    ),
    "--cell, --checkpoint, --least, --seed, --replace would have no effect without --classifier, where a bank is": (
        bank, {"show": "sheets", "checkpoint": "last", "cell": 16, "least": 0.0, "seed": 0, "replace": True},
    ),
    "--pooling would have no effect without --synonyms": (build, {"pooling": "cls"}),
    "--annotations would have no effect beside --radgraph": (learn, {"out": "x", "radgraph": "f", "annotations": "a"}),
    "--endpoint, --model would have no effect beside --extractor rules": (
        annotate, {"endpoint": "http://x", "model": "m"},
    ),
    "--concurrency would have no effect beside --extractor rules": (annotate, {"options": ["concurrency=3"]}),
    "--allow-host would have no effect beside --extractor ner-re": (
        annotate, {"extractor": "ner-re", "model": "m", "allow_host": ["h"]},
    ),
    "--cache would have no effect beside --extractor rules": (evaluate, {"cache": "answers"}),
}  # fmt: skip


@pytest.mark.parametrize("told", IDLE)
def test_what_would_be_ignored_is_refused(told, phantom_shards):
    job, options = IDLE[told]
    with pytest.raises(ConfigError, match=f"{told}.*: leave out what is not meant"):
        job(str(phantom_shards), **options)
