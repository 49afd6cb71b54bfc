"""From the stored values of a DICOM film to grey: modality LUT, VOI LUT or window, polarity, padding, palettes.

The whole pipeline runs once on every value that can be stored (65,536 at most), not on the pixels. The rules are in
`shards.films.dicom`.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from shards.errors import DataError
from shards.films.limits import Film, depth_of

MAX_BITS = 16
STRIP_VALUES = 1 << 20
PALETTES = tuple(f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue"))
LUTS = ("ModalityLUTSequence", "VOILUTSequence")
MAX_VALUE_BYTES, MAX_NUMBER_BYTES, MAX_ITEMS = 1 << 20, 1024, 1000
"""Of an element other than the pixels: a table has 131,072 bytes, a sequence holds a few; others are a few numbers."""
LONG_TAGS = {Tag(keyword) for keyword in ("LUTData", *LUTS, *(f"{palette}Data" for palette in PALETTES))}
ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
"""What items of a sequence and fragments of pixels begin with, in either order of bytes."""

Values = NDArray[np.float64]
Tones = NDArray[np.uint8]


@dataclass(frozen=True)
class Header:
    """How the stored values are laid out. Bits and pixels."""

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    photometric: str


@dataclass(frozen=True)
class Table:
    """A lookup table: `entries` for the values from `first` on; the ends go on for what lies outside."""

    first: int
    bits: int
    entries: Values

    def of(self, values: Values) -> Values:
        """The entries of the values, which are rounded."""
        return self.entries[np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1).astype(np.int64)]


def number_of(dataset: Dataset, keyword: str) -> float | None:
    """The first value of an element as a finite number; None when there is none."""
    try:
        value = dataset.get(keyword)
        first = value if isinstance(value, str | bytes | int | float | None) else next(iter(value), None)
        number = None if first is None or first == "" else float(first)
    except Exception:
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise DataError(f"{keyword} is no number")
    return number


def refuse_long(dataset: Dataset) -> None:
    """DataError for an element longer than any film's: found before pydicom makes objects of its values."""
    for tag in dataset.keys():  # noqa: SIM118 - a Dataset iterates over elements, which it would convert
        value = dataset.get_item(tag).value
        if tag.group != 0x0028 or not isinstance(value, bytes):
            continue
        most = MAX_VALUE_BYTES if tag in LONG_TAGS else MAX_NUMBER_BYTES
        if len(value) > most or sum(value.count(start) for start in ITEM_TAGS) > MAX_ITEMS:
            raise DataError(f"{keyword_for_tag(tag)} has more than {most:,} bytes or {MAX_ITEMS:,} items")


def film_of(dataset: Dataset, header: Header, stored: NDArray[Any]) -> Film:
    """The film of stored values [H, W], or [H, W, 3] when they are colours; in strips, which bounds the memory."""
    low, high = _range(header.stored, header.signed)
    if stored.min() < low or stored.max() > high:
        raise DataError(f"pixel values {stored.min()} to {stored.max()} do not fit the {header.stored} bits stored")
    every = np.arange(low, high + 1, dtype=np.float64)
    rows = max(1, STRIP_VALUES // stored[0].size)
    strips = [slice(top, top + rows) for top in range(0, len(stored), rows)]
    film = np.empty(stored.shape[:2], np.uint8)
    if header.samples == 3:
        tones = _to_8_bits(every / _used(header, int(stored.min()), int(stored.max()))[1])
        for strip in strips:
            film[strip] = np.asarray(Image.fromarray(tones[stored[strip]]).convert("L"))
        return film
    if header.photometric == "PALETTE COLOR":
        tables = [_table(dataset, palette, least=0) for palette in PALETTES]
        colours = np.stack([_to_8_bits(table.of(every) / (2**table.bits - 1)) for table in tables], axis=-1)
        tones = np.array(Image.fromarray(colours[None]).convert("L"))[0]
    else:
        padding, there = _padding(dataset, header, every), np.zeros(len(every), bool)
        for strip in strips:
            there[stored[strip].astype(np.int32) - low] = True
        shown = every[there & ~padding] if (there & ~padding).any() else every
        white = _white(dataset, every, _used(header, int(shown[0]), int(shown[-1])))
        tones = _to_8_bits(1 - white if header.photometric == "MONOCHROME1" else white)
        tones = np.where(padding, np.uint8(0), tones)
    for strip in strips:
        film[strip] = tones[stored[strip].astype(np.int32) - low]
    return film


def _range(bits: int, signed: bool) -> tuple[int, int]:
    """Least and largest value that can be stored."""
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def _used(header: Header, least: int, most: int) -> tuple[int, int]:
    """The range that is black to white without a window: what BitsStored can hold, of 16 bits what is in use."""
    if header.stored < MAX_BITS:
        return _range(header.stored, header.signed)
    if least >= 0:
        return _range(depth_of(most), signed=False)
    return _range(depth_of(2 * max(most, -1 - least) + 1), signed=True)


def _to_8_bits(fractions: Values) -> Tones:
    return np.round(np.clip(fractions, 0, 1) * 255).astype(np.uint8)


def _padding(dataset: Dataset, header: Header, every: Values) -> NDArray[np.bool_]:
    """Which stored values are padding, written as signed or not and with the unused bits filled or not."""
    first = number_of(dataset, "PixelPaddingValue")
    if first is None:
        return np.zeros(len(every), bool)
    last = number_of(dataset, "PixelPaddingRangeLimit")
    ends = []
    for end in (first, first if last is None else last):
        kept = int(end) & ((1 << header.stored) - 1)
        ends.append(kept - (1 << header.stored) if header.signed and kept >> (header.stored - 1) else kept)
    return (every >= min(ends)) & (every <= max(ends))


def _white(dataset: Dataset, every: Values, used: tuple[int, int]) -> Values:
    """Every value as a fraction of white: modality LUT or rescale, then VOI LUT, window, or the range in use."""
    if lut := _lut(dataset, "ModalityLUTSequence", every[0]):
        values, least, most = lut.of(every), 0.0, 2.0**lut.bits - 1
    else:
        slope, intercept = number_of(dataset, "RescaleSlope"), number_of(dataset, "RescaleIntercept")
        slope, intercept = 1 if slope is None else slope, intercept or 0
        least, most = sorted(end * slope + intercept for end in used)
        if least == most or not np.isfinite([least, most]).all():
            raise DataError("RescaleSlope makes one grey of all values")
        values = every * slope + intercept
    if lut := _lut(dataset, "VOILUTSequence", least):
        bits = depth_of(lut.entries.max()) if lut.bits == MAX_BITS else lut.bits
        return lut.of(values) / (2**bits - 1)
    centre, width = number_of(dataset, "WindowCenter"), number_of(dataset, "WindowWidth")
    if centre is None and width is None:
        return (values - least) / (most - least)
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    if centre is None or width is None or width < (1 if function == "LINEAR" else 1e-6):
        raise DataError(
            "WindowCenter or WindowWidth is missing, or the width is below the least that VOILUTFunction has"
        )
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function not in ("LINEAR", "LINEAR_EXACT"):
        raise DataError("VOILUTFunction is none of LINEAR, LINEAR_EXACT, SIGMOID")
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return (values > centre).astype(np.float64) if width == 0 else (values - centre) / width + 0.5


def _lut(dataset: Dataset, keyword: str, least: float) -> Table | None:
    """The table in the first item of a sequence; None when the sequence is missing or empty."""
    try:
        item = next(iter(dataset.get(keyword) or ()), None)
    except Exception as error:
        raise DataError(f"{keyword} is damaged ({type(error).__name__})") from None
    if item is None:
        return None
    refuse_long(item)
    return _table(item, "LUT", least)


def _table(item: Dataset, name: str, least: float) -> Table:
    """The table `name` of a dataset. pydicom's own functions wrap tables of 8 bits with more than 256 entries."""
    try:
        length, first, bits = (int(value) for value in item[f"{name}Descriptor"].value)
        data = item[f"{name}Data"].value
        length = length % 65536 or 65536
        if isinstance(data, bytes):
            wide = ">u2" if item.original_encoding[1] is False else "<u2"
            entries = np.frombuffer(data, wide if len(data) >= 2 * length else np.uint8)
        else:
            entries = np.atleast_1d(np.asarray(data)) & 0xFFFF
    except Exception as error:
        raise DataError(f"the table of {name}Data is missing or damaged ({type(error).__name__})") from None
    if not 8 <= bits <= MAX_BITS or len(entries) < length:
        raise DataError(f"the table {name}Data of {bits} bits has {len(entries)} of {length} entries")
    first -= 65536 if least < 0 and first >= 32768 else 0
    return Table(first, bits, np.minimum(entries[:length], 2**bits - 1).astype(np.float64))
