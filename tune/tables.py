"""Tables of the papers as code: rows that are runs, the papers' figures beside them, and how to try each on a laptop.

`r2kg sweep TABLE` trains and scores the rows over seeds, `r2kg table TABLE` writes what came out beside the figures.
The tiny variant of a table asks the same of drawn films at small sizes: it shows that the way works, and no more.
"""

import difflib
from typing import Any

from shards.errors import ConfigError
from tune.ablations import cknet as cknet_rows
from tune.ablations import r2genkg as r2genkg_rows
from tune.ablations import vlm_kg as vlm_rows
from tune.rows import Row, Table

BLEU_ROUGE = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l")
"""In the order of VLM-KG's tables."""
STUDIES = 400
"""Drawn for a tiny table: 280 to train on, 60 to score."""
CLASSIFIED = {"train.init_from": "demo-classifier@best", "train.init_map": {"*": None, "vision": "vision"}}
"""Begin with the encoder of the classifier that the bank is cut by: the papers' have seen films before."""
NODES = {"train.init_from": "gcn-kg40-train@best", "train.init_map": {"*": None, "vision": "vision"}}
"""Begin with the encoder of the classifier that the knowledge matrix is made by."""


def _cknet(name: str, recipe: str, of: str) -> Table:
    names = {"base": "Base", "men": "+MEN", "full": "+CKNet"}
    figures = cknet_rows.PAPER[of]
    return Table(
        name=name,
        shows="does CKNet's matrix add to Base, and more than as many vectors that mean nothing (Table IV)?",
        recipes=(f"cknet.{recipe}", "cknet.tiny"),
        rows=tuple(Row(label, ablation, paper=figures[ablation]) for ablation, label in names.items()),
        **_TINY_CKNET,
    )


_TINY_CKNET: dict[str, Any] = {
    "needs": ("cknet",),
    "tiny": {"train.steps": 120, "train.checkpoint_every": 60},
    "begin": NODES,
}
_TINY_VLM: dict[str, Any] = {
    "tiny": {"train.steps": 100, "train.checkpoint_every": 50},
    "metrics": BLEU_ROUGE,
    "scale": 0.01,
}


def _vlm_1(name: str, of: str) -> Table:
    figures = vlm_rows.PAPER["Table 1"]
    llm = (f"vlm_kg.llm_{of}", "vlm_kg.llm_tiny")
    return Table(
        name=name,
        shows="what does the film add to the report, and to RadGraph's extractor (Table 1)?",
        recipes=(f"vlm_kg.{of}", "vlm_kg.tiny"),
        rows=(
            Row("LLM-KG", recipes=llm, paper=figures[f"vlm_kg.llm_{of}"]),
            Row("VLM-KG", paper=figures[f"vlm_kg.{of}"]),
        ),
        others={"DyGIE++": figures["DyGIE++"]},
        first=llm,
        **_TINY_VLM,
    )


def _vlm_3_row(n: int, k: int) -> Row:
    sizes = {"model.mapper.prefix_length": n // 8, "model.mapper.clip_length": k // 8}
    return Row(f"n={n}, k={k}", f"n{n}-k{k}", paper=vlm_rows.PAPER["Table 3"][f"n{n}-k{k}"], tiny=sizes)


_ROWS_R2GENKG: tuple[Row, ...] = (
    Row("R2GenGPT (base)", "base", paper=r2genkg_rows.OTHERS["R2GenGPT"]),
    Row("R2GenKG"),
    Row("no graph", "no-graph"),
    *(Row(f"level {n} alone", f"scale-{n}", tiny={} if n < 4 else None) for n in range(1, 6)),
    Row("all levels shown", "all-levels"),
    Row("film asks graph", "i2g"),
    Row("graph asks film", "g2i"),
    Row("no queries", "no-queries"),
    Row("no bank", "no-bank"),
    Row("bank of 300", "bank-300", tiny={"model.queries.bank.per_label": 30}),
    Row("bank of 500", "bank-500", tiny={"model.queries.bank.per_label": 60}),
    Row("control: empty graph", "control-empty"),
    Row("control: edges dealt anew", "control-edges"),
    Row("control: features dealt anew", "control-features"),
)
_CKNET_IU, _CKNET_TINY = "cknet.iu", "cknet.tiny"
_ROWS_SYSTEMS = (
    Row("R2GenGPT", recipes=("r2gengpt.deep_iu", "r2gengpt.tiny"), paper=r2genkg_rows.R2GENGPT_IU),
    Row("R2GenKG", recipes=("r2genkg.iu", "r2genkg.tiny")),
    Row("Base (R2Gen's Transformer)", "base", (_CKNET_IU, _CKNET_TINY), cknet_rows.PAPER["iu"]["base"]),
    Row("R2GenCMN", "cmn", (_CKNET_IU, _CKNET_TINY), cknet_rows.OTHERS["iu"]["R2GenCMN"]),
    Row("CKNet", "full", (_CKNET_IU, _CKNET_TINY), cknet_rows.PAPER["iu"]["full"]),
    Row("CKNet before a language model", recipes=("cknet.llm_iu", "cknet.llm_tiny")),
)
_CKNET_FULL = {of: Row("CKNet", paper=cknet_rows.PAPER[of]["full"]) for of in ("iu", "mimic_cxr")}

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        _cknet("cknet_table4", "iu", "iu"),
        _cknet("cknet_table4_mimic", "mimic_cxr", "mimic_cxr"),
        *(
            Table(
                f"cknet_table2{'_mimic' * (of == 'mimic_cxr')}",
                "CKNet beside what was published before it (Table II)",
                (f"cknet.{of}", "cknet.tiny"),
                (row,),
                others=cknet_rows.OTHERS[of],
                **_TINY_CKNET,
            )
            for of, row in _CKNET_FULL.items()
        ),
        Table(
            "cknet_table3",
            "clinical efficacy on MIMIC-CXR, by the CheXpert labeler, which is not here (Table III)",
            ("cknet.mimic_cxr", "cknet.tiny"),
            (Row("CKNet", paper=cknet_rows.CLINICAL["CKNet"]),),
            metrics=("accuracy", "precision", "recall", "f1", "auc"),
            others={name: figures for name, figures in cknet_rows.CLINICAL.items() if name != "CKNet"},
            **_TINY_CKNET,
        ),
        Table(
            "cknet_gamma",
            "how many vectors of the matrix a token takes; the paper chose 8 on its validation split, without figures",
            ("cknet.iu", "cknet.tiny"),
            tuple(Row(f"γ={n}", f"gamma-{n}") for n in (1, 2, 4, 8, 15, 16, 32)),
            **_TINY_CKNET,
        ),
        _vlm_1("vlm_kg_table1", "iu"),
        _vlm_1("vlm_kg_table1_mimic", "mimic_cxr"),
        Table(
            "vlm_kg_table2",
            "does it matter that the language model is trained behind the mapper (Table 2, MIMIC-CXR)?",
            ("vlm_kg.mimic_cxr", "vlm_kg.tiny"),
            (
                Row("VLM-KG*", "frozen", paper=vlm_rows.PAPER["Table 2"]["vlm_kg.mimic_cxr:frozen"]),
                Row("VLM-KG", paper=vlm_rows.PAPER["Table 2"]["vlm_kg.mimic_cxr:full"]),
            ),
            first=("vlm_kg.llm_mimic_cxr", "vlm_kg.llm_tiny"),
            **_TINY_VLM,
        ),
        Table(
            "vlm_kg_table3",
            "prefix_length n and clip_length k of the mapper (Table 3, IU X-Ray); tiny: an eighth of each",
            ("vlm_kg.iu", "vlm_kg.tiny"),
            tuple(_vlm_3_row(n, k) for k in (64, 128) for n in (64, 128)),
            first=("vlm_kg.llm_iu", "vlm_kg.llm_tiny"),
            **_TINY_VLM,
        ),
        Table(
            "vlm_kg_table4",
            "how many tokens LLM-KG may write: one training, four decodings (Table 4, MIMIC-CXR); tiny: a quarter",
            ("vlm_kg.llm_mimic_cxr", "vlm_kg.llm_tiny"),
            tuple(
                Row(
                    name.replace("tokens-", "tokens: "),
                    paper=vlm_rows.PAPER["Table 4"][name],
                    decoding=changes,
                    tiny_decoding={key: count // 4 for key, count in changes.items()},
                )
                for name, changes in vlm_rows.TOKENS.items()
            ),
            **_TINY_VLM,
        ),
        Table(
            "r2genkg",
            "R2GenKG's parts one by one, and controls of its graph; the paper's own figures are not known",
            ("r2genkg.chexpert_plus", "r2genkg.tiny"),
            _ROWS_R2GENKG,
            metrics=("bleu4", "rouge_l", "meteor", "cider_d"),
            others={name: told for name, told in r2genkg_rows.OTHERS.items() if name != "R2GenGPT"},
            needs=("r2genkg",),
            tiny={"train.steps": 150, "train.checkpoint_every": 75},
            begin=CLASSIFIED,
        ),
        Table(
            "systems",
            "all that write reports: the same shards, splits, epochs, batch and choice (VLM-KG writes triples, apart)",
            ("r2gengpt.deep_iu", "r2gengpt.tiny"),
            _ROWS_SYSTEMS,
            protocol="r2gen-2020",
            needs=("r2genkg", "cknet"),
            changes={
                "train.epochs": 15, "train.global_batch": 16, "train.micro_batch": 8, "train.checkpoint_every": 129,
                "train.choose": "BLEU-4", "protocols": ("r2gen-2020", "full-text"),
            },
            tiny={"train.steps": 150, "train.checkpoint_every": 75},
            begin=CLASSIFIED,
        ),
    )
}  # fmt: skip
"""Name → table."""


def find_table(name: str) -> Table:
    """The table of a name.

    Raises:
        ConfigError: none is called so; the nearest are named.
    """
    if name not in TABLES:
        near = difflib.get_close_matches(name, TABLES, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(TABLES)}"
        raise ConfigError(f"unknown table {name[:80]!r}; {hint}")
    return TABLES[name]
