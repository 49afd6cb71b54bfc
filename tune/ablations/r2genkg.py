"""R2GenKG's parts one by one, and whether the graph matters.

The paper's own ablations are not known; these follow the switches of the released code, and add controls that none of
the published systems shows: the same model with a graph that says nothing, or with another study's.
"""

from collections.abc import Callable
from typing import Any

from r2kg.config.run import Run
from shards.errors import ConfigError

BASE = "r2genkg.chexpert_plus"


def _scale(number: int) -> Callable[[Run], dict[str, Any]]:
    """One level alone, counted from 1."""

    def changes(base: Run) -> dict[str, Any]:
        graph: Any = base.model.graph  # type: ignore[attr-defined]
        field = "thresholds" if graph.thresholds else "sizes"
        if number > len(levels := getattr(graph, field)):
            raise ConfigError(f"{base.name} has {len(levels)} levels: there is no scale-{number} of it")
        return {f"model.graph.{field}": [levels[number - 1]], "model.graph.shown": 0}

    return changes


ABLATIONS: dict[str, tuple[str, dict[str, Any] | Callable[[Run], dict[str, Any]]]] = {
    "full": ("all of it", {}),
    "base": ("neither graph nor queries: R2GenGPT", {"model.graph": None, "model.queries": None}),
    "no-graph": ("queries and bank without the graph", {"model.graph": None}),
    **{f"scale-{n}": (f"level {n} alone, the smallest being 1", _scale(n)) for n in range(1, 6)},
    "all-levels": ("all levels are shown, as the figure has it", {"model.graph.fusion": "paper"}),
    "i2g": ("the film asks the graph, not the other way round", {"model.graph.g2i": False}),
    "g2i": ("the graph asks the film, not the other way round", {"model.graph.i2g": False}),
    "no-queries": ("queries ask the bank and are not shown themselves", {"model.queries.shown": False}),
    "no-bank": ("queries without the bank", {"model.queries.bank": None}),
    "bank-300": ("300 tokens of a finding at most", {"model.queries.bank.per_label": 300}),
    "bank-500": ("500 tokens of a finding at most", {"model.queries.bank.per_label": 500}),
    "lora": ("adapters on the language model", {"model.llm.tuning": "lora"}),
    "frozen": ("the language model as it is", {"model.llm.tuning": "frozen"}),
    "film": ("each film's own part of the graph in place of levels", {"model.graph.source": "film"}),
    "both": ("levels and each film's own part", {"model.graph.source": "both"}),
    "film-words": ("its best triples in words too", {"model.graph.source": "film", "model.graph.text_triples": 12}),
    "control-empty": ("as many nodes, without features or edges", {"model.graph.control": "empty"}),
    "control-edges": ("the tails of all edges dealt out anew", {"model.graph.control": "edges"}),
    "control-features": ("nodes have one another's features", {"model.graph.control": "features"}),
    "control-film": (
        "in place of each film's own part another study's",
        {"model.graph.source": "film", "model.graph.control": "film"},
    ),
}
"""Name → what it asks; what it changes of its base."""

OTHERS: dict[str, tuple[float, ...]] = {
    "R2Gen": (0.081, 0.246, 0.113, 0.077),
    "R2GenCMN": (0.087, 0.256, 0.127, 0.102),
    "XProNet": (0.100, 0.265, 0.146, 0.121),
    "ORGan": (0.086, 0.261, 0.135, 0.107),
    "Token-Mixer": (0.091, 0.261, 0.135, 0.098),
    "PromptMRG": (0.095, 0.222, 0.121, 0.044),
    "R2GenGPT": (0.101, 0.266, 0.145, 0.123),
    "R2GenCSR": (0.100, 0.265, 0.146, 0.121),
    "MambaXray-VL-B": (0.105, 0.267, 0.149, 0.117),
    "MambaXray-VL-L": (0.112, 0.276, 0.157, 0.139),
}
"""System → BLEU-4, ROUGE-L, METEOR and CIDEr on CheXpert Plus by CXPMRG-Bench, which R2GenKG compares itself with."""

R2GENGPT_IU = (0.465, 0.299, 0.214, 0.161, 0.219, 0.376, 0.542)
"""BLEU-1..4, METEOR, ROUGE-L and CIDEr of R2GenGPT on IU X-Ray, as the same group's tables have them."""
