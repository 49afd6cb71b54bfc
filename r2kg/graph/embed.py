"""Names of nodes as vectors of a text encoder: features of the graph's nodes, and which names mean the same.

M3KG's nodes are vectors of Bio_ClinicalBERT (R2GenKG, Fig. 1); text and pooling are not told, and the canonical name
with the first token's vector is what the same authors do elsewhere.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from r2kg.graph.artefact import KnowledgeGraph
from r2kg.modules.config import TextEncoder
from r2kg.modules.hub import may_come, weight_hashes
from r2kg.modules.packaged import text_encoder
from shards.errors import ConfigError, RetryableError
from shards.tars.place import cache_directory, write_atomic

BATCH = 256
"""Names that are encoded at once."""
VERSION = 1
"""Of how a name becomes a vector: part of the cache's key."""


def embed(names: Sequence[str], config: TextEncoder) -> Tensor:
    """The vectors of names, fp32 [N, D], from the cache where the same weights have made them before.

    Raises:
        ConfigError: no such encoder, its package missing, or one without a tokenizer or safetensors weights.
        RetryableError: a hub that does not answer for a moment.
    """
    tokenizer, model, weights = _load(config)
    decided = [VERSION, weights, config.pooling, config.max_tokens, list(names)]
    digest = hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()
    kept = cache_directory() / "embeddings" / f"{digest}.safetensors"
    if kept.exists():
        return load_file(kept)["vectors"]
    parts = []
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    with torch.inference_mode():
        for start in range(0, len(names), BATCH):
            batch = tokenizer(
                list(names[start : start + BATCH]), padding=True, truncation=True, max_length=config.max_tokens,
                return_tensors="pt",
            )  # fmt: skip
            hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            mask = batch["attention_mask"][..., None].to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            parts.append((hidden[:, 0] if config.pooling == "cls" else mean).float())
    vectors = torch.cat(parts) if parts else torch.zeros(0, int(model.config.hidden_size))
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(kept, save({"vectors": vectors.contiguous()}))
    return vectors


def near_synonyms(graph: KnowledgeGraph, config: TextEncoder, least: float = 0.95) -> dict[str, str]:
    """Name → the more frequent name of the same kind whose vector is nearest, where their cosine is at least `least`.

    For `r2kg.graph.build.reports.Sifting.merge`: chains end at a name that stays. Names that differ in a side, a
    level or a number never mean the same, whatever their vectors say.
    """
    names, kinds = graph.names, graph.nodes["kind"].to_pylist()
    vectors = torch.nn.functional.normalize(embed(names, config), dim=-1)
    merge = dict[str, str]()
    for node in range(1, len(names)):  # the most frequent comes first
        cosine = vectors[:node] @ vectors[node]
        for other in cosine.argsort(descending=True).tolist():
            if cosine[other] < least:
                break
            if kinds[other] == kinds[node] and apart(names[other]) == apart(names[node]):
                merge[names[node]] = merge.get(names[other], names[other])
                break
    return merge


APART = frozenset(
    (
        *("left", "right", "both", "upper", "lower", "middle", "anterior", "posterior", "lateral", "medial", "apical"),
        *("basal", "increased", "decreased", "mild", "moderate", "severe", "small", "large", "new", "old", "acute"),
        *("chronic", "central", "peripheral", "low", "high", "normal", "abnormal"),
    )
)
"""Words that tell names apart which vectors take for alike: encoders put opposites side by side."""


def apart(name: str) -> frozenset[str]:
    """The words of a name that no synonym may change."""
    return frozenset(word for word in name.split() if word in APART or any(letter.isdigit() for letter in word))


def _load(config: TextEncoder) -> tuple[Any, Any, dict[str, str]]:
    """(tokenizer, model in eval mode, sha256 of its weight files)."""
    named = text_encoder(config.source, "the text encoder")
    folder = Path(named).expanduser()
    source = str(folder) if folder.is_dir() else named
    options: dict[str, Any] = {"revision": config.revision, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model = AutoModel.from_pretrained(source, use_safetensors=True, dtype=torch.float32, **options)
        weights = weight_hashes(source, config.revision)
    except (OSError, ValueError, HFValidationError) as error:
        kind = RetryableError if may_come(error) else ConfigError
        raise kind(
            f"the text encoder {config.source!r} cannot be had: {' '.join(str(error).split())[:300]}. Give a local "
            "directory with config.json, tokenizer files and *.safetensors, or connect once"
        ) from error
    return tokenizer, model.eval(), weights
