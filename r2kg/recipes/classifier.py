"""Classifiers of findings, AM-MRG's first stage: what R2GenKG's vision-token bank is cut out by (`r2kg graph bank`).

AM-MRG (same group as R2GenKG) trained SwinCheX's Swin-L with fourteen heads for 300 planned epochs, of which the first
twenty warm up, and used epoch 25. Learning rate 5e-4, least 5e-6, both times batch / 512; its batch was 2.
"""

from r2kg.config.parts import Data, Optim, Train
from r2kg.config.run import Run
from r2kg.modules.config import Vision
from r2kg.recipes.r2gengpt import TINY_VISION
from r2kg.recipes.r2gengpt import tiny as tiny_reports
from r2kg.systems.classifier.config import ClassifierConfig
from shards.films.augment import Augment
from shards.study import FINDINGS

DRAWN = tuple(name for name in FINDINGS if name not in ("Pneumonia", "Pleural Other"))
"""CheXpert's findings that drawn films have."""


def chexpert_plus() -> Run:
    """CheXpert Plus, frontal films: Swin-L and fourteen heads, 25 epochs at a batch of 64, cosine in place of AM-MRG's
    warm-up over 20.

    One 40 GB GPU. `r2kg train classifier.chexpert_plus data.shards=DIR`
    """
    vision = Vision(
        name="swin_large_patch4_window7_224",
        options={"drop_path_rate": 0.1},
        augment=Augment(brightness=0.4, contrast=0.4),
    )
    return Run(
        name="classifier-chexpert-plus",
        data=Data(views=1),
        model=ClassifierConfig(vision=vision),
        optim=Optim(lr=6.25e-5, min_lr=6.25e-7, schedule="cosine", warmup_steps=600, weight_decay=0.05, clip=5.0),
        train=Train(epochs=25, global_batch=64, micro_batch=32, workers=1, checkpoint_every=632, choose="AUROC"),
    )


def tiny() -> Run:
    """Drawn films on a laptop: r2gengpt.tiny's encoder and a linear map to the twelve findings they have.

    Two CPU workers, ZeRO-2, some minutes. `r2kg train classifier.tiny data.shards=DIR`
    """
    part, base = ClassifierConfig(vision=TINY_VISION, labels=DRAWN, hidden=()), tiny_reports()
    changes = {"optim.lr": 2e-3, "train.epochs": 8, "train.validation_studies": 128}
    return base.model_copy(update={"name": "classifier-tiny", "model": part}).change(changes)
