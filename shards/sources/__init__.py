"""Raw datasets, a folder each. A source lists studies in the driver and reads them one by one in workers."""

from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from pydantic import ConfigDict, Field, ValidationError

from shards.errors import ConfigError
from shards.study import Drop, Record, Split, Study

SOURCES: dict[str, str] = {
    "phantom": "shards.sources.phantom.source:Phantom",
    "iu_xray": "shards.sources.iu_xray.source:IuXray",
    "mimic_cxr": "shards.sources.mimic_cxr.source:MimicCxr",
    "chexpert_plus": "shards.sources.chexpert_plus.source:ChexpertPlus",
    "csv": "shards.sources.forms.csv:Csv",
    "webdataset": "shards.sources.forms.webdataset:WebDataset",
}
"""Name → "module:Class", imported on use so that listing names costs nothing."""


ABSENT = "-"
"""How a raw file looks that is not there: see `Source.raw_files`."""


class Item(Record):
    """Light description of one study: enough for a worker to read it, small enough for the driver to hold them all."""

    id: str
    """Identifier as the dataset's owner wrote it."""
    split: Split
    patient: str = ""
    """Patient identifier; empty when the dataset does not tell. No patient may be in two splits."""
    payload: dict[str, Any] = Field(default_factory=dict)
    """What `read` of the same source needs, in JSON types: row, file names, index."""


class SplitCount(Record):
    """Size of one split."""

    studies: int = 0
    images: int = 0
    patients: int = 0
    """Distinct patients; 0 when the dataset does not tell."""


class Published(Record):
    """What the dataset's owner or a paper says the splits hold, to be printed beside our own counts."""

    citation: str
    """Who says so: paper, table, or file."""
    splits: dict[str, SplitCount]
    """Split → counts; 0 where nothing was published."""


class Listing(NamedTuple):
    """All that a raw dataset lists."""

    items: Sequence[Item]
    """Usable studies."""
    drops: Sequence[Drop] = ()
    """Studies refused while listing."""
    notes: Sequence[str] = ()
    """What is worth telling: where two forms of the raw data differ and why. Neither report text nor, for credentialed
    data, identifiers."""
    published: Published | None = None
    """Published counts of what is being read, where there are any."""


class Source(Record):
    """One raw dataset; its fields are the options of `r2kg shard NAME key=value`.

    Instances are picklable and cheap to construct; nothing is opened before `listing`. An option that is unknown or has
    a value that cannot be is a ConfigError.
    """

    model_config = ConfigDict(use_attribute_docstrings=True, arbitrary_types_allowed=True)

    version: ClassVar[int] = 1
    """Raised when `read` would make another study of the same raw data: shards are written again then."""
    name: ClassVar[str]
    licence: ClassVar[str]
    """Tag carried by the manifest: "synthetic", "cc-by-nc-nd-4.0", … (`shards.privacy.TERMS`)"""
    cleaning: ClassVar[str]
    """Name in `shards.clean.CLEANINGS` that this source's reports are usually cleaned with..."""

    def __init__(self, **options: Any):
        """Check the options, also against each other."""
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise ConfigError(f"source {self.name!r}: {'; '.join(map(self._sentence, error.errors()))}") from None

    @property
    def usual_cleaning(self) -> str:
        """...with these options."""
        return self.cleaning

    def listing(self) -> Listing:
        """All studies. Raises DataError when the dataset as a whole is missing or not what it should be."""
        raise NotImplementedError

    def remarks(self, study: Study) -> tuple[str, ...]:
        """What the receipt is to count of a study that was read, a short sentence each; never report text."""
        return ()

    def raw_files(self, item: Item) -> Iterable[Path | str]:
        """The raw files from which `read` makes an item, those too that are not there but might be, in a fixed order.

        Their sizes and times decide whether a study that was written, or dropped, is read again. In place of a path a
        text may stand that says as much, `ABSENT` of what is not there. What is in the item itself need not be named.
        """
        return ()

    def read(self, item: Item) -> tuple[Study, list[np.ndarray]]:
        """The study with `target` left empty, and its films (uint8 [H, W], in the order of `Study.views`).

        Raises BadStudy, or another DataError, when this one study is unusable.
        """
        raise NotImplementedError

    @classmethod
    def _sentence(cls, error: Any) -> str:
        option = ".".join(map(str, error["loc"]))
        if error["type"] == "extra_forbidden":
            return f"it has no option {option}: its options are {', '.join(cls.model_fields)}"
        if error["type"] == "missing":
            return f"{option}= is missing" + (": say --raw DIR, the dataset's directory" if option == "raw" else "")
        given = f"{option}={error['input']!r}: " if option else ""
        return given + error["msg"].removeprefix("Value error, ")


def open_source(name: str, **options: Any) -> Source:
    """The source called `name`, or of your own as "their.module:Class"; ConfigError lists the names that are known."""
    if name not in SOURCES and ":" not in name:
        raise ConfigError(
            f"unknown source {name!r}: use one of {', '.join(sorted(SOURCES))}, or a class of your own as "
            "their.module:Class"
        )
    module, _, cls = SOURCES.get(name, name).partition(":")
    try:
        source = getattr(import_module(module), cls)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ConfigError(f"source {name!r} cannot be imported: {error}") from error
    if not (isinstance(source, type) and issubclass(source, Source)):
        raise ConfigError(f"{name!r} is no subclass of shards.sources.Source")
    return source(**options)
