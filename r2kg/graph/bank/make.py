"""The vision-token bank: what training films look like where a finding is seen (R2GenKG §2.7, from AM-MRG).

Of training films with a finding, the cells of a grid in which a classifier sees it most (Grad-CAM) are cut out,
enlarged to the encoder's size and encoded by it; a projection that is kept brings the vectors to the width of the
queries that will read them. AM-MRG drew its projection at random and threw it away; here a seed draws it, or it is PCA.

Shapes: N films, L findings, M tokens of the bank, D classifier's width, W bank's width, S side of a film in pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from r2kg.graph.artefact import standing_alike
from r2kg.graph.bank.artefact import ARRAYS, CELLS, FILE, SCHEMA, Bank, BankManifest, load_bank, save_bank
from shards.errors import ConfigError, DataError, OnBad
from shards.films.stored import Fit
from shards.privacy import fence
from shards.session import in_our_words, pool_for, quiet, watched
from shards.stream.blocks import read_block
from shards.stream.index import Index, studies_of
from shards.stream.order import Block
from shards.tars.format import read_manifest
from shards.tars.place import Place, place

PORTION = 16
"""Films that are looked at at once."""


@dataclass(frozen=True)
class BankSettings:
    """What of a film becomes tokens."""

    per_label: int = 500
    """Most tokens of a finding, which are drawn from all that there are; as many studies are looked at."""
    per_film: int = 6
    """Most cells of a film for one finding, those with the highest heat."""
    least: float = 0.75
    """Mean heat that a cell needs; a film's map goes from 0 to 1."""
    cell_px: int = 16
    """Side of a cell; it divides the encoder's films."""
    width: int = 768
    """W, that of the queries."""
    projection: Literal["random", "pca"] = "random"
    """random: a linear map as PyTorch draws one, by `seed`; pca: the vectors' W principal components."""
    seed: int = 0
    """Of the projection and of what is drawn."""

    def __post_init__(self) -> None:
        if min(self.per_label, self.per_film, self.cell_px, self.width) < 1 or not 0 <= self.least < 1:
            raise ConfigError(f"{self}: numbers from 1 and a heat from 0 to below 1 are needed")


class Explainer(Protocol):
    """What finds the cells and encodes them: a trained `r2kg.systems.classifier.model.Classifier`."""

    def explain(self, films: Tensor) -> tuple[Tensor, Tensor]:
        """Maps fp32 [N, L, G, G], 0 or more, and features fp32 [N, D], of films uint8 [N, S, S]."""


def write_bank(
    root: str | Place,
    out: str | Place,
    labels: Sequence[str],
    image_px: int,
    build: Callable[[], Explainer],
    classifier: dict[str, Any],
    settings: BankSettings | None = None,
    on_bad: OnBad = "skip",
    actors: int = 0,
    replace: bool = False,
    fit: Fit = "squash",
    wait_minutes: float | None = None,
) -> Bank:
    """Make the bank of the training films of the shards at `root` and write it into `out`.

    Args:
        labels: the classifier's findings.
        image_px: side of the films that it sees.
        build: makes the classifier; called once in every actor.
        classifier: names it, with its hash, for bank.json.
        actors: processes that hold it, one GPU each where the cluster has them; 0: see `shards.session.pool_for`.
        replace: put it in the place of a bank that was made otherwise.
        fit: how films become square for it, as in its training.
        wait_minutes: longest time to wait for GPUs that an autoscaler can bring; None: what is there is taken.

    Raises:
        ConfigError: `out` holds something else, or a bank that was made otherwise; cells that do not divide the film;
            more actors than there can be GPUs.
        WaitedError: GPUs that could come did not in time.
        DataError: no training study has any of the findings, or in none of their films a cell is hot enough.
    """
    root, out, settings, manifest = place(root), place(out), settings or BankSettings(), read_manifest(root)
    if image_px % settings.cell_px:
        raise ConfigError(f"cells of {settings.cell_px} px do not divide films of {image_px} px")
    described: dict[str, Any] = {"classifier": classifier, "settings": asdict(settings)}

    def told_of(bank: Bank) -> dict[str, Any]:
        its = bank.manifest.description
        return {"shards": bank.manifest.parent, "classifier": its.get("classifier"), **its.get("settings", {})}

    asked = {**asdict(settings), "shards": manifest.fingerprint, "classifier": classifier}
    if there := standing_alike(out, "bank", {FILE, ARRAYS, CELLS}, load_bank, told_of, asked, replace):
        return there
    index = Index.open(root, "train", on_bad, manifest)
    chosen = choose_films(index, labels, settings, on_bad, manifest.licence)
    if not chosen:
        raise DataError(f"no training study of {root} has any of {', '.join(labels)}: a bank needs labelled films")
    parts = _look(index, chosen, image_px, fit, build, settings, on_bad, manifest.licence, actors, wait_minutes)
    kept = sample_cells(np.concatenate([part["label"] for part in parts]), len(labels), settings)
    if not len(kept):
        raise DataError(
            f"in none of {sum(map(len, chosen.values())):,} films a cell has a mean heat of {settings.least} or more: "
            "lower --least, or train the classifier longer"
        )
    cells = {name: np.concatenate([part[name] for part in parts])[kept] for name in parts[0] if name != "unread"}
    projected = project(cells.pop("features"), settings)
    arrays = {"label": cells["label"], "crops": cells.pop("crops"), **projected}
    made = [int((cells["label"] == number).sum()) for number in range(len(labels))]
    warnings = {"film cannot be read": sum(int(part["unread"]) for part in parts)}
    warnings |= {f"no token of {name}": 1 for name, count in zip(labels, made, strict=True) if not count}
    told = BankManifest(
        licence=manifest.licence, parent=manifest.fingerprint, labels=tuple(labels), files={},
        description=described, counts=dict(zip(labels, made, strict=True)),
        warnings={what: n for what, n in warnings.items() if n},
    )  # fmt: skip
    return save_bank(out, told, arrays, pa.table(cells).select(SCHEMA.names).cast(SCHEMA))


def choose_films(
    index: Index, labels: Sequence[str], settings: BankSettings, on_bad: OnBad, licence: str
) -> dict[int, list[int]]:
    """Row of the index → findings (places in `labels`) for which its film is looked at; `per_label` rows for each.

    Records are read by Ray's tasks, one a tar.
    """
    ref = ray.put(index)

    def positives(row: dict[str, Any]) -> dict[str, Any]:
        with fence(licence):
            held: Index = ray.get(ref)
            unread: dict[str, str] | None = {} if on_bad == "skip" else None
            studies = studies_of(held, held.rows_of(row["id"]), unread)
            said = [
                (at, n)
                for at, study in studies
                if study
                for n, name in enumerate(labels)
                if study.labels.get(name) == 1
            ]
        return {"said": np.array(said, np.int64).reshape(-1, 2)}

    dataset = quiet(ray.data.range(len(index.tars), override_num_blocks=len(index.tars)).map(positives))
    with in_our_words():
        rows = [row["said"] for row in watched(dataset.iter_rows(), "reading labels of tars", len(index.tars))]
    said = np.concatenate(rows)
    said = said[np.lexsort((said[:, 0], said[:, 1]))]
    chosen = dict[int, list[int]]()
    for number in range(len(labels)):
        those = said[said[:, 1] == number, 0]
        drawn = np.random.default_rng([settings.seed, number]).permutation(those)[: settings.per_label]
        for row in drawn.tolist():
            chosen.setdefault(row, []).append(number)
    return chosen


def _look(
    index: Index,
    chosen: dict[int, list[int]],
    image_px: int,
    fit: Fit,
    build: Callable[[], Explainer],
    settings: BankSettings,
    on_bad: OnBad,
    licence: str,
    actors: int,
    wait_minutes: float | None,
) -> list[dict[str, Any]]:
    """The cells of all chosen films, by Ray's actors: columns of `SCHEMA`, features [., D] and crops, in row order."""
    ref = ray.put(index)

    class Looker:
        """A process that holds the classifier."""

        def __init__(self) -> None:
            self.explainer: Explainer | None = None

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            rows = row["rows"].tolist()
            with fence(licence):
                self.explainer = self.explainer or build()  # not in __init__: an error of a call comes back as it was
                block = Block(0, 0, np.array([rows]), np.array([rows]))
                films = read_block(ray.get(ref), block, image_px, 1, on_bad, fit=fit)
                wanted = [chosen[at] if ok else [] for at, ok in zip(rows, films["valid"], strict=True)]
                cells = cut_cells(self.explainer, films["images"][:, 0], wanted, settings)
                keys = ray.get(ref).keys[np.array(rows)[cells.pop("film")]]
            return cells | {"study": keys.astype(str), "unread": int((~films["valid"]).sum())}

    rows = sorted(chosen)
    portions = [{"rows": np.array(rows[at : at + PORTION])} for at in range(0, len(rows), PORTION)]
    size, gpus = pool_for(actors, len(portions), wait_minutes)
    pool = ray.data.ActorPoolStrategy(size=size)
    dataset = ray.data.from_items(portions, override_num_blocks=len(portions))
    dataset.context.execution_options.preserve_order = True
    looked = dataset.map(Looker, compute=pool, num_gpus=gpus)  # type: ignore[arg-type]
    with in_our_words():
        return list(watched(quiet(looked).iter_rows(), f"looking at portions of {PORTION} films", len(portions)))


def cut_cells(
    explainer: Explainer, films: NDArray[np.uint8], wanted: Sequence[Sequence[int]], settings: BankSettings
) -> dict[str, Any]:
    """The hot cells of films [N, S, S], a row a cell: film, label, row, column, heat, crops and features.

    Args:
        wanted: the findings of each film.
    """
    device = next(iter(explainer.parameters())).device if isinstance(explainer, torch.nn.Module) else "cpu"
    shown, cell = torch.tensor(films, device=device), settings.cell_px
    maps, pooled = explainer.explain(shown)
    found = list[tuple[int, int, int, int, float]]()
    for film, labels in enumerate(wanted):
        for label in labels:
            large = F.interpolate(maps[film, label][None, None], shown.shape[1:], mode="bilinear", align_corners=False)
            low, high = large.min(), large.max()
            if not high > low:  # the classifier sees the finding nowhere more than elsewhere
                continue
            heat = F.avg_pool2d((large - low) / (high - low), cell)[0, 0]
            best = heat.flatten().sort(descending=True, stable=True)
            for value, at in zip(best.values[: settings.per_film].tolist(), best.indices.tolist(), strict=False):
                if value > settings.least:
                    found.append((film, label, *divmod(at, heat.shape[1]), value))
    crops = np.zeros((len(found), cell, cell), np.uint8)
    for number, (film, _, row, column, _) in enumerate(found):
        crops[number] = films[film, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
    vectors = [np.zeros((0, pooled.shape[1]), np.float32)]
    for at in range(0, len(crops), PORTION):
        grey = torch.tensor(crops[at : at + PORTION], device=device)[:, None].float()
        large = F.interpolate(grey, shown.shape[1:], mode="bilinear", align_corners=False)
        vectors.append(explainer.explain(large[:, 0].round().to(torch.uint8))[1].cpu().numpy())
    columns = zip(*found, strict=True) if found else ((),) * 5
    kinds = (np.int64, np.int64, np.int64, np.int64, np.float32)
    names = ("film", "label", "row", "column", "heat")
    told = {name: np.array(column, kind) for name, column, kind in zip(names, columns, kinds, strict=True)}
    return told | {"crops": crops, "features": np.concatenate(vectors)}


def sample_cells(label: NDArray[np.int64], labels: int, settings: BankSettings) -> NDArray[np.int64]:
    """Which of all cells are kept: at most `per_label` of each finding, finding after finding, in a drawn order."""
    kept = [
        np.random.default_rng([settings.seed, number, 1]).permutation(np.flatnonzero(label == number))
        for number in range(labels)
    ]
    return np.concatenate([those[: settings.per_label] for those in kept])


def project(features: NDArray[np.float32], settings: BankSettings) -> dict[str, NDArray[np.float32]]:
    """tokens [M, W] of features [M, D], and what made them: projection [W, D], and bias [W] that is added.

    Raises:
        DataError: a feature that is not finite, or too few of them for so many principal components.
    """
    if not np.isfinite(features).all():
        raise DataError("the classifier makes features that are not finite: train it with a lower learning rate")
    if settings.projection == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            layer = torch.nn.Linear(features.shape[1], settings.width)
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    else:
        if settings.width > min(features.shape):
            raise DataError(
                f"{len(features)} cells of {features.shape[1]} channels have no {settings.width} principal components: "
                "lower --width, or take --projection random"
            )
        centre = features.mean(0)
        _, _, weight = np.linalg.svd(features - centre, full_matrices=False)
        weight = weight[: settings.width]
        weight *= np.sign(weight[np.arange(len(weight)), np.abs(weight).argmax(1)])[
            :, None
        ]  # a sign is anybody's choice
        bias = -weight @ centre
    tokens = features @ weight.T + bias
    held = {"tokens": tokens, "projection": weight, "bias": bias}
    return {name: np.ascontiguousarray(array, np.float32) for name, array in held.items()}
