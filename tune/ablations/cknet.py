"""CKNet's ablations (Table IV), the choice of γ, and whether the knowledge matters.

Figures are BLEU-1..4, METEOR, ROUGE-L and CIDEr of the paper's Tables II and IV; accuracy, precision, recall, F1 and
AUC of Table III.
"""

from collections.abc import Callable
from typing import Any

from r2kg.config.run import Run

BASE = "cknet.iu"


def _code(base: Run) -> dict[str, Any]:
    """Memory and fusion of the code that was released with CKNet; encoder, words and schedule stay the base's."""
    model: Any = base.model
    return {
        "model.knowledge.matrix": "released",
        "model.knowledge.rows": 31,
        "model.knowledge.width": model.transformer.width,
        "model.knowledge.top_gamma": 15,
        "model.knowledge.fuse_film": "released",
        "model.knowledge.fuse_words": "add",
        "model.knowledge.out": True,
    }


CMN: dict[str, Any] = {
    "model.knowledge.matrix": "random",
    "model.knowledge.rows": 2048,
    "model.knowledge.trained": True,
    "model.knowledge.top_gamma": 32,
    "model.knowledge.fuse_film": "add",
    "model.knowledge.fuse_words": "add",
    "model.knowledge.out": True,
}
"""R2GenCMN's memory in CKNet's place."""

ABLATIONS: dict[str, tuple[str, dict[str, Any] | Callable[[Run], dict[str, Any]]]] = {
    "full": ("+CKNet: all of it", {}),
    "base": ("Base: no matrix", {"model.knowledge": None}),
    "men": (
        "+MEN: as many drawn vectors, as wide, that stay as they are",
        {"model.knowledge.control": "random", "model.knowledge.trained": False},
    ),
    "men-trained": (
        "+MEN: as many drawn vectors, as wide, that are trained",
        {"model.knowledge.control": "random", "model.knowledge.trained": True},
    ),
    "cmn": ("R2GenCMN: a trained memory of 2048 vectors, 32 are taken and added", CMN),
    "trained": ("the graph's matrix, trained on", {"model.knowledge.trained": True}),
    **{
        f"gamma-{n}": (f"{n} vectors of the matrix are taken", {"model.knowledge.top_gamma": n})
        for n in (1, 2, 4, 8, 15, 16, 32)
    },
    "ratio": ("weights by Eq. 6 in place of a softmax", {"model.knowledge.weights": "ratio"}),
    "film-alone": ("words are what they are, film tokens ask", {"model.knowledge.fuse_words": "none"}),
    "words-alone": ("film tokens are what they are, words ask", {"model.knowledge.fuse_film": "none"}),
    "code": ("memory and fusion of the code that was released with CKNet", _code),
    "control-values": ("the matrix's values dealt out anew", {"model.knowledge.control": "values"}),
    "control-other": ("the matrix of another graph", {"model.knowledge.control": "other"}),
}
"""Name → what it asks; what it changes of its base."""

PAPER: dict[str, dict[str, tuple[float, ...]]] = {
    "iu": {
        "base": (0.445, 0.293, 0.205, 0.144, 0.178, 0.355, 0.343),
        "men": (0.472, 0.323, 0.229, 0.168, 0.192, 0.376, 0.366),
        "full": (0.515, 0.354, 0.257, 0.194, 0.213, 0.402, 0.392),
    },
    "mimic_cxr": {
        "base": (0.307, 0.199, 0.119, 0.088, 0.113, 0.253, 0.089),
        "men": (0.329, 0.212, 0.125, 0.092, 0.125, 0.269, 0.102),
        "full": (0.356, 0.239, 0.157, 0.113, 0.146, 0.289, 0.118),
    },
}
"""Recipe → ablation → the paper's figures (Table IV)."""

NAN = float("nan")
OTHERS: dict[str, dict[str, tuple[float, ...]]] = {
    "iu": {
        "CoATT": (0.455, 0.288, 0.205, 0.154, NAN, 0.369, 0.277),
        "SentKG": (0.441, 0.291, 0.203, 0.147, NAN, 0.367, 0.304),
        "KERP": (0.482, 0.325, 0.226, 0.162, NAN, 0.339, 0.280),
        "R2Gen": (0.470, 0.304, 0.219, 0.165, 0.187, 0.371, NAN),
        "PPKED": (0.483, 0.315, 0.224, 0.168, NAN, 0.376, 0.351),
        "R2GenCMN": (0.475, 0.309, 0.222, 0.170, 0.191, 0.375, NAN),
    },
    "mimic_cxr": {
        "CoATT": (0.331, 0.220, 0.147, 0.117, NAN, 0.276, NAN),
        "R2Gen": (0.353, 0.218, 0.145, 0.103, 0.142, 0.277, NAN),
        "CMCL": (0.334, 0.217, 0.140, 0.097, NAN, 0.281, NAN),
        "PPKED": (0.360, 0.224, 0.149, 0.106, 0.149, 0.284, NAN),
        "R2GenCMN": (0.353, 0.218, 0.148, 0.106, 0.142, 0.278, NAN),
    },
}
"""Recipe → system → what the paper's Table II says of others; NaN where it says nothing."""

CLINICAL: dict[str, tuple[float, ...]] = {
    "ST": (0.204, 0.244, 0.197, 0.190, 0.685),
    "AdaAtt": (0.217, 0.266, 0.192, 0.195, 0.701),
    "Att2In": (0.232, 0.310, 0.225, 0.234, 0.732),
    "TopDown": (0.228, 0.312, 0.235, 0.244, 0.734),
    "R2Gen": (0.297, 0.333, 0.273, 0.276, 0.763),
    "R2GenCMN": (0.321, 0.334, 0.275, 0.278, 0.775),
    "CKNet": (0.368, 0.423, 0.348, 0.358, 0.802),
}
"""System → clinical efficacy on MIMIC-CXR, the paper's Table III."""
