"""IU X-Ray as Open-i gives it: one XML file per report (NLMCXR_reports.tgz, ecgen-radiology/)."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree

from shards.errors import DataError
from shards.sources.iu_xray.archive import Refused, read_reports
from shards.sources.iu_xray.exam import Exam, Listing, exam_id, listed_films
from shards.study import BadStudy, Drop

NUMBER = re.compile(r"CXR\d{1,9}")
MESH = {"major": "mesh", "automatic": "mesh_automatic"}


def read_listing(path: Path) -> Listing:
    """Every report of the directory or archive, as listed there; DataError when that holds none or is damaged.

    Sections are the `AbstractText` elements by their `Label`. A report's caption says which views the examination has,
    not which film is which, so positions are unknown here.
    """
    entries = list(_entries(path))
    if not entries:
        raise DataError(f"{path} holds no .xml file: it must be Open-i's NLMCXR_reports.tgz or what that unpacks to")
    return Listing("xml", path, entries)


def _entries(path: Path) -> Iterator[Exam | Drop]:
    for row, (name, data) in enumerate(read_reports(path)):
        if isinstance(data, Refused):
            yield Drop(id=name[:200], reason="archive member refused", detail=f"{path.name}: {name[:200]!r}: {data}")
            continue
        patient = ""
        try:
            root = _parsed(name, data)
            patient = _number(root, name)
            yield _exam(root, patient, name, row)
        except BadStudy as error:
            yield error.drop(patient or name)


def _parsed(name: str, data: bytes) -> Element:
    try:
        return ElementTree.fromstring(data)
    except ParseError as error:
        raise BadStudy("XML is broken", f"{name}: {error}") from None
    except (ValueError, LookupError) as error:
        raise BadStudy("XML is refused", f"{name}: {type(error).__name__}") from None


def _number(root: Element, name: str) -> str:
    found = root.find("uId")
    number = found.get("id", "") if found is not None else ""
    if not NUMBER.fullmatch(number):
        raise BadStudy("id is not a name", f"{name}: uId is {number[:100]!r}; it must read like CXR12")
    return number


def _exam(root: Element, patient: str, name: str, row: int) -> Exam:
    texts: defaultdict[str, list[str]] = defaultdict(list)
    for element in root.iter("AbstractText"):
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
