"""VLM-KG's tables (Abdullah & Kim 2025), and what the image adds.

Figures are B1-B4 and ROUGE-L in per cent, of 50 reports of MIMIC-CXR. Table 4 is of LLM-KG (MIMIC), by its numbers: one
training and four decodings, `r2kg generate RUN model.decoding.max_new_tokens=200`; `TOKENS` are these words.
"""

from typing import Any

BASE = "vlm_kg.iu"
ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("both stages", {}),
    "frozen": ("VLM-KG*: the mapper alone is trained, before stage 1's language model", {"model.llm.tuning": "frozen"}),
    **{
        f"n{n}-k{k}": (
            f"prefix_length {n}, clip_length {k}",
            {"model.mapper.prefix_length": n, "model.mapper.clip_length": k},
        )
        for n in (64, 128)
        for k in (64, 128)
    },
    "no-film": ("stage 2 without films: as long a training as VLM-KG's", {"model.vision": None}),
    "image-only": ("triples from the film alone, the report withheld", {"model.report": False}),
    "from-scratch": ("stage 2 without stage 1", {"train.init_from": ""}),
    "norm": ("soft tokens of the embeddings' scale", {"model.mapper.output_norm": True}),
    "lora": ("adapters on the language model", {"model.llm.tuning": "lora"}),
}
"""Name → what it asks; what it changes of its base."""
TOKENS = {f"tokens-{count}": {"model.decoding.max_new_tokens": count} for count in (200, 256, 300, 512)}
"""Table 4: name → what `r2kg generate` changes of the run."""
PAPER: dict[str, dict[str, tuple[float, ...]]] = {
    "Table 1": {
        "DyGIE++": (24.57, 24.22, 23.81, 23.35, 56.49),
        "vlm_kg.llm_iu": (25.32, 21.04, 18.02, 15.79, 40.68),
        "vlm_kg.iu": (44.76, 38.84, 34.84, 31.69, 49.66),
        "vlm_kg.llm_mimic_cxr": (40.52, 37.91, 35.96, 34.35, 56.53),
        "vlm_kg.mimic_cxr": (54.98, 49.65, 46.12, 43.29, 54.69),
    },
    "Table 2": {
        "vlm_kg.mimic_cxr:frozen": (10.00, 6.10, 3.78, 2.62, 24.60),
        "vlm_kg.mimic_cxr:full": (54.98, 49.65, 46.12, 43.29, 54.69),
    },
    "Table 3": {
        "n64-k64": (44.76, 38.84, 34.84, 31.69, 49.66),
        "n128-k64": (42.45, 36.20, 31.83, 28.61, 48.67),
        "n64-k128": (40.24, 34.35, 30.52, 27.67, 47.19),
        "n128-k128": (38.40, 32.64, 28.85, 26.00, 46.79),
    },
    "Table 4": {
        "tokens-200": (33.58, 31.44, 29.90, 28.65, 55.90),
        "tokens-256": (38.66, 36.10, 34.21, 32.65, 57.27),
        "tokens-300": (40.52, 37.90, 35.96, 34.35, 56.52),
        "tokens-512": (40.52, 37.91, 35.96, 34.35, 56.53),
    },
}
"""Table → row → the paper's figures. Table 2 is of MIMIC-CXR, Table 3 of IU X-Ray."""
