"""What is right may lie in a side in place of the records: scores, floors and lines are of it, no model is shown it."""

import json
import shutil
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from r2kg.config.needs import Inputs
from r2kg.config.parts import Data
from r2kg.config.protocol import PROTOCOLS as KNOWN
from r2kg.config.run import Run, System
from r2kg.graph.build.triples import of_file, write_listed_triples
from r2kg.modules.beams import Generated
from r2kg.scoring.context import References, scoring_context
from r2kg.scoring.evaluate import choose_floor
from r2kg.scoring.writing.writer import NOT_KNOWN, PART, Writer
from shards.errors import ConfigError, DataError
from shards.graphs.text import triples_text
from shards.stream.blocks import read_block
from shards.stream.index import Index, read_studies
from shards.stream.order import sequential_blocks
from shards.stream.side import Side
from shards.tars.format import read_manifest

EDEMA, CLIP = ("edema", "located_at", "left"), ("clip", "modify", "edema")
PROTOCOLS = ("triples", "triples-sorted")


class Writing(System):
    """Films to triples, of which a side says what is right."""

    build: ClassVar[str] = "nowhere:Model"
    task: ClassVar[Literal["report", "triples"]] = "triples"
    system: str = f"{__name__}:Writing"

    def inputs(self, data: Data) -> Inputs:
        return Inputs(image_px=64, training_sides=("triples",), reference="triples")


@pytest.fixture
def shards(phantom_shards: Path, tmp_path: Path) -> tuple[Path, dict[str, tuple]]:
    """Shards with a side of triples of every other study, and what it says by key."""
    root, said = shutil.copytree(phantom_shards, tmp_path / "shards", ignore=lambda *_: ["facts"]), dict[str, tuple]()
    for split in ("train", "val", "test"):
        keys = [study.key for study in read_studies(root, split)][::2]
        said |= {key: (EDEMA, CLIP)[: number % 3] for number, key in enumerate(keys)}
    rows = [json.dumps({"key": key, "triples": triples}) + "\n" for key, triples in said.items()]
    (tmp_path / "t.jsonl").write_text("".join(rows))
    write_listed_triples(root, root / "side" / "triples", of_file(tmp_path / "t.jsonl"))
    return root, said


def test_floors_are_chosen_by_what_the_side_says_and_kept_by_it(shards, tmp_path: Path) -> None:
    root, said = shards
    manifest = read_manifest(root)
    references = References.of({"triples": str(root / "side" / "triples")}, manifest)
    assert references is not None and references.splits == ("train", "val", "test")
    of_records = scoring_context(root, manifest, PROTOCOLS)
    first = scoring_context(root, manifest, PROTOCOLS, references=references)
    own = {
        split: [triples_text(said[study.key]) for study in read_studies(root, split) if study.key in said]
        for split in ("train", "val")
    }
    for name in PROTOCOLS:
        assert first["floor"][name] == choose_floor(own["train"], own["val"], KNOWN[name], None)
        assert first["floor"][name] in own["train"] and first["floor"][name] != of_records["floor"][name]
    assert scoring_context(root, manifest, PROTOCOLS, references=references) == first, "as it was kept"
    assert scoring_context(root, manifest, PROTOCOLS) == of_records
    (tmp_path / "t.jsonl").write_text(json.dumps({"key": next(iter(said)), "triples": [EDEMA]}) + "\n")
    write_listed_triples(root, tmp_path / "less", of_file(tmp_path / "t.jsonl"))
    less = References.of({"triples": str(tmp_path / "less")}, manifest)
    assert less is not None and less.hash != references.hash
    with pytest.raises(DataError, match="hold none of split 'test', but of train: .*annotate SHARDS --split test"):
        less.refuse_lacking("test")
    assert scoring_context(root, manifest, PROTOCOLS, references=less)["floor"] == {}


def test_lines_are_of_the_side_and_the_model_is_not_shown_it(shards, tmp_path: Path) -> None:
    root, said = shards
    writer, seen = object.__new__(Writer), []

    class Model:
        def collate(self, rows: dict) -> dict:
            seen.extend(rows)
            return {"n": len(rows["record"])}

        def generate(self, batch: dict, decoding: object) -> list:
            return [Generated("edema, located_at, left", 1, False)] * batch["n"]

    run = Run(name="x", model=Writing(), train={"micro_batch": 4, "global_batch": 4}, data={"shards": str(root)})
    assert run.reference == {"triples": f"{root}/side/triples"} and run.shown_sides == {}
    writer.run, writer.licence, writer.device, writer.parts, writer.probe = run, "", "cpu", tmp_path, None
    writer.task = "triples"
    writer.model = Model()  # type: ignore[assignment]
    index = Index.open(root, "test")
    beside = {kind: Side.open(at, index, read_manifest(root), kind) for kind, at in run.reference.items()}
    writer(read_block(index, sequential_blocks(len(index), 1, len(index))[0], 64, 2, sides=beside))
    assert "triples" not in seen and {"record", "images"} <= {*seen}
    lines = [json.loads(line) for line in (tmp_path / PART.format(0)).read_text().splitlines()]
    told = {line["key"]: line for line in lines if "key" in line}
    assert set(told) == {study.key for study in read_studies(root, "test")} & set(said)
    for key, line in told.items():
        assert line["reference"] == triples_text(said[key]) and line["triples"] == [*map(list, said[key])]
    references = References.of(run.reference, read_manifest(root))
    assert references is not None
    assert [index.keys[row].decode() for row in references.rows(index, read_manifest(root))] == [*told]
    unread = [line for line in lines if "unread" in line]
    assert len(unread) == len(index) - len(told) > 0 and {line["unread"] for line in unread} == {NOT_KNOWN}


def test_references_that_cannot_be_are_refused() -> None:
    Inputs(training_sides=("triples",), reference="triples").refuse_answers("triples")
    with pytest.raises(ConfigError, match="must be one of training_sides and none of sides"):
        Inputs(reference="triples").refuse_answers("triples")
    with pytest.raises(ConfigError, match="must be one of training_sides and none of sides"):
        Inputs(sides=("triples",), training_sides=("triples",), reference="triples").refuse_answers("triples")
    with pytest.raises(ConfigError, match="reference='triples' of a system of the task 'report'"):
        Inputs(training_sides=("triples",), reference="triples").refuse_answers("report")
    with pytest.raises(ConfigError, match="reference='annotations' .* only triples lie beside"):
        Inputs(training_sides=("annotations",), reference="annotations").refuse_answers("triples")
