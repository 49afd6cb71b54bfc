"""Our ConText beside medSpaCy's, on the same mentions: what the one denies the other should."""

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from r2kg.graph.extract.lexicon import spellings
from r2kg.graph.extract.rules import Rules
from shards.sources.phantom.source import Phantom

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif("R2KG_MEDSPACY" not in os.environ, reason="R2KG_MEDSPACY names no python with medSpaCy"),
]


def drawn() -> list[str]:
    phantom = Phantom(studies=400)
    return [phantom.case(index)[2] for index in range(400)]


def real() -> list[str]:
    if "R2KG_REAL_DATA" not in os.environ:
        pytest.skip("R2KG_REAL_DATA is not set: no real reports")
    listing = json.loads((Path(os.environ["R2KG_REAL_DATA"]) / "iu_xray" / "annotation.json").read_text())
    return [entry["report"] for entry in listing["train"]]


@pytest.mark.parametrize(("reports", "least"), [(drawn, 0.9), (real, 0.98)], ids=["drawn", "real"])
def test_what_is_denied_is_denied_for_both(reports, least):
    """Most of what differs is medSpaCy's to mend: "interval resolution of", "no change in", "no visible"."""
    texts = reports()
    terms = [spelling for spelling, (_, kind) in spellings().items() if kind in ("disorder", "device")]
    ended = subprocess.run(
        [os.environ["R2KG_MEDSPACY"], Path(__file__).with_name("medspacy_oracle.py")],
        input=json.dumps({"terms": terms, "texts": texts}), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    pairs = Counter[tuple[str, str]]()
    for annotation, theirs in zip(Rules().annotate(texts), json.loads(ended.stdout.splitlines()[-1]), strict=True):
        said = {(start, end): certainty for start, end, certainty in theirs}
        ours = {(entity.start, entity.end): entity.certainty for entity in annotation.entities}
        pairs.update((ours[place], said[place]) for place in ours.keys() & said.keys())
    same = sum(count for (a, b), count in pairs.items() if (a == "absent") == (b == "absent"))
    print(f"{same / pairs.total():.4f} of {pairs.total():,}: {dict(pairs)}")
    assert pairs.total() > 1000 and same / pairs.total() >= least
