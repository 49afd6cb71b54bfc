"""R2GenKG (arXiv 2508.03426): R2GenGPT's Swin and Llama-2 with a knowledge graph, disease queries and a bank.

Graph and vision-token bank are those of the run's own training split (`r2kg graph annotate`, `build`, `bank`), since
the authors' were never released. Learning rate, schedule, batch, lengths and decoding are those of the released code.
The paper's own scores are not known; its base, R2GenGPT, is to be beaten.
"""

from r2kg.config.run import Run
from r2kg.modules.config import TextEncoder
from r2kg.recipes import r2gengpt
from r2kg.systems.r2genkg.parts import Bank, Graph, Queries

LAYER = "Qformer.bert.encoder.layer.*"
BLIP2: dict[str, str | None] = {
    "*": None,
    "Qformer.bert.embeddings.LayerNorm": "queries.qformer.layernorm",
    "Qformer.bert.encoder": "queries.qformer.encoder",
    f"{LAYER}.attention.self": "queries.qformer.encoder.layer.*.attention.attention",
    f"{LAYER}.crossattention.self": "queries.qformer.encoder.layer.*.crossattention.attention",
    f"{LAYER}.intermediate": None,
    f"{LAYER}.output": None,
}
"""Names of LAVIS's BLIP-2 → names here: its Q-Former without the text's feed-forward layers and its 32 queries."""


def chexpert_plus() -> Run:
    """CheXpert Plus findings, as released; its base R2GenGPT: BLEU-4 .101, CE-F1 .260.

    One 40 GB GPU. `r2kg train r2genkg.chexpert_plus data.shards=DIR`; the released run also has the Q-Former begin as
    BLIP-2's, with train.init_from=blip2_pretrained_flant5xxl.pth, whose names `train.init_map` knows.
    """
    return _with_graph(r2gengpt.deep_chexpert_plus(), "chexpert-plus").change({"optim.lr": 9e-5})


def iu() -> Run:
    """IU X-Ray, as released but for graph and bank of CheXpert Plus; R2GenGPT: BLEU-4 .161."""
    changes = {"optim.lr": 9e-5, "train.global_batch": 6, "train.micro_batch": 6, "train.workers": 1}
    return _with_graph(r2gengpt.deep_iu(), "iu").change(changes | {"train.checkpoint_every": 345})


def mimic_cxr() -> Run:
    """MIMIC-CXR findings, which the authors had no script for: R2GenGPT's batch and epochs there, R2GenKG's rate.

    Four 40 GB GPUs. `r2kg train r2genkg.mimic_cxr data.shards=DIR`
    """
    return _with_graph(r2gengpt.deep_mimic_cxr(), "mimic-cxr").change({"optim.lr": 9e-5})


def lora() -> Run:
    """CheXpert Plus with adapters (r=16, alpha=16, dropout .1) on Llama-2's query and value, an option there."""
    return chexpert_plus().change({"name": "r2genkg-lora", "model.llm.tuning": "lora"})


def tiny() -> Run:
    """Drawn films on a laptop: the same graph branch, queries and bank at small sizes over r2gengpt.tiny.

    Two CPU workers, ZeRO-2, some minutes; `r2kg graph annotate`, `build` and `bank --width 64` come first.
    """
    graph = Graph(
        sizes=(10, 20, 40), shown=1, text=TextEncoder(source="llm", pooling="mean"), width=128, hidden=64, places=160,
        fusion_layers=1, fusion_heads=4, heads=4, dropout=0.0,
    )  # fmt: skip
    queries = Queries(width=64, layers=2, heads=4, film_width=96, bank=Bank(per_label=60))
    base = r2gengpt.tiny()
    model = base.model.model_copy(update={"graph": graph, "queries": queries})
    return base.model_copy(update={"name": "r2genkg-tiny", "model": model})


def tiny_iu() -> Run:
    """IU X-Ray in R2Gen's form on a laptop: graph of the rules, MiniLM's node features, over r2gengpt.tiny_iu.

    `pip install r2kg[weights]`. About 10 minutes on two CPU cores once the features are there:

        r2kg shard iu_xray --raw iu_xray --out iu
        r2kg features r2genkg.tiny_iu data.shards=iu
        r2kg graph annotate iu
        r2kg graph build iu
        r2kg graph films iu --nodes 24 --triples 48
        r2kg train r2genkg.tiny_iu data.shards=iu data.features=iu/side/features-tf_efficientnet_lite0

    The queries have no bank: a classifier learns from labels of findings, and IU X-Ray in R2Gen's form has none. Film
    and graph meet at 128 channels, since two blocks of the encoder's 1,280 would be 39 M parameters for 672 reports.
    `python -m bench.real_films IU_XRAY --recipe r2genkg.tiny_iu` does all of it and says what it is worth.
    """
    graph = Graph(
        source="both", sizes=(20, 40, 80), shown=1, text=TextEncoder(source="package:all-minilm-l6-v2", pooling="mean"),
        width=384, hidden=96, places=160, fusion_layers=1, fusion_heads=4, heads=4, attention_width=128, dropout=0.0,
    )  # fmt: skip
    base = r2gengpt.tiny_iu()
    queries = Queries(width=64, layers=2, heads=4, film_width=96)
    model = base.model.model_copy(update={"graph": graph, "queries": queries})
    return base.model_copy(update={"name": "r2genkg-tiny-iu", "model": model})


def _with_graph(base: Run, name: str) -> Run:
    """R2GenGPT's run with the graph branch and the queries at the paper's sizes."""
    model = base.model.model_copy(update={"graph": Graph(), "queries": Queries(bank=Bank())})
    train = base.train.model_copy(update={"init_map": BLIP2})
    return base.model_copy(update={"name": f"r2genkg-{name}", "model": model, "train": train})
