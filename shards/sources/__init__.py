"""Raw datasets, one module per layout. A source lists studies in the driver and reads them one by one in workers."""

import inspect
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from pydantic import Field

from shards.errors import ConfigError
from shards.manifest import Drop, Published
from shards.study import Record, Split, Study

SOURCES: dict[str, str] = {
    "phantom": "shards.sources.phantom:Phantom",
    "iu_xray": "shards.sources.iu_xray:IuXray",
    "mimic_cxr": "shards.sources.mimic_cxr:MimicCxr",
    "chexpert_plus": "shards.sources.chexpert_plus:ChexpertPlus",
}
"""Name → "module:Class", imported on use so that listing names costs nothing."""


class Item(Record):
    """Light description of one study: enough for a worker to read it, small enough for the driver to hold them all."""

    id: str
    """Identifier as the dataset's owner wrote it."""
    split: Split
    patient: str = ""
    """Patient identifier; empty when the dataset does not tell. No patient may be in two splits."""
    payload: dict[str, Any] = Field(default_factory=dict)
    """What `read` of the same source needs, in JSON types: row, file names, index."""


class Source(Protocol):
    """One raw dataset. Instances are picklable and cheap to construct; nothing is opened before `items`."""

    name: str
    licence: str
    """Tag carried by the manifest: "synthetic", "cc-by-nc-nd-4.0", …"""
    cleaning: str
    """Name in `shards.clean.CLEANINGS` that this source's reports are usually cleaned with."""
    drops: list[Drop]
    """Studies refused while listing; complete once `items` has returned."""
    notes: list[str]
    """What the listing found worth telling: where two forms of the raw data differ and why. Neither report text nor,
    for credentialed data, identifiers."""
    published: Published | None
    """Published counts of what is being read, where there are any."""

    def items(self) -> list[Item]:
        """All usable studies. Raises DataError when the dataset as a whole is missing or not what it should be."""
        ...

    def read(self, item: Item) -> tuple[Study, list[np.ndarray]]:
        """The study with `target` left empty, and its films (uint8 [H, W], in the order of `Study.views`).

        Raises DataError when this one study is unusable.
        """
        ...


def open_source(name: str, **options: Any) -> Source:
    """Construct the source called `name`; an unknown name or option is a ConfigError that lists the known ones."""
    if name not in SOURCES:
        raise ConfigError(f"unknown source {name!r}: use one of {', '.join(sorted(SOURCES))}")
    module, _, cls = SOURCES[name].partition(":")
    source = getattr(import_module(module), cls)
    known = list(inspect.signature(source).parameters)
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f"source {name!r} has no option {', '.join(unknown)}: its options are {', '.join(known)}")
    return source(**options)
