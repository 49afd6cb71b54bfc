"""R2GenKG (arXiv 2508.03426): R2GenGPT's Swin and Llama-2 with a knowledge graph and disease queries beside the film.

The graph is that of the run's own training reports (`r2kg graph annotate`, `r2kg graph build`), since the authors' was
never released. Learning rate, schedule, batch, lengths and decoding are those of the released code. The paper's own
scores are not known; its base, R2GenGPT, is to be beaten.
"""

from r2kg.config.run import Run
from r2kg.modules.config import TextEncoder
from r2kg.recipes import r2gengpt
from r2kg.systems.r2genkg.parts import Graph, Queries


def chexpert_plus() -> Run:
    """CheXpert Plus findings, as released but for the vision-token bank; R2GenGPT: BLEU-4 .101, CE-F1 .260.

    One 40 GB GPU. `r2kg train r2genkg.chexpert_plus data.shards=DIR`
    """
    return _with_graph(r2gengpt.deep_chexpert_plus(), "chexpert-plus").change({"optim.lr": 9e-5})


def iu() -> Run:
    """IU X-Ray, as released but for graph and bank of CheXpert Plus; R2GenGPT: BLEU-4 .161."""
    changes = {"optim.lr": 9e-5, "train.global_batch": 6, "train.micro_batch": 6, "train.workers": 1}
    return _with_graph(r2gengpt.deep_iu(), "iu").change(changes | {"train.checkpoint_every": 345})


def tiny() -> Run:
    """Drawn films on a laptop: the same graph branch and queries at small sizes over r2gengpt.tiny.

    Two CPU workers, ZeRO-2, some minutes; `r2kg graph annotate` and `r2kg graph build` come first.
    """
    graph = Graph(
        sizes=(20, 40, 80), shown=1, text=TextEncoder(source="llm", pooling="mean"), width=128, hidden=64, places=160,
        fusion_layers=1, fusion_heads=4, heads=4, dropout=0.0,
    )  # fmt: skip
    queries = Queries(width=64, layers=2, heads=4, film_width=96)
    base = r2gengpt.tiny()
    model = base.model.model_copy(update={"graph": graph, "queries": queries})
    return base.model_copy(update={"name": "r2genkg-tiny", "model": model})


def _with_graph(base: Run, name: str) -> Run:
    """R2GenGPT's run with the graph branch and the queries at the paper's sizes."""
    model = base.model.model_copy(update={"graph": Graph(), "queries": Queries()})
    return base.model_copy(update={"name": f"r2genkg-{name}", "model": model})
