"""What a model is shown when it writes, and whose films its control shows."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch

from r2kg.config.needs import Inputs
from r2kg.config.parts import Data
from r2kg.config.protocol import PROTOCOLS
from r2kg.config.run import Run, System
from r2kg.modules.beams import Generated
from r2kg.rundir import saved_run
from r2kg.scoring.controls.withheld import derangement, shuffled
from r2kg.scoring.evaluate import read_predictions
from r2kg.scoring.generate import generate, probe_of
from r2kg.scoring.writing.writer import PART, Writer, joined
from r2kg.systems.cknet.config import CKNetConfig
from r2kg.systems.contract import add_reference_cuts, model_class, refuse_cuts
from r2kg.systems.r2genkg.config import R2GenKGConfig
from r2kg.training.artefacts import built
from r2kg.training.checkpoint import find_checkpoint, read_state
from shards.clean import clean
from shards.errors import CheckpointError, ConfigError, DataError
from shards.stream.blocks import read_block, stream_blocks
from shards.stream.index import Index, read_studies
from shards.stream.order import sequential_blocks

RECORD = {
    "key": "a", "id": "A", "patient": "p", "split": "test", "views": [{"position": "frontal", "file": ""}],
    "sections": {"findings": "secret one", "impression": "secret two", "indication": "cough"}, "report": "secret one",
    "target": "secret one",
    "labels": {"Edema": 1}, "triples": [["secret", "modify", "one"]], "provenance": {"row": "1"},
}  # fmt: skip


class Asked(R2GenKGConfig):
    """Films, the indication, and a graph as a target."""

    system: str = f"{__name__}:Asked"  # type: ignore[assignment]

    def inputs(self, data: Data) -> Inputs:
        return Inputs(image_px=64, views=data.views, text=("indication",), training_sides=("subgraphs",))


class Telling(R2GenKGConfig):
    """Asks for a graph that is made from the report."""

    system: str = f"{__name__}:Telling"  # type: ignore[assignment]

    def inputs(self, data: Data) -> Inputs:
        return Inputs(sides=("subgraphs",))


class Extracting(System):
    """Reads the report, and a graph of it, and writes triples."""

    build: ClassVar[str] = "nowhere:Model"
    task: ClassVar[Literal["report", "triples"]] = "triples"
    system: str = f"{__name__}:Extracting"

    def inputs(self, data: Data) -> Inputs:
        return Inputs(text=("report",), sides=("subgraphs",))


def test_a_record_is_cut_to_what_the_inputs_name() -> None:
    shown = json.loads(Inputs(image_px=64, text=("indication",)).shown(json.dumps(RECORD)))
    assert shown["sections"] == {"indication": "cough"}
    assert set(shown) == {"key", "id", "split", "views", "provenance", "sections"}
    read = json.loads(Inputs(text=("report",)).shown(json.dumps(RECORD)))
    assert read["report"] == read["target"] == "secret one" and not read["sections"]
    assert not {"labels", "triples", "patient"} & read.keys()
    assert Inputs().shown("") == ""


def test_a_model_that_writes_never_sees_the_target(phantom_shards: Path, tmp_path: Path) -> None:
    """The writer itself, with a model that keeps what it is given."""
    writer, seen = object.__new__(Writer), []

    class Model:
        def collate(self, rows: dict) -> dict:
            seen.extend(rows["record"])
            return {}

        def generate(self, batch: dict, decoding: object) -> list:
            return [Generated("x", 1, False)] * len(seen)

        def fitting(self, texts: list[str], tokens: int) -> list[int]:
            return [min(tokens, len(text)) for text in texts]  # a token a character

    protocols = ("r2genkg-2025", "full-text")
    run = Run(name="x", model=Asked(), train={"micro_batch": 64, "global_batch": 64}, protocols=protocols)
    writer.run, writer.licence, writer.device, writer.parts, writer.task = run, "", "cpu", tmp_path, "report"
    writer.model = Model()  # type: ignore[assignment]
    index = Index.open(phantom_shards, "test")
    rows = read_block(index, sequential_blocks(len(index), 1, len(index) + 1)[0], 64, 2)
    assert writer(rows)["written"] == [len(index)] and len(seen) == len(index) + 1
    lines = [json.loads(line) for line in (tmp_path / PART.format(0)).read_text().splitlines()]
    assert [line["reference"] for line in lines] == [study.target for study in read_studies(phantom_shards, "test")]
    for line in lines:
        cleaned = clean("r2gen-2020-iu", line["reference_raw"])
        assert PROTOCOLS["r2genkg-2025"].reference(line) == cleaned[:60].rstrip() and len(line["reference_cut"]) == 1
    refuse_cuts(model_class(R2GenKGConfig()), ("r2genkg-2025", "full-text"))
    with pytest.raises(ConfigError, match="r2genkg-2025 cuts references by tokens .* and CKNet has no `fitting`"):
        refuse_cuts(model_class(CKNetConfig()), ("full-text", "r2genkg-2025"))
    with pytest.raises(ConfigError, match="r2genkg-2025 cuts references by tokens .* object has no `fitting`"):
        add_reference_cuts(lines, object(), protocols)  # type: ignore[arg-type]
    for study, record in zip(read_studies(phantom_shards, "test"), seen, strict=False):
        assert study.report not in record and study.target not in record and study.key in record
    assert seen[-1] == "" and any(study.report in rows["record"][0] for study in read_studies(phantom_shards, "test"))


def test_targets_are_streamed_in_training_alone() -> None:
    run = Run(name="x", model=Asked(), data=Data(shards="s", features="f", sides={"subgraphs": "o"}))
    assert run.sides == {"subgraphs": "o", "features": "f"}
    assert run.shown_sides == {"features": "f"}
    told = Run(name="x", model=Extracting(), data=Data(shards="s", sides={"subgraphs": "elsewhere"}))
    assert told.shown_sides == {"subgraphs": "elsewhere"}


def test_what_tells_the_report_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"shown subgraphs, which are made from the report.*training_sides"):
        Run(name="x").change({"model.system": f"{__name__}:Telling"})
    with pytest.raises(ConfigError, match=r"reads report: that is the answer itself"):
        Inputs(text=("report",)).refuse_answers("report")
    with pytest.raises(
        ConfigError,
        match="no kind of side marcs: there are subgraphs, film_subgraphs, film_subgraphs_of_another, annotations, "
        "triples, features",
    ):
        Inputs(training_sides=("marcs",)).refuse_answers("triples")
    for sides, message in (({"features": "f"}, "set that instead"), ({"subgraphs": "s"}, "reads none: leave it out")):
        with pytest.raises(ConfigError, match=message):
            Run(name="x").change({"data.sides": sides})


@pytest.mark.parametrize("n", [2, 3, 7, 50])
def test_a_derangement_gives_everybody_another(n: int, tmp_path: Path) -> None:
    donors = derangement(n, seed=1)
    assert sorted(donors) == list(range(n)) and not (donors == np.arange(n)).any()
    lines = [{"id": i, "prediction": f"p{i}", "tokens": i, "truncated": False} for i in range(n)]
    for first in range(0, n, 3):
        part = "".join(json.dumps(line) + "\n" for line in lines[first : first + 3])
        (tmp_path / PART.format(first)).write_text(part)
    offsets, unread = joined(tmp_path, tmp_path / "whole", SimpleNamespace(keys=[b""] * n), n)  # type: ignore[arg-type]
    assert len(offsets) == n and not unread
    written = list(shuffled(tmp_path / "whole", offsets, donors))
    assert [line["prediction"] for line in written] == [f"p{i}" for i in donors]
    assert [line["id"] for line in written] == list(range(n))
    assert not len(derangement(1, 0)) and not len(derangement(0, 0))


def test_a_damaged_part_is_named_and_never_passes_for_whole(tmp_path):
    """Of a disk that lost a block after the file was renamed."""
    index, part = SimpleNamespace(keys=[b"a", b"b"]), tmp_path / PART.format(0)
    torn, lost = '{"key": "a"}\n{"ke', '{"key": "a"}\n'
    for content, said in ((torn, f"{part} is damaged: delete it"), (lost, "holds 1 of 2 studies")):
        part.write_text(content)
        with pytest.raises(DataError, match=said):
            joined(tmp_path, tmp_path / "whole", index, 2)  # type: ignore[arg-type]


def test_films_of_another_study_stand_beside_its_own_record(phantom_shards: Path, ray_session: None) -> None:
    index = Index.open(phantom_shards, "test")
    n = len(index)
    donors = derangement(n, seed=0)
    (plain,) = sequential_blocks(n, 1, n + 1)
    other = replace(plain, films=np.append(donors, -1).reshape(plain.index.shape))
    own, swapped = (read_block(index, block, 32, 3) for block in (plain, other))
    assert (swapped["images"][:n] == own["images"][donors]).all()
    assert (swapped["view_mask"][:n] == own["view_mask"][donors]).all()
    assert (swapped["record"] == own["record"]).all() and (swapped["index"] == own["index"]).all()
    assert not swapped["valid"][n] and not swapped["images"][n].any()
    (streamed,) = stream_blocks(phantom_shards, "test", [other], 32, 3).dataset().iter_batches(batch_size=None)
    assert (streamed["images"] == swapped["images"]).all() and (streamed["record"] == swapped["record"]).all()


@pytest.mark.slow
def test_a_kill_and_the_number_of_writers_change_no_byte(undisturbed: Run, tmp_path: Path) -> None:
    """kill -9 of `r2kg generate` once some blocks are there; the same call goes on behind them."""
    changes = {"model.decoding": {"max_new_tokens": 6, "beams": 2}}
    whole, killed = (Path(shutil.copytree(undisturbed.directory, tmp_path / name)) for name in ("whole", "killed"))
    command = [sys.executable, "-m", "jobs.generate", str(killed), "--split", "train", "--writers", "1"]
    command += ["model.decoding.max_new_tokens=6", "model.decoding.beams=2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    parts: list[Path] = []
    for _ in range(1200):
        parts = list(killed.glob("predictions/train/*/parts/part-*"))
        if len(parts) >= 2 or process.poll() is not None:
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    written = {path.name: path.stat().st_mtime_ns for path in killed.glob("predictions/train/*/parts/part-*")}
    assert 2 <= len(written) < 23, "it was killed half-way"
    run = saved_run(killed).change(changes)
    two = generate(run, run.data.shards, "train", writers=2)
    assert two.parent.name.startswith("step-000000") and "-beams2-" in two.parent.name
    one = generate(saved_run(whole).change(changes), run.data.shards, "train", writers=1)
    for name in ("predictions.jsonl", "shuffled.jsonl"):
        assert two.with_name(name).read_bytes() == one.with_name(name).read_bytes()
    ids = [line["id"] for line in read_predictions(two)]
    assert ids == [study.id for study in read_studies(Path(run.data.shards), "train")]
    assert json.loads(two.with_name("context.json").read_text())["decoding"]["beams"] == 2
    assert {path.name for path in two.parent.iterdir()} == {"context.json", "predictions.jsonl", "shuffled.jsonl"}
    stamp = two.stat().st_mtime_ns
    assert generate(run, run.data.shards, "train") == two and two.stat().st_mtime_ns == stamp
    more = run.change({"protocols": ["full-text", "r2gen-2020"]})
    assert generate(more, run.data.shards, "train") == two and two.stat().st_mtime_ns == stamp
    assert json.loads(two.with_name("context.json").read_text())["floor"].keys() >= {"full-text", "r2gen-2020"}


@pytest.mark.slow
def test_a_writer_refuses_a_model_that_is_not_the_trained_one(undisturbed: Run, monkeypatch) -> None:
    run, checkpoint = saved_run(undisturbed.directory), find_checkpoint(undisturbed.directory, "last")
    probe = probe_of(run, run.manifest(), read_state(checkpoint))
    assert probe and len(probe[0]["index"]) == 4
    for precision in ("fp32", "bf16"):
        assert Writer(run.change({"engine.precision": precision}), checkpoint, "synthetic", None, probe).model

    def otherwise(run: Run) -> torch.nn.Module:
        model: torch.nn.Module = built(run)  # type: ignore[assignment]
        frozen = [p for name, p in model.named_parameters() if "embed_tokens" in name and not p.requires_grad]
        assert frozen
        for parameter in frozen:  # another language model of the same shape
            parameter.data = parameter.data.roll(1, 0)
        return model

    monkeypatch.setattr("r2kg.training.artefacts.built", otherwise)
    with pytest.raises(CheckpointError, match=r"had a loss of .* on 4 validation studies .* and has .* here"):
        Writer(run, checkpoint, "synthetic", None, probe).model  # noqa: B018  # it is made when it is asked for
    rows, loss = probe
    monkeypatch.setattr("r2kg.scoring.generate.probe_of", lambda *_: (rows, loss + 1))
    with pytest.raises(CheckpointError, match=r"had a loss of .* on 4 validation studies .* and has .* here"):
        generate(run, run.data.shards, "val")  # from an actor, as it was there
