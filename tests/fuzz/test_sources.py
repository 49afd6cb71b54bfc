"""Readers of raw datasets and of what a run leaves, on changed bytes: an error of ours, or an answer that can be kept.

Each reader is tried for R2KG_FUZZ_SECONDS, by a seed that R2KG_FUZZ_SEED moves. An input is wrong that costs more than
10 s or 1 GB, raises what is not ours, gives what cannot be written, or, of credentialed data, tells what stood in it.
It is kept in the test's directory and named.
"""

import csv
import gzip
import hashlib
import io
import json
import os
import random
import re
import resource
import signal
import tarfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from r2kg.config.overrides import parse_overrides
from r2kg.config.run import Run
from r2kg.modules.vision import read_weights
from r2kg.rundir import RunFiles, UnreadStudies, saved_run
from r2kg.scoring.evaluate import evaluate, protocols_beside
from r2kg.scoring.metrics.table import scores_table
from r2kg.training.artefacts import checked_card
from r2kg.training.checkpoint import find_checkpoint, newest_checkpoint, prune, read_state, read_tensors, scored
from shards.clean import CLEANINGS, clean
from shards.errors import CheckpointError, DataError
from shards.privacy import OURS
from shards.sources import Source
from shards.sources.chexpert_plus.source import ChexpertPlus
from shards.sources.iu_xray.source import IuXray
from shards.sources.mimic_cxr.report import parse_report
from shards.sources.mimic_cxr.source import MimicCxr
from shards.study import BadStudy
from tests.r2kg.scoring.test_evaluate import no_java, write_run  # noqa: F401  # no_java is a fixture
from tests.r2kg.training.test_checkpoint import write as write_checkpoints
from tests.shards.sources.chexpert_tree import write_chexpert_tree
from tests.shards.sources.mimic_tree import write_annotation, write_mimic_tree
from tests.shards.sources.test_iu_csv import kaggle  # noqa: F401  # a fixture
from tests.shards.sources.test_iu_xml import ARCHIVE, drawn  # noqa: F401  # a fixture

pytestmark = pytest.mark.fuzz
SECONDS = float(os.environ.get("R2KG_FUZZ_SECONDS", "20"))
SEED = os.environ.get("R2KG_FUZZ_SEED", "0")
MAX_SECONDS, MAX_BYTES = 10, 1_000_000_000
Random = random.Random

NUMBERS = ("0", "-1", "1e999", "-1e999", "NaN", "Infinity", "2147483648", "9" * 30, "9" * 400, "9" * 5_000, "1.0")
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**63, 10**400, float("nan"), float("inf"), "", "\udc00", "\ud83d", "\0", "\u202e", "../../x"),
    *("/etc/hostname", "a" * 5_000, "a/" * 3_000, ".png" * 300, [], {}, [[]], [None], {"": None}, "NaN", "1" * 5_000),
)
PIECES = (
    *(b"\0", b"\xff", b"\xed\xb0\x80", b"\xef\xbb\xbf", b"\r", b"\n", b"\r\n" * 50, b'"', b'"' * 3, b"'", b",", b";"),
    *(b"\\udc00", b"\\ud83d", b"\\u0000", b"{", b"}", b"[" * 5_000, b"]", b'{"a":' * 1_000, b"<a>" * 3_000, b"&#0;"),
    *(b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/hostname'>]>", b"&b;", b" " * 10_000, b"x" * 5_000, b"\n" * 20_000),
    *(number.encode() for number in NUMBERS),
)


def change_bytes(rng: Random, data: bytes) -> bytes:
    """Flip, cut, splice, repeat, or put something hostile in."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at, to = sorted(rng.randrange(len(out) + 1) for _ in range(2))
        to = min(to, at + rng.choice((1, 4, 30, 300, 3_000)))
        match rng.randrange(7):
            case 0 | 1 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                del out[at : to if rng.random() < 0.8 else None]
            case 3:
                into = rng.randrange(len(out) + 1)
                out[into:into] = out[at:to] * rng.choice((1, 1, 50))
            case 4 if at < len(out):
                out[at] = rng.randrange(256)
            case 5 if numbers := list(re.finditer(rb"\d+(?:\.\d+)?", out[at : at + 2_000])):
                number = rng.choice(numbers)
                out[at + number.start() : at + number.end()] = rng.choice(NUMBERS).encode()
            case _:
                out[at : rng.choice((at, to))] = rng.choice(PIECES)
    return bytes(out)


def change_json(rng: Random, data: bytes) -> bytes:
    """Put another value, name or number of members anywhere in the tree, or in the tree of one line."""
    lines = data.splitlines(keepends=True)
    rows = [number for number, line in enumerate(lines) if line.strip()]
    row = rng.choice(rows) if re.search(rb"\n[\[{]", data) else None
    tree = json.loads(data if row is None else lines[row])
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(tree)
    node, key = rng.choice(places) if places else ([tree], 0)
    match rng.randrange(6):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[str(rng.choice(VALUES))[:5_000]] = node.pop(key)
        case 2:
            other, name = rng.choice(places)
            node[key] = json.loads(json.dumps(other[name]))
        case 3 if isinstance(node, list):
            node *= rng.choice((2, 200))
        case 4 if isinstance(node[key], str):
            at = rng.randrange(len(node[key]) + 1)
            node[key] = node[key][:at] + str(rng.choice(VALUES)) + node[key][at:]
        case _:
            node[key] = rng.choice(VALUES)
    changed = json.dumps(tree, ensure_ascii=True).encode()
    return changed if row is None else b"".join([*lines[:row], changed + b"\n", *lines[row + 1 :]])


def change_csv(rng: Random, data: bytes) -> bytes:
    """Another cell, fewer or more of them, rows again or elsewhere, other ways to write them."""
    rows = list(csv.reader(io.StringIO(data.decode(), newline="")))
    for _ in range(rng.choice((1, 1, 4))):
        row = rng.choice(rows)
        match rng.randrange(6):
            case 0 if row:
                del row[rng.randrange(len(row))]
            case 1:
                row.insert(rng.randrange(len(row) + 1), "more")
            case 2:
                rows.insert(rng.randrange(len(rows) + 1), list(row))
            case 3:
                rows.remove(row) if len(rows) > 1 else None
            case 4 if row:
                row[rng.randrange(len(row))] = rng.choice(rng.choice(rows) or [""])
            case _ if row:
                row[rng.randrange(len(row))] = str(rng.choice((*VALUES, *NUMBERS)))
    out = io.StringIO(newline="")
    quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    csv.writer(out, quoting=quoting, lineterminator=rng.choice(("\n", "\r\n"))).writerows(rows)
    return out.getvalue().encode(errors=rng.choice(("replace", "surrogatepass")))


def change_xml(rng: Random, data: bytes) -> bytes:
    """Elements, attributes or texts again, gone, in one another or hostile."""
    parts = list(re.finditer(rb"<[^<>]*>|[^<>]+|\"[^\"]*\"", data))
    part, other = rng.choice(parts), rng.choice(parts)
    new = rng.choice((b"", part[0] * 2, part[0] * 500, other[0], rng.choice(PIECES), b"<a>" + part[0] + b"</a>"))
    return data[: part.start()] + new + data[part.end() :]


def change_tar(rng: Random, data: bytes) -> bytes:
    """A report or a header's field, its checksum made right again."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        member = rng.choice(tar.getmembers())
    out, at = bytearray(data), member.offset
    if rng.random() < 0.3:
        with tarfile.open(fileobj=(packed := io.BytesIO()), mode="w") as tar:
            content = change_xml(rng, data[member.offset_data : member.offset_data + member.size])
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        return data[:at] + packed.getvalue()[: 512 - -member.size // 512 * 512] + data[at:]
    fields = ((0, 100), (100, 108), (108, 116), (124, 136), (136, 148), (156, 157), (157, 257), (257, 265), (345, 500))
    begin, end = rng.choice(fields)
    values = (b"-1", b"\x80" + b"\xff" * 20, b"\xff" * 20, b"77777777777", *(b"%c" % kind for kind in b"xLKgS5/\0"))
    out[at + begin : at + end] = rng.choice(values)[: end - begin].ljust(end - begin, b"\0")
    out[at + 148 : at + 156] = b" " * 8
    out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return bytes(out)


CHANGES = {".json": change_json, ".jsonl": change_json, ".before": change_json, ".csv": change_csv, ".xml": change_xml}


def changed(rng: Random, file: Path, data: bytes) -> bytes:
    """Another content of a file: by its structure, or by its bytes, packed as it was."""
    if file.suffix in (".gz", ".tgz") and rng.random() < 0.8:
        inside = Path(file.stem + (".tar" if file.suffix == ".tgz" else ""))
        return gzip.compress(changed(rng, inside, gzip.decompress(data)), 1)
    change = change_tar if file.suffix == ".tar" else CHANGES.get(file.suffix, change_bytes)
    return (change if rng.random() < 0.5 else change_bytes)(rng, data)


class TooLong(BaseException):
    """No reader may catch it."""


def wrong_with(read: Callable[[], None]) -> str:
    """Why what `read` does is wrong, in one line; "" when it is right."""

    def stop(*_: object) -> None:
        raise TooLong

    before, usual = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
    try:
        read()
    except OURS:
        pass
    except TooLong:
        return f"more than {MAX_SECONDS} s"
    except Exception as error:
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
        return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}: {str(error)[:100]!r}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return f"{grown:,} bytes" if grown > MAX_BYTES else ""


def fuzz(
    name: str,
    folder: Path,
    files: Sequence[Path],
    read: Callable[[], None],
    after: Callable[[Path], None] = lambda file: None,
) -> None:
    """Try `read` on changes of `files`, one at a time; `after` follows the change of one."""
    rng, whole, end = Random(f"{SEED} {name}"), {file: file.read_bytes() for file in files}, time.monotonic() + SECONDS
    everything = dict.fromkeys(path for file in files for path in file.parent.iterdir() if path.is_file())
    kept = {path: path.read_bytes() for path in everything}
    assert not wrong_with(read), "the files as they were"
    tried, faults = 0, dict[str, str]()
    while time.monotonic() < end:
        file = rng.choice(files)
        data = changed(rng, file, whole[file])
        file.write_bytes(data)
        if rng.random() < 0.5:
            after(file)
        tried += 1
        if fault := wrong_with(read):
            at = folder / f"wrong-{name}-{tried}-{file.name}"
            at.write_bytes(data)
            faults.setdefault(re.sub(r"\d{3,}|'.*'", "", fault), f"{fault} ({at})")
        for path, content in kept.items():
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)
    print(f"{name}: {tried:,} inputs, {len(faults)} ways to be wrong")
    assert not faults, f"of {tried:,} inputs:\n" + "\n".join(faults.values())


def told(source: Source, secrets: Callable[[str], list[str]] = lambda text: []) -> None:
    """List and read all; what is given can be written, and what is told of the whole names no secret."""
    try:
        listing = source.listing()
    except DataError as error:
        assert isinstance(error, BadStudy) or not (found := secrets(str(error))), f"told: {found}"
        raise
    assert not (found := secrets("\n".join(listing.notes))), f"told: {found}"
    for record in (*listing.items, *listing.drops):
        record.model_dump_json()
    "\n".join(listing.notes).encode()
    for item in listing.items:
        with suppress(DataError):
            study, films = source.read(item)
            study.model_dump_json()
            assert len(films) == len(study.views) and all(film.ndim == 2 for film in films)


def test_iu_annotation(drawn_iu: Callable[..., Path], tmp_path: Path) -> None:
    root = drawn_iu()
    fuzz("iu-annotation", tmp_path, [root / "annotation.json"], lambda: told(IuXray(raw=root)))


def test_iu_csv(kaggle: Callable[..., Path], tmp_path: Path) -> None:  # noqa: F811
    root = kaggle()
    (root / "images.csv").write_text("file,nlm_image_id,exam_id,view\na/0.png,CXR1_IM-0001-1001,CXR1,Frontal\n")
    files = [root / name for name in ("indiana_reports.csv", "indiana_projections.csv", "images.csv")]
    fuzz("iu-csv", tmp_path, files, lambda: told(IuXray(raw=root)))


def test_iu_archive(drawn: Callable[..., Path], tmp_path: Path) -> None:  # noqa: F811
    root = drawn()
    fuzz("iu-archive", tmp_path, [root / ARCHIVE], lambda: told(IuXray(raw=root)))


def test_iu_xml(drawn: Callable[..., Path], tmp_path: Path) -> None:  # noqa: F811
    root = drawn()
    with tarfile.open(root / ARCHIVE) as tar:
        tar.extractall(root, filter="data")
    (root / ARCHIVE).unlink()
    fuzz("iu-xml", tmp_path, sorted(root.glob("ecgen-radiology/*.xml")), lambda: told(IuXray(raw=root)))


@pytest.mark.parametrize("gz", [True, False])
def test_mimic_tables(tmp_path: Path, gz: bool) -> None:
    tree = write_mimic_tree(tmp_path / "raw", patients=3, gz=gz)
    files = [path for name in ("split", "metadata", "chexpert") for path in tree.root.glob(f"*-{name}.csv*")]
    fuzz(f"mimic-tables-{gz}", tmp_path, files, lambda: told(MimicCxr(raw=tree.root), tree.found_in))


def test_mimic_reports(tmp_path: Path) -> None:
    tree = write_mimic_tree(tmp_path / "raw", patients=3, zipped=True)
    fuzz("mimic-reports", tmp_path, [tree.reports], lambda: told(MimicCxr(raw=tree.root), tree.found_in))


def test_mimic_annotation(tmp_path: Path) -> None:
    tree = write_mimic_tree(tmp_path / "raw", patients=3)
    path = tmp_path / "listed" / "annotation.json"
    path.parent.mkdir()
    write_annotation(tree, path)
    source = MimicCxr(raw=tree.root, per="image", annotation=path)
    fuzz("mimic-annotation", tmp_path, [path], lambda: told(source, tree.found_in))


@pytest.mark.parametrize("kind", ["table", "labels", "annotation"])
def test_chexpert_plus(tmp_path: Path, kind: str) -> None:
    tree = write_chexpert_tree(tmp_path / "raw", patients=4)
    secrets = [*tree.sentences, *tree.patients, *tree.studies]

    def found_in(text: str) -> list[str]:
        return [secret for secret in secrets if secret in text]

    options = {"annotation": tree.write_annotation({"train": [0, 1], "val": [2]})} if kind == "annotation" else {}
    labels = tree.root / "chexbert_labels" / "findings_fixed.json"
    file = {"table": tree.table, "labels": labels, **options}[kind]
    fuzz(f"chexpert-{kind}", tmp_path, [file], lambda: told(ChexpertPlus(raw=tree.root, **options), found_in))


def test_texts_of_reports(tmp_path: Path) -> None:
    tree = write_mimic_tree(tmp_path / "raw", patients=6)
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(len(tree.written)):
        (folder / f"{number}.txt").write_bytes(tree.report_of(number).read_bytes())
    files = sorted(folder.iterdir())

    def read() -> None:
        for text in (path.read_bytes().decode("latin-1") for path in files):
            parse_report(text)
            for cleaning in CLEANINGS:
                clean(cleaning, text).encode()

    fuzz("texts", tmp_path, files, read)


def test_run_and_its_notes(tmp_path: Path) -> None:
    run = Run(name="a", root=str(tmp_path / "runs"))
    files = RunFiles(run.directory)
    files.begin(run)
    files.note_failure("one", "DataError", "a tar is short", "at a place")
    UnreadStudies(run.directory, 0).add(["a: torn", "b: gone"])

    def read() -> None:
        UnreadStudies(run.directory, 0).add(["c: torn"])
        assert "c" in files.unread()
        with suppress(DataError, RuntimeError):
            files.raise_failure("one")
        saved_run(run.directory).model_dump_json().encode()

    fuzz("run", tmp_path, [files.run, files.failure, run.directory / "unread-00000.jsonl"], read)


def test_checkpoints(tmp_path: Path) -> None:
    run = Run(name="a", root=str(tmp_path / "runs"))
    files = RunFiles(run.directory)
    files.begin(run.change({"train.choose": "BLEU-4"}))
    for step in (1, 2):
        newest = write_checkpoints(run.directory, step, 0.5 / step)
    files.validation.mkdir()
    score = files.validation / f"{newest.name}.json"
    digest = hashlib.sha256((newest / "manifest.json").read_bytes()).hexdigest()
    score.write_text(json.dumps({"checkpoint_sha256": digest, "task": "report", "values": {"bleu4": 0.5}}))

    def seal(file: Path) -> None:
        """Let the manifest fit the changed file."""
        manifest = json.loads((newest / "manifest.json").read_text()) if file.name != "manifest.json" else {}
        if file.parent == newest and manifest:
            manifest["bytes"][file.name] = file.stat().st_size
            manifest["sha256"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
            (newest / "manifest.json").write_text(json.dumps(manifest))

    def read() -> None:
        good = newest_checkpoint(run.directory)
        assert good
        scored(newest, "BLEU-4")
        for which in ("best", "last", "2"):
            with suppress(CheckpointError):
                checkpoint = find_checkpoint(run.directory, which)
                assert read_state(checkpoint)["step"] >= 0
                assert {name: tensor.shape for name, tensor in read_tensors(checkpoint).items()}
        prune(run.directory, kept=2, chosen=True)

    fuzz("checkpoints", tmp_path, [files.run, score, *sorted(newest.iterdir())], read, seal)


def test_cards_of_artefacts(tmp_path: Path) -> None:
    folder = tmp_path / "artefact"
    folder.mkdir()
    (folder / "a.txt").write_text("abc")
    files = {"a.txt": [3, hashlib.sha256(b"abc").hexdigest()]}
    card = {"name": "a", "settings": {"from": "b@best", "map": {}}, "files": files, "fingerprint": "0"}
    (folder / "artefact.json").write_text(json.dumps(card))

    def read() -> None:
        found = checked_card(folder, hashes=True)
        assert {"name", "settings", "files", "fingerprint"} <= found.keys()

    fuzz("cards", tmp_path, [folder / "artefact.json", folder / "a.txt"], read)


def test_predictions(tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    folder.mkdir()
    path = write_run(folder)

    def read() -> None:
        protocols_beside(path)
        scores = evaluate(path)
        scores_table(scores)
        json.dumps(scores, allow_nan=False, ensure_ascii=False).encode()

    fuzz("predictions", tmp_path, sorted(folder.iterdir()), read)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_weights(tmp_path: Path, form: str) -> None:
    import torch
    from safetensors.torch import save_file

    folder = tmp_path / "weights"
    folder.mkdir()
    path = folder / ("w.safetensors" if form == "safetensors" else "w.pth")
    state = {f"layer{number}.weight": torch.ones(4, 4) for number in range(5)}
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")

    def read() -> None:
        if path.stat().st_size < 20_000:  # torch takes quadratic time to word its refusal of a long name
            read_weights(path, "train.init_from")

    fuzz(f"weights-{form}", tmp_path, [path], read)


def test_overrides(tmp_path: Path) -> None:
    folder = tmp_path / "words"
    folder.mkdir()
    words = (
        *("optim.lr_of.x.y=1", "optim.lr=1e-4", "train.seed=3", "model.vision.options={}", "data.sides.graph=x"),
        *("engine.deepspeed.a.b=1", "model.llm.tuning=lora", 'protocols=["full-text"]', "model.system=r2genkg"),
        *("name=b", "root=r", "train.init_from=a@best", "model.decoding.beams=1"),
    )
    (folder / "words.txt").write_text("\n".join(words))

    def read() -> None:
        given = (folder / "words.txt").read_bytes().decode(errors="surrogateescape").split("\n")
        for start in range(0, len(given), 3):
            with suppress(*OURS):
                run = Run(name="a").change(parse_overrides(given[start : start + 3]))
                run.absolute().model_dump_json().encode()

    fuzz("overrides", tmp_path, [folder / "words.txt"], read)
