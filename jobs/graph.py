"""Make a graph of the training reports, and look at it."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.cli import run
from jobs.options import extractor_of, given, refuse_idle
from r2kg.config.overrides import parse_overrides
from r2kg.graph.film import FILMS, OTHERS
from shards.errors import ConfigError, DataError, OnBad
from shards.privacy import TERMS
from shards.study import SPLITS
from shards.tars.format import read_manifest
from shards.tars.kinds import only_side, read_side, without_member
from shards.tars.place import place
from shards.tars.report import SHOWN, side_lines

NAME = "annotations-{}"
"""Place of the annotations below SHARDS/side, with the extractor's name."""
Shards = Annotated[str, typer.Argument(help="directory or URL of the shards")]
Graph = Annotated[str, typer.Argument(help="directory or URL of the graph")]
How = Annotated[str, typer.Option(help="rules; llm: an OpenAI-compatible endpoint; ner-re: what `graph learn` wrote")]
Endpoint = Annotated[str, typer.Option(help="llm: base URL, e.g. http://127.0.0.1:8000/v1; its key is R2KG_LLM_KEY")]
Pooling = Annotated[Literal["cls", "mean"] | None, typer.Option(help="of the text encoder; default: cls")]
Model = Annotated[str, typer.Option(help="llm: the model, as the server names it; ner-re: the directory")]
Checkpoint = Annotated[str, typer.Option(help="best, last or a step number; default: best")]
Actors = Annotated[
    int | None,
    typer.Option(min=1, help="processes that hold the classifier, one GPU each; default: one a GPU, else one a core"),
]
Wait = Annotated[
    float | None,
    typer.Option(min=0, help="longest wait for GPUs to come; 0: none; default: train.wait_minutes, if trained on GPUs"),
]
BadFilm = Annotated[OnBad | None, typer.Option(help="a film that cannot be read: skip (count) or fail; default: skip")]
Hosts = Annotated[
    list[str] | None, typer.Option(help="llm: host that reports may be sent to; this machine alone by default")
]


def annotate(
    shards: Shards,
    extractor: How = "rules",
    split: Annotated[list[str] | None, typer.Option(help="may be given more than once; default: train")] = None,
    out: Annotated[str, typer.Option(help="directory or URL; default: SHARDS/side/annotations-EXTRACTOR")] = "",
    on_bad: Annotated[OnBad, typer.Option(help="a report that cannot be used: skip (count) or fail")] = "skip",
    endpoint: Endpoint = "",
    model: Model = "",
    allow_host: Hosts = None,
    options: Annotated[
        list[str] | None, typer.Argument(help="llm: further fields, key=value, e.g. concurrency=32 max_tokens=8192")
    ] = None,
) -> None:
    """Write what an extractor says of every training report, beside the shards; tars that are whole are kept."""
    root, splits = place(shards), tuple(split or ("train",))
    if strange := sorted({*splits} - {*SPLITS}):
        raise ConfigError(f"--split {strange[0]}: one of {', '.join(SPLITS)}")
    manifest = read_manifest(root)
    where = place(out) if out else root / "side" / NAME.format(extractor)
    asked = given(endpoint=endpoint, model=model, allow=allow_host) | parse_overrides(options or [])
    chosen = extractor_of(extractor, manifest.licence, asked, f"{where}-answers")
    from r2kg.graph.extract.annotate import write_annotations  # a second of Ray, after what is refused without it
    from shards.session import connect_ray

    connect_ray(where if isinstance(where, Path) else None)
    print("\n".join(side_lines(write_annotations(root, where, chosen, splits, on_bad))))
    print(where)


def learn(
    shards: Shards,
    out: Annotated[Path, typer.Option(help="directory of the models")],
    annotations: Annotated[str, typer.Option(help="to learn from; default: SHARDS/side/annotations-rules")] = "",
    radgraph: Annotated[Path | None, typer.Option(help="learn from this file of RadGraph in place of shards'")] = None,
    encoder: Annotated[str, typer.Option(help="hub id or directory; tiny: a small one from random weights")] = "",
) -> None:
    """Train the extractor ner-re on what another says of training reports: an entity model and a relation model."""
    if radgraph:
        refuse_idle("beside --radgraph, which is learned from alone", given(annotations=annotations))
    root = place(shards)
    read_manifest(root)
    from r2kg.graph.extract.annotate import labelled  # seconds of torch, after what is refused without it
    from r2kg.graph.extract.ner_re import read_radgraph, train_ner_re
    from r2kg.graph.extract.spans import NerReConfig, tiny

    said = annotations or root / "side" / NAME.format("rules")
    examples = read_radgraph(radgraph) if radgraph else labelled(root, said)
    config = tiny() if encoder == "tiny" else NerReConfig(**({"encoder": encoder} if encoder else {}))
    train_ner_re(examples, out, config)
    print(out.resolve())


def build(
    shards: Shards,
    annotations: Annotated[str, typer.Option(help="the side; default: SHARDS/side/annotations-rules")] = "",
    out: Annotated[str, typer.Option(help="directory or URL of the graph; default: SHARDS/graph")] = "",
    min_count: Annotated[int, typer.Option(min=1, help="mentions that a node needs")] = 1,
    min_triple_count: Annotated[int, typer.Option(min=1, help="statements that a triple needs")] = 1,
    merge: Annotated[str, typer.Option(help="CSV with columns name, node: names that mean the same, as of UMLS")] = "",
    synonyms: Annotated[
        str, typer.Option(help="text encoder (hub id or directory): merge names whose vectors have a cosine of .95")
    ] = "",
    pooling: Pooling = None,
    force: Annotated[
        bool, typer.Option("--force", help="take other splits too: no system accepts such a graph")
    ] = False,
    triples: Annotated[
        bool, typer.Option("--triples", help="of triples (`r2kg triples`) in SHARDS/side/triples or at --annotations")
    ] = False,
) -> None:
    """Make the graph of what was said of the training reports, and print its card."""
    if not synonyms:
        refuse_idle("without --synonyms", given(pooling=pooling))
    root = place(shards)
    read_manifest(root)
    from r2kg.graph.artefact import KnowledgeGraph
    from r2kg.graph.build.reports import Sifting, build_graph, read_merge
    from r2kg.graph.card import card_lines
    from shards.session import connect_ray

    kind: Literal["triples", "annotations"] = "triples" if triples else "annotations"
    side = annotations or root / "side" / (kind if triples else NAME.format("rules"))
    where = place(out) if out else root / "graph"
    connect_ray(where if isinstance(where, Path) else None)
    sifting = Sifting(min_count, min_triple_count, merge=read_merge(merge) if merge else {})

    def near(graph: KnowledgeGraph) -> Mapping[str, str]:
        from r2kg.graph.embed import near_synonyms  # seconds of torch
        from r2kg.modules.config import TextEncoder

        return near_synonyms(graph, TextEncoder(source=synonyms, **given(pooling=pooling)))

    print("\n".join(card_lines(build_graph(root, side, where, sifting, force, near if synonyms else None, kind))))
    print(where)


def findings(
    shards: Shards,
    kind: Annotated[
        Literal["kg40-train", "kg40-lineage", "kg30-code", "sentkg20"],
        typer.Option(help="kg40-train: of the training reports; the others as published, which no reports here decide"),
    ] = "kg40-train",
    min_count: Annotated[
        int, typer.Option(min=1, help="training reports that hold both ends of an edge; of per=image once a film")
    ] = 1,
    min_npmi: Annotated[
        float | None, typer.Option(min=-1, max=1, help="least normalised mutual information of an edge's ends")
    ] = None,
    out: Annotated[str, typer.Option(help="directory or URL of the graph; default: SHARDS/finding-graph")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="put it in the place of a graph made otherwise")] = False,
) -> None:
    """Make the graph of findings that CKNet's knowledge matrix stands on, and print its card."""
    root = place(shards)
    read_manifest(root)
    from r2kg.graph.build.findings import write_findings
    from r2kg.graph.card import card_lines
    from shards.session import connect_ray

    where = place(out) if out else root / "finding-graph"
    if kind == "kg40-train":
        connect_ray(where if isinstance(where, Path) else None)
    print("\n".join(card_lines(write_findings(root, where, kind, min_count, min_npmi, replace))))
    print(where)


def read(
    table: Annotated[
        str, typer.Argument(help="CSV: source_index, target_index, source_entity, target_entity, type, count")
    ],
    out: Annotated[str, typer.Option(help="directory or URL of the graph")],
    terms: Annotated[str, typer.Option(help=f"of the reports it was made from: {', '.join(TERMS)}")],
) -> None:
    """Read a graph that others published as a table, such as M3KG's, and print its card."""
    from r2kg.graph.build.published import read_published
    from r2kg.graph.card import card_lines

    print("\n".join(card_lines(read_published(table, out, terms))))
    print(place(out))


def levels(
    graph: Graph,
    size: Annotated[list[int] | None, typer.Option(min=2, help="nodes; may be given more than once")] = None,
    threshold: Annotated[
        list[int] | None, typer.Option(min=1, help="in place of sizes: least count of triples")
    ] = None,
) -> None:
    """Print the nested graphs of these sizes: nodes, triples, and the count that their triples have at least."""
    from r2kg.graph.artefact import load_graph
    from r2kg.graph.levels import sample_levels

    for level in sample_levels(load_graph(graph), size or (), threshold or ()):
        print(f"{len(level.node):6,} nodes, {len(level.edge_type):7,} triples, said {level.threshold:,} times or more")


def card(
    graph: Graph,
    shards: Annotated[str, typer.Option(help="say how much of val and test reports of these it knows")] = "",
    picture: Annotated[Path | None, typer.Option(help="file to draw it into, e.g. graph.svg")] = None,
) -> None:
    """Print what a graph holds; draw it."""
    from r2kg.graph.artefact import load_graph
    from r2kg.graph.card import card_lines, coverage, draw

    loaded = load_graph(graph)
    print("\n".join(card_lines(loaded)))
    for split in ("val", "test") if shards else ():
        shares = ", ".join(f"{share:.1%} of {what}" for what, share in coverage(loaded, shards, split).items())
        print(f"{split}: it knows {shares}")
    if picture:
        print(draw(loaded, picture))


def films(
    shards: Shards,
    features: Annotated[
        str, typer.Option(help="the side of a frozen encoder's features; default: the only one below SHARDS/side")
    ] = "",
    graph: Annotated[str, typer.Option(help="directory or URL; default: SHARDS/graph")] = "",
    annotations: Annotated[
        str, typer.Option(help="the side that the graph was built of; default: the one below SHARDS/side")
    ] = "",
    out: Annotated[
        str,
        typer.Option(help="directory or URL; default: SHARDS/side/film_subgraphs, with --of-another ..._of_another"),
    ] = "",
    neighbours: Annotated[int | None, typer.Option(min=1, help="training studies that vote; default: 16")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="most nodes of a film's part; default: 48")] = None,
    triples: Annotated[int | None, typer.Option(min=1, help="most triples of a film's part; default: 96")] = None,
    of_another: Annotated[
        bool, typer.Option("--of-another", help="for a control: each film another's part, as large as its own")
    ] = False,
) -> None:
    """Write a part of the graph for every film, from the film alone: what reports of training films near it say."""
    root, of = place(shards), place(graph or place(shards) / "graph")
    read_manifest(root)
    from r2kg.graph.artefact import read_graph_manifest

    seen = place(features) if features else only_side(root, "features", "--features")
    built_of = read_graph_manifest(of).annotations
    said = place(annotations) if annotations else only_side(root, "annotations", "--annotations", built_of)
    from r2kg.graph.film.write import FilmSettings, write_film_subgraphs  # a second of Ray and scipy
    from shards.session import connect_ray

    where = place(out) if out else root / "side" / (OTHERS if of_another else FILMS)
    connect_ray(where if isinstance(where, Path) else None)
    asked = given(neighbours=neighbours, nodes=nodes, triples=triples)
    settings = FilmSettings(**asked)
    if of_another:
        with suppress(DataError):  # no parts of its own there: then these are the first
            own = read_side(root / "side" / FILMS, FILMS).description["settings"]
            refuse_idle(f"with --of-another, where {root / 'side' / FILMS} tells them", asked)
            settings = FilmSettings(**own | {"certainty": tuple(own["certainty"])})
    print(f"Of graph {of}, features {seen} and annotations {said}.", flush=True)
    side = write_film_subgraphs(root, of, seen, said, where, settings, of_another)
    print("\n".join(side_lines(side)))
    for key, cause in islice(without_member(where, side), SHOWN):
        print(f"Without a part of the graph: {key}: {cause}")
    print(where)


def bank(
    shards: Shards,
    classifier: Annotated[Path | None, typer.Option(help="directory of a run of the system classifier")] = None,
    checkpoint: Checkpoint = "",
    out: Annotated[str, typer.Option(help="directory or URL; default: SHARDS/bank")] = "",
    per_label: Annotated[int | None, typer.Option(min=1, help="most tokens of a finding; default: 500")] = None,
    least: Annotated[
        float | None, typer.Option(min=0, max=0.999, help="mean heat that a cell needs; default: 0.75")
    ] = None,
    cell: Annotated[
        int | None, typer.Option(min=1, help="side of a cell, pixels of what the classifier sees; default: 16")
    ] = None,
    width: Annotated[int | None, typer.Option(min=1, help="of a token: that of the queries; default: 768")] = None,
    projection: Annotated[
        Literal["random", "pca"] | None, typer.Option(help="from the classifier's width; default: random")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="of what is drawn; default: 0")] = None,
    actors: Actors = None,
    wait_minutes: Wait = None,
    on_bad: BadFilm = None,
    show: Annotated[Path | None, typer.Option(help="directory to draw every finding's cells into")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="put it in the place of a bank made otherwise")] = False,
) -> None:
    """Cut out of training films where a trained classifier sees its findings: the vision-token bank. Or draw one."""
    asked = given(per_label=per_label, least=least, width=width, projection=projection, seed=seed)
    how = given(actors=actors, wait_minutes=wait_minutes, on_bad=on_bad, replace=replace)
    if not classifier and not show:
        raise ConfigError("a bank is made by a classifier: give --classifier RUN (`r2kg train classifier.tiny ...`)")
    if not classifier:
        refuse_idle(
            "without --classifier, where a bank is drawn", given(cell=cell, checkpoint=checkpoint) | asked | how
        )
    root = place(shards)
    manifest, where = read_manifest(root), place(out) if out else root / "bank"
    from r2kg.graph.bank.artefact import contact_sheets, load_bank
    from r2kg.graph.bank.make import BankSettings, write_bank  # seconds of torch and Ray

    if classifier:
        from r2kg.scoring.explain import explainer_of, minutes_for
        from shards.session import connect_ray

        how["wait_minutes"] = minutes_for(classifier) if wait_minutes is None else wait_minutes or None
        settings = BankSettings(**asked | given(cell_px=cell))
        build, model, named = explainer_of(classifier, checkpoint or "best", manifest)
        connect_ray(where if isinstance(where, Path) else None)
        seen = model.vision
        write_bank(root, where, model.labels, seen.image_px, build, named, settings, fit=seen.fit, **how)
    made = load_bank(where)
    told = [f"{what}: {count}" for what, count in made.manifest.warnings.items()]
    print("\n".join([", ".join(f"{name} {count}" for name, count in made.manifest.counts.items()), *told]))
    print("\n".join(map(str, [*(contact_sheets(made, show) if show else ()), where])))


def matrix(
    shards: Shards,
    classifier: Annotated[Path | None, typer.Option(help="directory of a run of the system gcn")] = None,
    checkpoint: Checkpoint = "",
    text: Annotated[str, typer.Option(help="in its place a text encoder that reads the nodes' keywords")] = "",
    pooling: Pooling = None,
    width: Annotated[
        int | None, typer.Option(min=1, help="with --text; default: 512; the classifier has its own")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="with --text: of the projection; default: 0")] = None,
    graph: Annotated[str, typer.Option(help="directory or URL; default: SHARDS/finding-graph")] = "",
    out: Annotated[str, typer.Option(help="directory or URL; default: SHARDS/knowledge")] = "",
    actors: Actors = None,
    wait_minutes: Wait = None,
    centred: Annotated[bool, typer.Option(help="take from each vector what all have in common")] = True,
    on_bad: BadFilm = None,
    replace: Annotated[bool, typer.Option("--replace", help="put it in the place of a matrix made otherwise")] = False,
) -> None:
    """Make the knowledge matrix: what a GCN classifier sees of each finding in training films, a vector a node."""
    if bool(classifier) == bool(text):
        raise ConfigError(
            "a matrix is made by --classifier RUN (`r2kg train gcn.tiny ...`) or --text ENCODER: give one"
        )
    how = given(actors=actors, wait_minutes=wait_minutes, on_bad=on_bad)
    of_classifier, of_text = given(checkpoint=checkpoint) | how, given(pooling=pooling, width=width, seed=seed)
    refuse_idle(*(("beside --classifier", of_text) if classifier else ("beside --text", of_classifier)))
    root = place(shards)
    manifest, where = read_manifest(root), place(out) if out else root / "knowledge"
    from r2kg.graph.build.findings import load_finding_graph
    from r2kg.graph.matrix.make import Made, named_encoder, of_films, of_names, write_matrix  # seconds of torch and Ray
    from r2kg.modules.config import TextEncoder

    findings = load_finding_graph(graph or root / "finding-graph", manifest)
    make: Callable[[], Made]
    if classifier:
        from r2kg.scoring.explain import minutes_for, node_encoder_of
        from shards.session import connect_ray

        how["wait_minutes"] = minutes_for(classifier) if wait_minutes is None else wait_minutes or None
        of = findings.manifest.fingerprint
        build, inputs, named = node_encoder_of(classifier, checkpoint or "best", manifest, of)
        connect_ray(where if isinstance(where, Path) else None)
        make, described = partial(of_films, root, manifest, build, inputs, **how), {"classifier": named}
    else:
        projected = (TextEncoder(source=text, **given(pooling=pooling)), width or 512, seed or 0)
        make, described = partial(of_names, findings, *projected), named_encoder(*projected)
    made = write_matrix(where, findings, manifest, described, make, replace, centred)
    films = f", mean over {made.manifest.description['films']:,} training films" if classifier else ""
    print(f"{len(made.vectors)} nodes, {made.vectors.shape[1]} channels{films}; median cosine {made.likeness:.2f}")
    print(where)


def evaluate(
    shards: Shards,
    extractor: How = "rules",
    split: Annotated[str, typer.Option(help="train, val or test")] = "val",
    endpoint: Endpoint = "",
    model: Model = "",
    allow_host: Hosts = None,
    cache: Annotated[str, typer.Option(help="llm: directory of its answers; default: answers")] = "",
) -> None:
    """Compare an extractor with what is known of drawn reports."""
    from r2kg.graph.extract.evaluate import evaluate_extractor

    asked = given(endpoint=endpoint, model=model, allow=allow_host)
    if extractor != "llm":
        refuse_idle(f"beside --extractor {extractor}", given(cache=cache))
    chosen = extractor_of(extractor, read_manifest(shards).licence, asked, cache or "answers")
    found = evaluate_extractor(shards, chosen, split)
    print(f"{found.reports} reports of {split} by {extractor}, {found.reports_per_s:,.0f} a second")
    for what, score in (("entities", found.entities), ("triples", found.triples)):
        print(f"{what:9} F1 {score.f1:.4f}, precision {score.precision:.4f}, recall {score.recall:.4f}")


JOBS = (annotate, learn, build, findings, read, card, levels, films, bank, matrix, evaluate)

if __name__ == "__main__":
    run(*JOBS)
