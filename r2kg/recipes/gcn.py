"""The GCN classifier of the CKNet lineage (SentKG: Zhang et al., AAAI 2020): what CKNet's knowledge matrix is made by.

As released: DenseNet-121 that has seen CheXpert (give its file in model.vision.weights; the recipes' are ImageNet's), a
crop of 512 px, Adam 1e-6, weight decay 1e-5, batch 8; CKNet's code loads the 80th epoch, of AUROC .757. The recipes
differ in LayerNorm for BatchNorm, and in the width of 512 through which findings are read. They learn what `rules`, or
another extractor, says of reports:

    r2kg graph annotate DIR --split train --split val
    r2kg graph findings DIR
    r2kg train gcn.iu data.shards=DIR
    r2kg graph matrix DIR --classifier runs/gcn-iu
"""

from r2kg.config.parts import Data, Optim, Train
from r2kg.config.run import Run
from r2kg.modules.config import Vision
from r2kg.recipes.r2gengpt import TINY_VISION
from r2kg.recipes.r2gengpt import tiny as tiny_reports
from r2kg.systems.gcn.config import GcnConfig
from r2kg.systems.gcn.parts import CHEXPERT
from shards.films.augment import Augment

DRAWN = tuple(name for name in CHEXPERT if name != "Pneumonia")
"""CheXpert's findings that drawn films have and a node stands for."""


def iu() -> Run:
    """IU X-Ray as released, 80 epochs; shards with --size 586. Its shards have no labels: the validation loss tells.

    One 24 GB GPU. `r2kg train gcn.iu data.shards=DIR`
    """
    vision = Vision(name="densenet121", image_px=512, merge="separate", augment=Augment(resize_px=586))
    return Run(
        name="gcn-iu",
        data=Data(views=2),
        model=GcnConfig(vision=vision),
        optim=Optim(kind="adam", lr=1e-6, min_lr=1e-6, schedule="constant", weight_decay=1e-5),
        train=Train(epochs=80, global_batch=8, micro_batch=8, workers=1, checkpoint_every=1295),
    )


def mimic_cxr() -> Run:
    """MIMIC-CXR, frontal films, 3 epochs at the released batch and rate; how long the paper trained is not told.

    One 24 GB GPU. `r2kg train gcn.mimic_cxr data.shards=DIR`
    """
    changes = {"data.views": 1, "train.epochs": 3, "train.checkpoint_every": 9000, "train.choose": "AUROC"}
    return iu().change({"name": "gcn-mimic-cxr", **changes})


def tiny() -> Run:
    """Drawn films on a laptop: r2gengpt.tiny's encoder, states of 64 channels, the eleven findings that are drawn.

    Two CPU workers, ZeRO-2, some minutes.
    `r2kg train gcn.tiny data.shards=DIR`
    """
    vision = TINY_VISION.model_copy(update={"merge": "separate"})
    part, base = GcnConfig(vision=vision, width=64, dropout=0.1, labels=DRAWN), tiny_reports()
    changes = {"optim.lr": 2e-3, "train.epochs": 8, "train.validation_studies": 128}
    return base.model_copy(update={"name": "gcn-tiny", "model": part}).change(changes)
