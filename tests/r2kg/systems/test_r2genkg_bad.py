"""Bad input of a run with a graph: what is wrong is said before any worker starts, with the values and the way out."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file, save_file

from r2kg.config.run import Run
from r2kg.graph.artefact import load_graph, save_graph
from r2kg.graph.bank.artefact import CELLS, load_bank, save_bank
from r2kg.graph.film import FILMS
from r2kg.graph.levels import ARRAYS
from r2kg.training.artefacts import prepared
from r2kg.training.plan import preflight
from shards.errors import ConfigError, DataError
from shards.graphs.subgraph import Subgraph, pack
from shards.sources.phantom.source import Phantom
from shards.stream.index import Index, open_splits
from shards.stream.side import Side
from shards.tars.format import read_manifest
from shards.tars.kinds import read_side
from shards.tars.place import place
from shards.tars.shards import write_shards
from shards.tars.sides import write_side
from shards.tars.write import Made
from tests.r2kg.systems.test_r2genkg_run import recipe


def tables(where: Path, **changes: Callable[[pa.Table], pa.Table]) -> None:
    """A graph whose seal is right and whose tables are not: each was put through a function."""
    graph = load_graph(where)
    held = {name: getattr(graph, name) for name in ("nodes", "triples", "provenance")}
    with suppress(DataError):  # it is read once it is written
        save_graph(where, graph.manifest, held | {name: change(held[name]) for name, change in changes.items()})


def column(name: str, value: object) -> Callable[[pa.Table], pa.Table]:
    """Put a value into the first row of a column."""

    def change(table: pa.Table) -> pa.Table:
        values = pa.array([value, *table[name].to_pylist()[1:]], table.schema.field(name).type)
        return table.set_column(table.column_names.index(name), name, values)

    return change


def parts(shards: Path, to: Path, split: str = "", **description: object) -> None:
    """Films' parts described as those at `to` but for what is given, none for `split`, with an edge to nowhere."""
    manifest, described = read_manifest(shards), read_side(to).description | description
    shutil.rmtree(to)
    nowhere = pack(Subgraph(np.array([0]), np.array([[0], [5]]), np.array([0])))

    def make(index: Index, rows: range, given: bytes) -> Iterator[Made]:
        for _ in rows:
            made = Made({"film.safetensors": nowhere})
            yield Made(cause="no neighbour says a triple") if index.split == split else made

    write_side(shards, to, FILMS, manifest, open_splits(shards, manifest), described, lambda: make)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def of_other_shards(at: Path) -> None:
    """The graph says that it was made of others."""
    graph = load_graph(at / "graph")
    held = {name: getattr(graph, name) for name in ("nodes", "triples", "provenance")}
    save_graph(at / "graph", graph.manifest.model_copy(update={"parent": "0" * 64}), held)


def shrunk_bank(at: Path) -> None:
    """A bank with fewer tokens than its list of cells has rows."""
    bank = load_bank(at / "bank")
    arrays = {"tokens": bank.tokens[:-1], "label": bank.label, "crops": bank.crops}
    with suppress(DataError):
        save_bank(place(at / "bank"), bank.manifest, arrays, bank.cells)


def without_a_finding(where: Path) -> str:
    """Take a bank's tokens of its first finding out of it; gives that."""
    bank = load_bank(where)
    kept, label = bank.label != 0, bank.manifest.labels[0]
    arrays = {name: getattr(bank, name)[kept] for name in ("tokens", "label", "crops")}
    told = bank.manifest.model_copy(update={"counts": bank.manifest.counts | {label: 0}})
    save_bank(place(where), told, arrays, bank.cells.filter(pa.array(kept)))
    return label


BOTH, LARGE = {"model.graph.source": "both"}, {"model.graph.sizes": [10, 9000]}
Bad = tuple[Callable[[Path, Path], object], dict[str, object], type[Exception], str]
CASES: dict[str, Bad] = {
    "an empty graph": (
        lambda at, _: tables(at / "graph", triples=lambda t: t[:0], provenance=lambda t: t[:0]), {}, DataError,
        r"the graph at .* contradicts itself: it is empty \(\d+ nodes, 0 triples\)\. make it with `r2kg graph build",
    ),
    "a relation that is none": (
        lambda at, _: tables(at / "graph", triples=column("relation", "near")), {}, DataError,
        r"contradicts itself: unknown relations \['near'\]\. make it with",
    ),
    "an edge to a node that is not there": (
        lambda at, _: tables(at / "graph", triples=column("tail", 99_999)), {}, DataError,
        r"contradicts itself: triples name a tail that is not there\. make it with",
    ),
    "a level larger than the graph": (
        lambda at, _: None, LARGE, ConfigError,
        r"a level of 9000 nodes is larger than the graph, in which \d+ have a triple: ask for less",
    ),
    "no graph any more": (
        lambda at, _: shutil.rmtree(at / "graph"), {}, DataError,
        r"no graph at .*make it with `r2kg graph build SHARDS`",
    ),
    "a table that is gone": (
        lambda at, _: (at / "graph" / "triples.parquet").unlink(), {}, DataError,
        r"triples.parquet cannot be read \(FileNotFoundError\): make it with",
    ),
    "a table that was cut short": (
        lambda at, _: cut_short(at / "graph" / "nodes.parquet"), {}, DataError,
        r"nodes.parquet is not what graph.json says: make it with",
    ),
    "a graph of other shards": (
        lambda at, _: of_other_shards(at), {}, DataError,
        r"is of shards 000000000000, these have .*Build it of these with `r2kg graph build SHARDS`",
    ),
    "no parts of films": (
        lambda at, _: shutil.rmtree(at / "films"), BOTH, DataError,
        r"no side at .*write it with `r2kg graph films SHARDS`",
    ),
    "parts of another graph": (
        lambda at, shards: parts(shards, at / "films", graph="f" * 64), BOTH, DataError,
        r"parts at .* are of graph ffffffffffff, the run's is .*write them again with `r2kg graph films SHARDS`",
    ),
    "parts with more nodes than their graph": (
        lambda at, shards: parts(shards, at / "films", nodes=["a", "b"]), BOTH, DataError,
        r"parts at .* are of 2 nodes, their graph has \d+: write them again",
    ),
    "parts of no study of a split": (
        lambda at, shards: parts(shards, at / "films", split="val"), BOTH, DataError,
        r"are there for no study of val \(\{'no neighbour says a triple': \d+\}\): .*write them again",
    ),
    "no bank": (
        lambda at, _: shutil.rmtree(at / "bank"), {}, DataError, r"no bank at .*make it with `r2kg graph bank SHARDS",
    ),
    "a bank that was cut short": (
        lambda at, _: cut_short(at / "bank" / CELLS), {}, DataError,
        r"cells.parquet is not what bank.json says: make it",
    ),
    "a bank with fewer tokens than cells": (
        lambda at, _: shrunk_bank(at), {}, DataError, r"the bank at .* contradicts itself: make it with",
    ),
}  # fmt: skip


def run_of(shards: Path, at: Path, root: Path, changes: dict[str, object]) -> Run:
    sides = {"data.sides": {FILMS: str(at / "films")}} if changes.get("model.graph.source") == "both" else {}
    return recipe(shards, at, root, **sides | changes)


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_before_anything_is_made(phantom_shards, beside, tmp_path, name):
    spoil, changes, kind, told = CASES[name]
    at = shutil.copytree(beside, tmp_path / "beside")
    spoil(at, phantom_shards)
    with pytest.raises(kind, match=told):
        prepared(run_of(phantom_shards, at, tmp_path / "runs", changes), read_manifest(phantom_shards))
    assert not (tmp_path / "runs" / "artefacts").exists()


def test_a_graph_and_a_bank_of_shards_that_are_not_the_runs(phantom_shards, beside, tmp_path):
    other = tmp_path / "other"
    write_shards(Phantom(studies=40, size=64), other, size=64, studies_per_shard=16)
    run, manifest = run_of(other, beside, tmp_path / "runs", {}), read_manifest(other)
    with pytest.raises(DataError, match=r"the graph at .* is of shards .*, these have .*Build it of these"):
        prepared(run, manifest)
    with pytest.raises(DataError, match=r"the bank at .* is of shards .*, these have .*make it with"):
        prepared(run.change({"model.graph": None}), manifest)


def test_what_was_made_and_then_changed_is_refused_too(phantom_shards, beside, tmp_path, capsys):
    """Levels without a node's feature, or with one that is not finite; files that went between two looks at them."""
    manifest = read_manifest(phantom_shards)
    at = shutil.copytree(beside, tmp_path / "beside")
    lacking = without_a_finding(at / "bank")
    run, made = prepared(run_of(phantom_shards, at, tmp_path / "runs", BOTH), manifest)
    assert f" tokens of the bank; it has none of {lacking}, into " in capsys.readouterr().out
    assert preflight(run, manifest, made).artefacts
    folder = Path(run.model.graph.levels_at)
    whole = load_file(folder / ARRAYS)
    for name, features in (("few", whole["features"][:-1]), ("odd", whole["features"] * np.nan)):
        own = shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("artefact.json"))
        save_file(whole | {"features": features}, own / ARRAYS)
        with pytest.raises(DataError, match=r"no levels of a graph at .*a node without a feature.*write them again"):
            preflight(run.change({"model.graph.levels_at": str(own)}), manifest, made)
    cut_short(folder / ARRAYS)
    with pytest.raises(DataError, match=rf"{ARRAYS} has \d+ of \d+ bytes.*delete the directory and submit"):
        prepared(run, manifest)
    shutil.rmtree(folder)
    with pytest.raises(DataError, match=r"no levels of a graph at .*No such file.*write them again"):
        preflight(run, manifest, made)


def test_a_films_part_with_an_edge_to_nowhere_names_the_study(phantom_shards, beside, tmp_path):
    """A tar's seal says that it is what was written: of a part that never was one the reader tells, study by study."""
    at = shutil.copytree(beside, tmp_path / "beside")
    parts(phantom_shards, at / "films")
    index, manifest = Index.open(phantom_shards, "test"), read_manifest(phantom_shards)
    with pytest.raises(DataError, match=rf"study {index.keys[0].decode()}: .*edge_index"):
        Side.open(at / "films", index, manifest, FILMS).read(0)
    with (at / "films" / "side.json").open("r+") as file:
        told = json.loads(file.read())
        file.seek(0)
        file.write(json.dumps(told | {"shards": told["shards"][:-1]}))
        file.truncate()
    with pytest.raises(DataError, match=r"side.json.*edited|side.json"):
        prepared(run_of(phantom_shards, at, tmp_path / "runs", BOTH), manifest)
