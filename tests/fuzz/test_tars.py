"""Hostile bytes for whatever reads shards and sides: an error of ours or the right content, soon, in bounded memory.

Everything is written once by the project's own writers, then changed: bits flipped, cuts, splices, numbers that cannot
be, sealed again where a seal would else be all that is tried. R2KG_FUZZ_SECONDS (20 by default) is the time each
reader gets, R2KG_FUZZ_SEED what is drawn, R2KG_FUZZ_FROM the first input: a fault names its own.
"""

import copy
import io
import json
import os
import random
import resource
import shutil
import signal
import tarfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain import plain_shards

from shards.graphs.subgraph import Vocabulary, pack, subgraph_of, unpack
from shards.graphs.triples import TripleFile, read_graph
from shards.graphs.write import StudyGraphs
from shards.privacy import OURS
from shards.sources.archive import BLOCK, Walk, walk_tar
from shards.sources.forms.webdataset import WebDataset
from shards.stream.index import Index, open_splits
from shards.stream.show import find_study, study_lines
from shards.stream.side import Side
from shards.study import SPLITS
from shards.tars.format import (
    FORMAT,
    Manifest,
    SealedManifest,
    described,
    fingerprint_of,
    index_path,
    read_index,
    read_manifest,
    write_sealed,
)
from shards.tars.kinds import FILE, KINDS, SideManifest, SideTar, read_side, without_member
from shards.tars.place import sha256_of
from shards.tars.private import begun_at
from shards.tars.repair import Look, held_at, raw_lines
from shards.tars.report import counts_table, receipt_lines, side_lines
from shards.tars.shards import refuse_other
from shards.tars.sides import plan_side, write_side_tar
from shards.tars.verify import contents_faults, faults_of
from shards.tars.write import Made

pytestmark = pytest.mark.fuzz
SECONDS = float(os.environ.get("R2KG_FUZZ_SECONDS", "20"))
SEED, FROM = (int(os.environ.get(f"R2KG_FUZZ_{name}", "0")) for name in ("SEED", "FROM"))
MAX_SECONDS, MAX_BYTES = 10, 1 << 30
SECRET = "zyxom-47"
"""Part of every name and report that is the owner's; no message may hold it."""
FAULTS: dict[str, str] = {}
"""Place and kind of a fault → the first input that showed it."""
ROUND = [""]
"""The name of the input that is being tried."""
HOSTILE: list[Any] = [
    *(None, True, "", " ", "x", "../../x.tar", "/etc/passwd", "\ud800", f"{SECRET}\udc00", "\0", "é" * 300, "p.jpg"),
    *(0, 1, -1, 2, 99, 10**12, 1 << 31, 1 << 61, 1 << 63, 1 << 70, 10**400, 0.5, 1e308, float("nan"), float("inf")),
    *([], {}, [[]], [None], ["a"] * 50, {"": 0}, {"a": {"b": [1]}}, [1, 2], [0, 0, 0], [-1, 5, 0], [1 << 70] * 3),
]
NUMBERS = [b"-0000001000\0", b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\x80" + bytes(10) + b"\x01"]
NUMBERS += [b" " * 12, b"00000000000\0", b"9" * 12, b"\0" * 12, b"0x000000010\0", b"+0000000010\0", b"00000_00010\0"]


@dataclass
class Written:
    """What the writers wrote, and what is right."""

    root: Path
    films: dict[str, list[bytes]]
    """Key → films and record."""
    sides: dict[str, Path]
    beside: dict[str, dict[str, bytes | None]]
    """Kind → key → member."""


class Features:
    """A maker of features: the bit patterns of two views of 3 x 4 values."""

    def __call__(self, index: Index, rows: range, given: bytes) -> Iterator[Made]:
        for row in rows:
            values = np.arange(24 * row, 24 * row + 12 * min(2, index.films(row)), dtype="<u2")
            yield Made({"features": values.tobytes()})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Twelve drawn studies in tars of four, and two sides of them, written as the tasks write them."""
    root = tmp_path_factory.mktemp("shards")
    manifest = plain_shards(root, studies=12, per_tar=4, licence="physionet-credentialed-1.5.0")
    indices = open_splits(root, manifest)
    films = {
        index.keys[row].decode(): [bytes(part) for part in index.members(row)]
        for index in indices.values()
        for row in range(len(index))
    }
    names = Vocabulary(tuple(sorted(f"{SECRET} {n}" for n in range(9))), ("is", "near"))
    ends = {key: [(f"{SECRET} {n % 9}", "is", f"{SECRET} {(n + 1) % 9}")] for n, key in enumerate(films)}
    graphs = {key: subgraph_of(triples, names) for key, triples in ends.items()}
    sides, beside = {}, dict[str, dict[str, bytes | None]]()

    def own_graphs(index: Index, rows: range, given: bytes) -> Iterator[Made]:
        maker = StudyGraphs(names, None, None, "fail")
        yield from (maker._made(tuple(ends[index.keys[row].decode()]), {}) for row in rows)

    for kind, make, description in (
        ("subgraphs", own_graphs, {"nodes": list(names.nodes), "relations": list(names.relations)}),
        ("features", Features(), {"views": 2, "patches": 3, "width": 4}),
    ):
        out = sides[kind] = tmp_path_factory.mktemp(kind)
        tars = []
        for side_job in plan_side(indices, kind, description):
            write_side_tar(out, side_job, indices[side_job.split], make)
            index, tar = described(out, side_job.name)
            tars.append(SideTar(held=len(index.studies), **tar))
        side = SideManifest(
            kind=kind, parent=manifest.fingerprint, licence=manifest.licence, description=description,
            shards=tuple(tars), without={},
        )  # fmt: skip
        write_sealed(out / FILE, side)
        beside[kind] = {
            index.keys[row].decode(): bytes(opened.read(row) or b"")
            for index in indices.values()
            for opened in [Side.open(out, index, manifest, kind)]
            for row in range(len(index))
        }
    assert len(films) == 12 and all(graphs.values()) and all(beside["features"].values())
    return Written(root, films, sides, beside)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """TimeoutError when the block takes longer; what limits a block around it goes on after it."""

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    began = time.perf_counter()
    old, left = signal.signal(signal.SIGALRM, late), signal.setitimer(signal.ITIMER_REAL, seconds)[0]
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, old)
        signal.setitimer(signal.ITIMER_REAL, left and max(0.1, left - (time.perf_counter() - began)))


@contextmanager
def judged(what: str) -> Iterator[None]:
    """An error of ours ends the block; any other, one that quotes, one that is late or too much memory is a fault."""

    def fault(kind: str, error: BaseException | None = None) -> None:
        frames = traceback.extract_tb(error.__traceback__) if error else []
        place = next((f"{f.filename}:{f.lineno}" for f in reversed(frames) if "/shards/" in f.filename), "")
        text = "".join(traceback.format_exception(error))[-2500:] if error else ""
        FAULTS.setdefault(f"{what}: {kind} {place}", f"{ROUND[0]}\n{text}")

    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    try:
        with limited(MAX_SECONDS):
            yield
    except OURS as error:
        if SECRET in "".join(traceback.format_exception(error)).lower():
            fault("quotes", error)
    except Exception as error:
        fault(type(error).__name__, error)
    if (seconds := time.perf_counter() - began) > MAX_SECONDS:
        fault(f"took {seconds:.0f} s")
    if (grown := 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)) > MAX_BYTES:
        fault(f"took {grown >> 20} MiB")


def rounds(name: str) -> Iterator[random.Random]:
    """A generator of its own for every input, until the time is up; what was wrong is then told together."""
    FAULTS.clear()
    end, number = time.monotonic() + SECONDS, FROM
    while number == FROM or time.monotonic() < end:
        ROUND[0] = f"input {number}"
        yield random.Random(f"{SEED} {name} {number}")
        number += 1
    print(f"{name}: {number - FROM:,} inputs, {len(FAULTS)} kinds of fault")
    told = "\n\n".join(f"{fault}, first by {shown}" for fault, shown in FAULTS.items())
    assert not FAULTS, told


def bytes_changed(draw: random.Random, data: bytes, other: bytes = b"") -> bytes:
    """The bytes with one to four changes: flips, cuts, splices, repeats, runs of one value."""
    out = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        at, n = draw.randrange(len(out) + 1), draw.choice([1, 2, 8, 60, 512, 2000])
        kind = draw.randrange(8)
        if kind <= 2 and at < len(out):
            out[at] ^= 1 << draw.randrange(8)
        elif kind == 3:
            del out[at : at + n]
        elif kind == 4:
            del out[at:]
        elif kind == 5:
            source = other or bytes(out)
            start = draw.randrange(len(source) + 1)
            out[at : at + draw.choice([0, n])] = source[start : start + n]
        elif kind == 6:
            out[at : at + n] = bytes([draw.choice([0, 255, 32, 34, 91, 123, draw.randrange(256)])]) * n
        else:
            out[at:at] = draw.choice([b"[" * 5000, b"\xed\xb0\x80", b"\\ud800", b"\xff", b"\n", b'"', b"9" * 30])
    return bytes(out)


def json_changed(draw: random.Random, content: Any) -> Any:
    """The tree with one to three values changed for hostile ones, removed, repeated, or under another name."""
    content = copy.deepcopy(content)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        node = content
        while True:
            keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
            if not keys:
                break
            key = draw.choice(list(keys))
            if isinstance(node[key], dict | list) and node[key] and draw.random() < 0.8:
                node = node[key]
                continue
            kind = draw.randrange(6)
            if kind <= 2:
                node[key] = copy.deepcopy(draw.choice(HOSTILE))
            elif kind == 3 and isinstance(node[key], int | float):
                node[key] = node[key] * draw.choice([-1, 2, 1 << 40]) + draw.choice([-1, 0, 1])
            elif kind == 4:
                node.pop(key)
            elif isinstance(node, list):
                node.insert(key, copy.deepcopy(draw.choice(node)))
            else:
                node[str(draw.choice(["", "0", "p.jpg", "json", "x" * 200, f"{SECRET}\ud800"]))] = copy.deepcopy(
                    node[key]
                )
            break
    return content


def text_of(content: Any) -> bytes:
    """JSON, all of it ASCII."""
    return json.dumps(content).encode()


def sealed(content: Any, kind: type[SealedManifest]) -> bytes:
    """A manifest's JSON under the fingerprint that its content has, where it can have one."""
    with suppress(ValueError, TypeError, RecursionError):
        content["fingerprint"] = fingerprint_of(kind.model_validate(content))
    return text_of(content)


def reindexed(root: Path, name: str, data: bytes, manifest: bytes, file: str, kind: type[SealedManifest]) -> None:
    """Put `data` in place of a tar's index and seal the manifest to it."""
    index_path(root / name).write_bytes(data)
    content = json.loads(manifest)
    for tar in content["shards"]:
        if tar["name"] == name:
            tar["index"] = sha256_of(index_path(root / name))
    (root / file).write_bytes(sealed(content, kind))


@pytest.fixture
def at(written: Written, tmp_path: Path) -> Path:
    """A copy of the shards that a test may damage."""
    return Path(shutil.copytree(written.root, tmp_path / "shards"))


def headers_of(data: bytes) -> list[int]:
    """Where an archive's headers are."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return sorted({at for member in tar for at in (member.offset, member.offset_data - BLOCK)})


def header_changed(draw: random.Random, data: bytes, at: list[int]) -> bytes:
    """One header with another size, type, name or checksum, its checksum right again; or all zeros."""
    out = bytearray(data)
    for here in draw.sample(at, k=draw.choice([1, 1, 2])):
        header = out[here : here + BLOCK]
        kind = draw.randrange(6)
        if kind == 0:
            out[here : here + BLOCK] = bytes(BLOCK)
            continue
        if kind <= 2:
            header[124:136] = draw.choice([*NUMBERS, b"%011o\0" % draw.choice([0, 1, 511, 513, 10**6, 1 << 31])])
        elif kind == 3:
            header[156] = draw.choice(b"0123456789LKxgSVDAX\0\xff")
        elif kind == 4:
            header[draw.randrange(BLOCK)] = draw.randrange(256)
        else:
            name = draw.choice([b"../../x", b"/etc/passwd", b"a\\b", b"", b"\xff\xfe", b"a.p.jpg", b"." * 100])
            header[:100] = name.ljust(100, b"\0")
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
        out[here : here + BLOCK] = header
    return bytes(out)


def foreign(kind: int, members: dict[str, bytes]) -> bytes:
    """An archive as others write them, with long and accented names."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def standard(data: bytes) -> list[tuple[str, int, int]] | None:
    """What the standard reader finds; None where it finds fault, never ends, or finds what is no plain file."""
    try:
        with limited(1), tarfile.open(fileobj=io.BytesIO(data), mode="r:", errors="replace") as tar:
            members = tar.getmembers()
    except Exception:
        return None
    if any(member.issparse() or member.type not in tarfile.REGULAR_TYPES for member in members):
        return None
    return [(member.name, member.offset_data, member.size) for member in members]


def test_walks(written: Written, tmp_path: Path) -> None:
    own = (written.root / "train-00000.tar").read_bytes()
    long = {"d" * 70 + "/" + "k" * 90 + ".json": b"{}", "ü.txt": b"x" * 700, "a.0.jpg": bytes(1500), "b.json": b""}
    formats = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)
    archives = [
        own,
        *(foreign(kind, long) for kind in formats[:2]),
        foreign(formats[2], {"a.json": b"1" * 600, "b": b""}),
    ]
    places, path = [headers_of(data) for data in archives], tmp_path / "a.tar"
    for draw in rounds("walk_tar"):
        which = draw.randrange(len(archives))
        data = header_changed(draw, archives[which], places[which])
        data = bytes_changed(draw, data, own) if draw.random() < 0.3 else data
        path.write_bytes(data)
        walk = Walk(cut_at=0)
        with judged(f"walk of {which}"):
            walk = walk_tar(path)
            ends = [member.offset + member.size for member in walk.members]
            assert all(0 <= m.offset <= m.offset + m.size <= len(data) for m in walk.members) and ends == sorted(ends)
            assert walk.cut_at >= 0 or len(data) - max(ends, default=0) >= BLOCK
        if walk.cut_at < 0 and not walk.refused and (wanted := standard(data)) is not None:
            with judged(f"walk of {which} and the standard reader's"):  # which ends where a field cannot be, in silence
                assert [(m.offset, m.size) for m in walk.members][: len(wanted)] == [each[1:] for each in wanted]
                assert all(w[0].endswith(m.name.rstrip("/")) for w, m in zip(wanted, walk.members, strict=False))


def test_foreign_archives(written: Written, tmp_path: Path) -> None:
    members = {}
    for number, (key, (*films, _)) in enumerate(list(written.films.items())[:4]):
        members |= {f"{key}.{view}.jpg": film for view, film in enumerate(films)}
        members[f"{key}.json"] = text_of({"id": f"s{number}", "report": f"{SECRET} is drawn.", "patient": str(number)})
    archives = [foreign(kind, members) for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
    places, path = [headers_of(data) for data in archives], tmp_path / "train-0.tar"
    source = WebDataset(raw=tmp_path)
    for draw in rounds("webdataset"):
        which = draw.randrange(2)
        data = archives[which]
        if draw.random() < 0.3:
            record = json_changed(draw, {"id": "a", "report": f"{SECRET} is drawn.", "patient": "p", "split": "train"})
            data = foreign(
                tarfile.GNU_FORMAT, members | {"a.0.jpg": members[next(iter(members))], "a.json": text_of(record)}
            )
        else:
            data = header_changed(draw, data, places[which]) if draw.random() < 0.5 else bytes_changed(draw, data)
        path.write_bytes(data)
        with judged("webdataset"):
            listing = source.listing()
            for item in listing.items:
                with judged("a study"):
                    study, films = source.read(item)
                    study.model_copy(update={"target": "x"}).model_dump_json()
                    assert films and len(films) == len(study.views)
            for drop in listing.drops:
                drop.model_dump_json()


def right_rows(written: Written, index: Index, exactly: bool, films: bool = True) -> None:
    """Every study is as it was written, by both ways of reading, or an error names it."""
    for row in range(len(index)):
        with judged(f"row {row}"):
            record = index.read_record(row)
            index.record_of(row, record)
            found = [*map(bytes, index.read(row)[0]), bytes(record)]
            assert not exactly or found == written.films[index.keys[row].decode()], "other content"


def test_bits_of_a_tar(written: Written, at: Path) -> None:
    manifest, path = read_manifest(at), at / "train-00000.tar"
    whole = path.read_bytes()
    for draw in rounds("tar under an index"):
        data = bytearray(whole) if draw.random() < 0.8 else bytes_changed(draw, whole)
        if isinstance(data, bytearray):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        with judged("tar"):
            right_rows(written, Index.open(at, "train", draw.choice(["fail", "skip"]), manifest), True)
        if data != whole:
            assert faults_of(at, manifest.shards[:1])
            with judged("verify"):
                assert contents_faults(at, manifest)


def test_indices(written: Written, at: Path) -> None:
    manifest, path = (at / "manifest.json").read_bytes(), index_path(at / "train-00000.tar")
    whole = path.read_bytes()
    for draw in rounds("index"):
        on_bad, sealing = draw.choice(["fail", "skip"]), draw.random() < 0.7
        data = text_of(json_changed(draw, json.loads(whole))) if sealing else bytes_changed(draw, whole)
        path.write_bytes(data)
        if sealing:
            reindexed(at, "train-00000.tar", data, manifest, "manifest.json", Manifest)
        else:
            (at / "manifest.json").write_bytes(manifest)
        with judged("read_index"):
            read_index(at, read_manifest(at).shards[0])
        with judged(f"Index.open {on_bad}"):
            right_rows(written, Index.open(at, "train", on_bad), not sealing)
        with judged("verify"):
            faults = contents_faults(at, read_manifest(at))
            assert faults or data == whole or sealing


def test_what_is_held_after_a_kill_or_worse(written: Written, at: Path) -> None:
    """NAME.raw, an index and the mark of unfinished shards, each with anything in it: told is what can be read."""
    keys = list(written.films)
    raw = raw_lines({key: Look(number, f"{number:016x}") for number, key in enumerate(keys)})
    mark = json.dumps({"names": "0" * 16, "asked": {"source": "phantom", "size": 64}}).encode()
    index = index_path(at / "train-00000.tar").read_bytes()
    for draw in rounds("held"):
        (at / "train-00000.raw").write_bytes(bytes_changed(draw, raw))
        (at / ".writing").write_bytes(bytes_changed(draw, mark))
        index_path(at / "train-00000.tar").write_bytes(bytes_changed(draw, index) if draw.random() < 0.5 else index)
        with judged("held_at"):
            held = held_at(at)
            assert len(held) <= len(keys) + 100 and all(-1 <= one.present < 10_000 for one in held.values())
        with judged("begun_at"):
            assert isinstance(begun_at(at), dict)
        with judged("refuse_other"):
            refuse_other(at, {"source": "phantom", "size": 64})


def test_manifests(written: Written, at: Path) -> None:
    path = at / "manifest.json"
    whole = path.read_bytes()
    right = read_manifest(at)
    for draw in rounds("manifest"):
        sealing = draw.random() < 0.7
        data = sealed(json_changed(draw, json.loads(whole)), Manifest) if sealing else bytes_changed(draw, whole)
        path.write_bytes(data)
        with judged("read_manifest"):
            manifest = read_manifest(at)
            assert sealing or manifest == right
            assert all(Path(shard.name).name == shard.name for shard in manifest.shards)
            assert all(manifest.splits[split].studies >= 0 for split in SPLITS) and manifest.format == FORMAT
            counts_table(manifest), list(receipt_lines(at, manifest))
            for on_bad in ("fail", "skip"):
                with judged(f"Index.open {on_bad}"):
                    index = Index.open(at, draw.choice(SPLITS), on_bad)
                    assert len(index) < 100
            with judged("verify"):
                contents_faults(at, manifest)
            with judged("show"):
                list(study_lines(*find_study(at, "nobody" if draw.random() < 0.5 else next(iter(written.films)))))


@pytest.mark.parametrize("kind", ["subgraphs", "features"])
def test_sides(written: Written, tmp_path: Path, kind: str) -> None:
    side = Path(shutil.copytree(written.sides[kind], tmp_path / kind))
    manifest, indices = read_manifest(written.root), open_splits(written.root, read_manifest(written.root))
    path, tar = index_path(side / "train-00000.tar"), side / "train-00000.tar"
    seal, index, content = (side / FILE).read_bytes(), path.read_bytes(), tar.read_bytes()
    right, films = written.beside[kind], indices["train"].films
    for draw in rounds(f"side {kind}"):
        (side / FILE).write_bytes(seal), path.write_bytes(index), tar.write_bytes(content)
        way, on_bad = (
            draw.choice(["side", "side", "index", "reindex", "tar", "side bits"]),
            draw.choice(["fail", "skip"]),
        )
        if way == "side":
            (side / FILE).write_bytes(sealed(json_changed(draw, json.loads(seal)), SideManifest))
        elif way == "side bits":
            (side / FILE).write_bytes(bytes_changed(draw, seal))
        elif way == "index":
            path.write_bytes(bytes_changed(draw, index))
        elif way == "reindex":
            changed = text_of(json_changed(draw, json.loads(index)))
            reindexed(side, tar.name, changed, seal, FILE, SideManifest)
        else:
            tar.write_bytes(bytes_changed(draw, content))
        with judged(f"{way} {on_bad}"):
            described_ = read_side(side)
            assert all(Path(each.name).name == each.name for each in described_.shards)
            side_lines(described_), described_.extent
            faults_of(side, described_.shards)
            with judged("without"):
                list(without_member(side, described_))
            opened = Side.open(side, indices["train"], manifest, kind, on_bad)
            for row in range(len(opened)):
                with judged(f"{way} row"):
                    data = opened.read(row)
                    assert way in ("side", "reindex") or bytes(data or b"") == right[opened.keys[row].decode()], "other"
                    if KINDS[kind].per_film:
                        opened.read_films(row, films(row))


def test_packed_subgraphs(written: Written) -> None:
    names = Vocabulary(tuple("abcdefgh"), ("r", "s"))
    whole = [pack(subgraph_of([(a, "r", b) for a, b in pairwise(ends)], names)) for ends in ("abcd", "hgfa")]
    for draw in rounds("unpack"):
        data = draw.choice(whole)
        if draw.random() < 0.6:
            size = int.from_bytes(data[:8], "little")
            head = text_of(json_changed(draw, json.loads(data[8 : 8 + size])))
            head = head.replace(
                b'"I64"', draw.choice([b'"I64"', b'"F64"', b'"BF16"', b'"F8_E4M3"', b'"U8"', b'"BOOL"'])
            )
            data = len(head).to_bytes(8, "little") + head + data[8 + size :]
        data = bytes_changed(draw, data) if draw.random() < 0.6 else data
        with judged("unpack"):
            node, edge_index, edge_type = unpack(data, 8, 2)
            assert (np.diff(node) > 0).all() and node.dtype == edge_index.dtype == edge_type.dtype == np.int64
            assert not node.size or (node[0] >= 0 and node[-1] < 8)
            assert edge_index.shape == (2, len(edge_type)) and (edge_index < max(1, len(node))).all()


def test_triples(written: Written, tmp_path: Path) -> None:
    rows = [(f"s{n}", f"{SECRET} {n}", "is", f"{SECRET} {n + 1}") for n in range(6)]
    lines = [text_of({"id": i, "triples": [[h, r, t], [t, r, h]]}) for i, h, r, t in rows]
    files = {
        "t.csv": "\n".join(["id,head,relation,tail", *map(",".join, rows)]).encode() + b"\n",
        "t.jsonl": b"\n".join(lines) + b"\n",
    }
    said = {}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        said[name] = list(TripleFile(tmp_path / name).statements())
    for draw in rounds("triples"):
        name = draw.choice(list(files))
        path, whole = tmp_path / name, files[name]
        path.write_bytes(whole)
        file = TripleFile(path)
        if name.endswith(".jsonl") and draw.random() < 0.5:
            changed = b"\n".join([*lines[:3], text_of(json_changed(draw, json.loads(lines[3]))), *lines[4:]])
        else:
            changed = bytes_changed(draw, whole)
        path.write_bytes(changed)
        if draw.random() < 0.05:
            path.unlink()
        with judged("changed after it was listed"):
            found = list(file.read([statement.span for statement in said[name]]))
            assert found == [statement.triples for statement in said[name]]
        with judged("TripleFile"):
            again = TripleFile(path)
            statements = list(again.statements())
            for statement in statements:
                text_of([statement.study, statement.triples])
                json.dumps([statement.study, statement.triples], ensure_ascii=False).encode()
            assert list(again.read(s.span for s in statements)) == [s.triples for s in statements]


def test_graphs(tmp_path: Path) -> None:
    nodes, relations = [f"{SECRET} {n}" for n in range(6)], ["is", "near"]
    content = {
        "nodes": nodes,
        "relations": relations,
        "triples": [[a, "is", b] for a, b in pairwise(nodes)],
    }
    table = "\n".join(["head,relation,tail", *map(",".join, content["triples"])]).encode()
    for draw in rounds("read_graph"):
        name = draw.choice(["g.csv", "g.json"])
        data = table if name == "g.csv" else text_of(json_changed(draw, content))
        (tmp_path / name).write_bytes(bytes_changed(draw, data) if draw.random() < 0.6 else data)
        with judged("read_graph"):
            graph = read_graph(tmp_path / name)
            n, r = len(graph.vocabulary.nodes), len(graph.vocabulary.relations)
            assert all(0 <= h < n and 0 <= t < n and 0 <= kind < r for h, t, kind in graph.edges)
            json.dumps([graph.vocabulary.nodes, graph.vocabulary.relations], ensure_ascii=False).encode()
