"""The raw forms of IU X-Ray that a directory holds, and the reader of each."""

from pathlib import Path
from typing import Literal

from shards.errors import ConfigError, DataError
from shards.sources.iu_xray import annotation, kaggle, xml
from shards.sources.iu_xray.exam import Kind, Listing

Form = Literal["auto", "annotation", "xml", "csv"]
FILES: dict[Kind, tuple[str, ...]] = {
    "annotation": ("annotation.json",),
    "xml": ("NLMCXR_reports.tgz", "NLMCXR_reports.tar.gz", "ecgen-radiology"),
    "kaggle": ("indiana_reports.csv",),
    "plain": ("reports.csv",),
}
"""Form → names by which it is recognised, in this order when form="auto"."""
KINDS: dict[Form, tuple[Kind, ...]] = {
    "auto": ("annotation", "xml", "kaggle", "plain"),
    "annotation": ("annotation",),
    "xml": ("xml",),
    "csv": ("kaggle", "plain"),
}
SUFFIXES: dict[str, Kind] = {".json": "annotation", ".tgz": "xml", ".gz": "xml", ".tar": "xml", ".csv": "plain"}
WANTED = (
    "annotation.json with images/ (R2Gen), NLMCXR_reports.tgz or ecgen-radiology/ (Open-i XML), indiana_reports.csv "
    "with indiana_projections.csv (Kaggle), or reports.csv with images/"
)


def root_of(raw: Path) -> Path:
    """The directory that holds films and tables, when `raw` names it or one file in it."""
    return raw.parent if raw.suffix in SUFFIXES or raw.name in FILES["xml"] else raw


def forms_there(raw: Path) -> dict[Kind, Path]:
    """Form → its file, for every form that lies at `raw` or, when `raw` is a file, beside it."""
    root, found = root_of(raw), dict[Kind, Path]()
    for kind, names in FILES.items():
        if there := [name for name in names if (root / name).exists()]:
            found[kind] = root / there[0]
    if (named := kind_of(raw)) is not None:
        found[named] = raw
    return found


def kind_of(raw: Path) -> Kind | None:
    """The form of the one file that `raw` names; None when it names the directory."""
    named = next((kind for kind, names in FILES.items() if raw.name in names), None)
    return named or SUFFIXES.get(raw.suffix)


def chosen(raw: Path, form: Form) -> tuple[Kind, Path]:
    """The form to read and its file.

    Raises:
        ConfigError: `raw` names a file of another form.
        DataError: none of them is there; names what was looked for and what was found.
    """
    there, only = forms_there(raw), kind_of(raw)
    if only and only not in KINDS[form]:
        raise ConfigError(f"raw is {raw}, which is the form {only!r}, not {form!r}: name its directory, or form='auto'")
    kinds = (only,) if only else KINDS[form]
    for kind in kinds:
        if kind in there and there[kind].exists():
            return kind, there[kind]
    missing = raw if only else root_of(raw) / FILES[kinds[0]][0]
    asked = "" if form == "auto" else f" (form={form!r})"
    raise DataError(
        f"{missing} is missing: raw must be the directory with {WANTED}, or one of these files{asked}; {_seen(raw)}"
    )


def _seen(raw: Path) -> str:
    if not raw.exists():
        return f"{raw} does not exist"
    if not raw.is_dir():
        return f"{raw} is a file"
    names = sorted(entry.name for entry in raw.iterdir())
    return f"found there: {', '.join(names[:9]) or 'nothing'}{' and more' if len(names) > 9 else ''}"


def read_form(kind: Kind, path: Path, needed: tuple[str, ...] = ()) -> Listing:
    """The listing of one form; `needed` are the sections that a plain table must have as columns."""
    if kind == "annotation":
        return annotation.read_listing(path)
    if kind == "xml":
        return xml.read_listing(path)
    return kaggle.read_kaggle(path) if kind == "kaggle" else kaggle.read_plain(path, needed)
