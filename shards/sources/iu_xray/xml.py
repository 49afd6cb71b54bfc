"""IU X-Ray as Open-i gives it: one XML file per report, in a directory (ecgen-radiology/) or NLMCXR_reports.tgz.

The archive is read without being unpacked to disk.
"""

import gzip
import io
import os
import re
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree

from shards.errors import DataError
from shards.sources.archive import walk_file
from shards.sources.iu_xray.exam import Exam, Form, exam_id, listed_films
from shards.study import BadStudy, Drop

MAX_XML_BYTES = 1_000_000
"""Of one report; the largest real one has 12,000."""
MAX_UNPACKED_BYTES = 1 << 26
MAX_MEMBERS = 50_000
MAX_TAGS = 2_000_000
"""Of all reports; the real ones have a quarter of that."""
MAX_TEXTS = 50
"""`AbstractText` elements of one report, which may stand in one another; a real one has four."""
GZIP = b"\x1f\x8b"
AGAIN = "Nothing of it is used; fetch it again"
NUMBER = re.compile(r"CXR\d{1,9}")
MESH = {"major": "mesh", "automatic": "mesh_automatic"}


def read_xml(path: Path) -> Form:
    """Every report of the directory or archive, as listed there; DataError when that holds none or is damaged.

    Sections are the `AbstractText` elements by their `Label`. A report's caption says which views the examination has,
    not which film is which, so positions are unknown here.
    """
    form, tags = Form("xml", path), 0
    for row, (name, data, refusal) in enumerate(read_reports(path)):
        name = name.encode(errors="replace").decode()
        if (tags := tags + data.count(b"<")) > MAX_TAGS:
            raise DataError(f"{path} holds reports of more than {MAX_TAGS:,} tags, which IU X-Ray has not")
        if refusal:
            detail = f"{path.name}: {name[:200]!r}: {refusal}"
            form.entries.append(Drop(id=name[:200], reason="archive member refused", detail=detail))
            continue
        patient = ""
        try:
            root, patient = _parsed(name, data)
            form.entries.append(_exam(root, patient, name, row))
        except BadStudy as error:
            form.entries.append(error.drop(patient or name))
    if not form.entries:
        raise DataError(f"{path} holds no .xml file: it must be Open-i's NLMCXR_reports.tgz or what that unpacks to")
    return form


def _parsed(name: str, data: bytes) -> tuple[Element, str]:
    """The report and its CXR number."""
    try:
        root = ElementTree.fromstring(data)
    except ParseError as error:
        raise BadStudy("XML is broken", f"{name}: {error}") from None
    except (ValueError, LookupError) as error:
        raise BadStudy("XML is refused", f"{name}: {type(error).__name__}") from None
    uid = root.find("uId")
    number = uid.get("id", "") if uid is not None else ""
    if not NUMBER.fullmatch(number):
        raise BadStudy("id is not a name", f"{name}: uId is {number[:100]!r}; it must read like CXR12")
    return root, number


def _exam(root: Element, patient: str, name: str, row: int) -> Exam:
    texts: defaultdict[str, list[str]] = defaultdict(list)
    for number, element in enumerate(root.iter("AbstractText")):
        if number == MAX_TEXTS:
            raise BadStudy("XML is refused", f"{name}: more than {MAX_TEXTS} texts")
        texts[(element.get("Label") or "").strip().lower()].append("".join(element.itertext()))
    images = list(root.iter("parentImage"))
    films = listed_films(patient, [(image.get("id", ""), "unknown") for image in images], name)
    facts = {fact: ";".join(e.text or "" for e in root.iterfind(f"MeSH/{tag}")) for tag, fact in MESH.items()}
    facts["caption"] = next((image.findtext("caption", "") for image in images), "")
    return Exam(
        id=exam_id(patient, [film.name for film in films]),
        patient=patient,
        row=row,
        place=name,
        films=films,
        sections={label: " ".join(parts) for label, parts in texts.items() if label},
        facts={fact: text for fact, text in facts.items() if text},
    )


def read_reports(path: Path) -> Iterator[tuple[str, bytes, str]]:
    """(name, XML, refusal) of every .xml file of a directory or tar archive; no XML where it is hostile or too large.

    Raises:
        DataError: the path is neither, the archive is cut or damaged anywhere, or unpacks to more than is read.
    """
    if not path.is_dir():
        yield from _archived(path)
        return
    entries = sorted(os.scandir(path), key=lambda entry: (len(entry.name), entry.name))
    _refuse_many(path, len(entries))
    for entry in entries:
        if not entry.name.lower().endswith(".xml"):
            continue
        refusal = "no regular file of this directory"
        data = b""
        try:
            if entry.is_file(follow_symlinks=False) and not (refusal := _too_large(entry.stat().st_size)):
                data = Path(entry.path).read_bytes()
        except OSError as error:
            refusal = f"it cannot be read: {error.strerror}"
        yield f"{path.name}/{entry.name}", data, refusal


def _archived(path: Path) -> Iterator[tuple[str, bytes, str]]:
    data = _unpacked(path)
    walk = walk_file(io.BytesIO(data), path)
    if walk.cut_at >= 0:
        raise DataError(f"{path} breaks off or is damaged at byte {walk.cut_at} of {len(data)} unpacked. {AGAIN}")
    _refuse_many(path, len(walk.members) + len(walk.refused))
    for member in walk.members:
        if refusal := _too_large(member.size):
            yield member.name, b"", refusal
        elif member.name.lower().endswith(".xml"):
            yield member.name, data[member.offset : member.offset + member.size], ""
    for name, cause in walk.refused:
        yield name, b"", cause


def _unpacked(path: Path) -> bytes:
    """The tar inside, bounded; a .tar is taken as it is."""
    if not path.is_file():
        raise DataError(f"{path} is neither a directory nor a file")
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == GZIP
            file.seek(0)
            data = (gzip.GzipFile(fileobj=file) if packed else file).read(MAX_UNPACKED_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is cut or damaged: {error}. {AGAIN}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_UNPACKED_BYTES:
        raise DataError(f"{path} unpacks to more than {MAX_UNPACKED_BYTES:,} bytes; the whole corpus has 30 million")
    return data


def _too_large(size: int) -> str:
    return f"{size} bytes; a report has at most {MAX_XML_BYTES:,}" if size > MAX_XML_BYTES else ""


def _refuse_many(path: Path, count: int) -> None:
    if count > MAX_MEMBERS:
        raise DataError(f"{path} holds more than {MAX_MEMBERS:,} files; IU X-Ray has 3,955 reports")
