"""What systems need made before they can be trained on drawn films, in the order in which a user makes it.

Each function is called with (root of the runs, directory of the shards); what is there already is not made again.
"""

from functools import partial
from pathlib import Path

from safetensors.torch import save_file

from r2kg.graph.bank.make import BankSettings, write_bank
from r2kg.graph.build.findings import write_findings
from r2kg.graph.build.reports import build_graph
from r2kg.graph.card import card_lines
from r2kg.graph.extract.annotate import write_annotations
from r2kg.graph.extract.rules import Rules
from r2kg.graph.film.write import FilmSettings, write_film_subgraphs
from r2kg.graph.matrix.make import of_films, write_matrix
from r2kg.recipes import find_recipe
from r2kg.scoring.explain import explainer_of, node_encoder_of
from r2kg.training.checkpoint import find_checkpoint, read_tensors, weights_of
from r2kg.training.features import write_features
from r2kg.training.launch import train
from shards.sources import open_source
from shards.tars.format import Manifest, read_manifest
from shards.tars.shards import write_shards

ENCODER = "encoder.safetensors"


def drawn(shards: Path, studies: int) -> Manifest:
    """Drawn studies as shards of 128 px in tars of 64."""
    return write_shards(open_source("phantom", studies=studies), shards, size=128, studies_per_shard=64)


def r2genkg(root: Path, shards: Path) -> None:
    """Graph of the training reports, classifier, bank, features by its encoder, films' parts of the graph.

    As by `r2kg graph annotate`, `graph build`, `train classifier.tiny`, `graph bank`, `features` and `graph films`.
    """
    manifest, side = read_manifest(shards), shards / "side"
    write_annotations(shards, side / "annotations-rules", Rules())
    print("\n".join(card_lines(build_graph(shards, side / "annotations-rules", shards / "graph"), top=5)))
    changes = {"root": str(root), "data.shards": str(shards.resolve()), "name": "demo-classifier"}
    classifier = find_recipe("classifier.tiny").change(changes | {"train.epochs": 5})
    train(classifier)
    build, model, named = explainer_of(classifier.directory, "best", manifest)
    settings = BankSettings(per_label=60, least=0.5, width=64)
    px, fit = model.vision.image_px, model.vision.fit
    bank = write_bank(shards, shards / "bank", model.labels, px, build, named, settings, replace=True, fit=fit)
    print(f"Bank: {', '.join(f'{name} {count}' for name, count in bank.manifest.counts.items())}.")
    frozen = {"train.init_from": "demo-classifier@best", "model.vision.tuning": "frozen", "name": "demo-features"}
    write_features(classifier.change(frozen), manifest, side / "features-classifier")
    said, seen, out = side / "annotations-rules", side / "features-classifier", side / "film_subgraphs"
    films = write_film_subgraphs(shards, shards / "graph", seen, said, out, FilmSettings(nodes=24, triples=48))
    print(f"Films' parts of the graph: {films.totals['nodes']:,} nodes, {films.totals['edges']:,} triples in all.")


def cknet(root: Path, shards: Path, other: bool = False) -> None:
    """The knowledge matrix of kg40-train and, with `other`, for a control that of a graph of twenty findings."""
    manifest, said = read_manifest(shards), shards / "side" / "annotations-of-val-too"
    write_annotations(shards, said, Rules(), ("train", "val"))
    for kind, out in (("kg40-train", "knowledge"), *([("sentkg20", "knowledge-other")] if other else [])):
        findings = write_findings(shards, where := shards / f"findings-{kind}", kind)  # type: ignore[arg-type]
        places = {"root": str(root), "data.shards": str(shards.resolve()), "model.graph.place": str(where.resolve())}
        gcn = find_recipe("gcn.tiny").change({"data.sides": {"annotations": str(said.resolve())}, **places})
        train(gcn := gcn.change({"name": f"gcn-{kind}"}))
        build, inputs, named = node_encoder_of(gcn.directory, "best", manifest, findings.manifest.fingerprint)
        make = partial(of_films, shards, manifest, build, inputs)
        write_matrix(shards / out, findings, manifest, {"classifier": named}, make, replace=True)


def vlm_kg(root: Path, shards: Path) -> None:
    """A classifier's encoder, as a file of weights."""
    changes = {"root": str(root), "data.shards": str(shards.resolve()), "train.epochs": 5, "name": "classifier"}
    train(classifier := find_recipe("classifier.tiny").change(changes))
    kept = weights_of(read_tensors(find_checkpoint(classifier.directory, "best")))
    start = "vision.encoder."
    save_file({name.removeprefix(start): kept[name] for name in kept if name.startswith(start)}, root / ENCODER)
