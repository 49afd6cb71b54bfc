"""Hostile bytes over the readers of films: an error of our own or a right film, in time, in memory, and nothing told.

R2KG_FUZZ_SECONDS (20) bounds each hunt, R2KG_FUZZ_SEED repeats one.
"""

import io
import os
import random
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import mutate
import numpy as np
import pytest
from mutate import SECRET, hunt, mutant
from PIL import Image, PngImagePlugin
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from shards.films.limits import MAX_FILE_BYTES
from shards.films.raw import open_film
from shards.films.stored import decode

pytestmark = pytest.mark.fuzz

SECONDS = float(os.environ.get("R2KG_FUZZ_SECONDS", "20"))
SEED = int(os.environ.get("R2KG_FUZZ_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
GREY = (np.add.outer(np.arange(80), np.arange(64)) * 255 // 142).astype(np.uint8)
SIDE = 10_000
"""Of the largest film."""


def saved(format_: str, pixels: np.ndarray | Image.Image = GREY, **options: object) -> bytes:
    out = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(out, format_, **options)
    return out.getvalue()


def told(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = SECRET, orientation
    return exif


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, bits: int, colour: int, *more: bytes, row: int) -> bytes:
    """A black PNG whose rows are packed into `row` bytes."""
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(bytes(1 + row)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *more, chunk(b"IDAT", body), chunk(b"IEND", b"")),
    )


def tiff(entries: dict[int, tuple[int, int, int]], more: int = 0, body: bytes = b"") -> bytes:
    """A TIFF of a directory of tag: (type, count, value), then `body`."""
    tags = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(entries.items()))
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + tags + struct.pack("<I", more) + body


def dataset(syntax: str, pixels: bytes, **tags: object) -> Dataset:
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = syntax
    film.SOPClassUID, film.SOPInstanceUID = uid.DigitalXRayImageStorageForPresentation, "1.2.3.4"
    film.PatientName, film.PatientID, film.ImageComments = SECRET, SECRET, SECRET
    film.Rows, film.Columns, film.SamplesPerPixel = *GREY.shape, 1
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 8, 8, 7, 0
    film.PhotometricInterpretation = "MONOCHROME1"
    film.WindowCenter, film.WindowWidth, film.VOILUTFunction = 100, 90, "LINEAR"
    film.PixelData = encapsulate([pixels]) if uid.UID(syntax).is_encapsulated else pixels
    film["PixelData"].VR = "OB"
    for keyword, value in tags.items():
        setattr(film, keyword, value)
    return film


def dicom(syntax: str = uid.ExplicitVRLittleEndian, pixels: bytes = GREY.tobytes(), **tags: object) -> bytes:
    out = io.BytesIO()
    dataset(syntax, pixels, **tags).save_as(out, enforce_file_format=True)
    return out.getvalue()


def table() -> list[Dataset]:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [256, 0, 8])
    item.add_new("LUTExplanation", "LO", SECRET)
    item.add_new("LUTData", "US", list(range(256)))
    return [item]


def rle(*segments: bytes) -> bytes:
    starts = np.cumsum([64, *map(len, segments)])[:-1]
    return struct.pack("<16L", len(segments), *starts, *[0] * (15 - len(segments))) + b"".join(segments)


def seeds(suffix: str) -> list[bytes]:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", SECRET)
    text.add_text(SECRET, SECRET, zip=True)
    deep, colour = GREY.astype(np.uint16) * 16, Image.fromarray(GREY).convert("RGB")
    if suffix == "jpg":
        return [
            saved("JPEG", exif=told(), comment=SECRET),
            saved("JPEG", progressive=True, exif=told()),
            saved("JPEG", colour, restart_marker_blocks=2),
            saved("JPEG", colour.convert("CMYK")),
        ]
    if suffix == "png":
        return [
            saved("PNG", pnginfo=text, exif=told()),
            saved("PNG", deep, pnginfo=text),
            saved("PNG", colour.quantize(16), transparency=3),
            saved("PNG", colour.convert("RGBA")),
        ]
    if suffix == "tif":
        said = {270: SECRET, 315: SECRET, 274: 6}
        kinds = [saved("TIFF", compression=kind, tiffinfo=said) for kind in ("raw", "tiff_lzw", "tiff_deflate")]
        return [*kinds, saved("TIFF", GREY.astype(np.float32), tiffinfo=said), saved("TIFF", deep, tiffinfo=said)]
    if suffix == "bmp":
        return [saved("BMP"), saved("BMP", colour), saved("BMP", colour.convert("RGBA"))]
    return [
        dicom(),
        dicom(PhotometricInterpretation=SECRET),
        dicom(VOILUTFunction=SECRET),
        dicom(uid.ImplicitVRLittleEndian, VOILUTSequence=table()),
        dicom(uid.DeflatedExplicitVRLittleEndian),
        dicom(uid.JPEGBaseline8Bit, saved("JPEG", comment=SECRET)),
        dicom(uid.JPEG2000Lossless, saved("JPEG2000", no_jp2=True)),
        dicom(uid.RLELossless, rle(b"".join(b"\x3f" + row.tobytes() for row in GREY))),
        dicom(pixels=deep.tobytes(), BitsAllocated=16, BitsStored=16, HighBit=15, PixelPaddingValue=0),
    ]


READERS: dict[str, Callable[[bytes], object]] = {
    **{suffix: lambda data, suffix=suffix: open_film(Path(f"film.{suffix}"), data) for suffix in ("jpg", "png")},
    **{suffix: lambda data, suffix=suffix: open_film(Path(f"film.{suffix}"), data) for suffix in ("tif", "bmp", "dcm")},
    "stored": lambda data: decode(data, 32),
}


def is_film(found: object) -> bool:
    return isinstance(found, np.ndarray) and found.dtype == np.uint8 and found.ndim == 2


@pytest.mark.parametrize("reader", READERS)
def test_mutants(reader: str, tmp_path: Path) -> None:
    whole = seeds("jpg") + seeds("png") if reader == "stored" else seeds(reader)
    rng = random.Random(SEED)
    mutants: Iterator[bytes] = iter(lambda: mutant(whole, rng), b"never")
    found = [READERS[reader](data) for data in seeds("png")] if reader == "png" else []

    def right(film: object) -> bool:
        """A PNG has checksums: what is read of it is one of the seeds."""
        return is_film(film) and (not found or any(np.array_equal(film, seed) for seed in found))

    fault = hunt(READERS[reader], mutants, tmp_path, SECONDS, right=right)
    assert not fault, f"{fault}; R2KG_FUZZ_SEED={SEED}, input in {tmp_path / 'fault'}"


def scans(side: int, count: int, components: int = 1) -> bytes:
    """A progressive JPEG of one grey whose first scans are followed by `count` of no news."""
    grey = Image.new("L", (side, side), 99)
    data = saved("JPEG", grey if components == 1 else grey.convert("RGB"), progressive=True)
    ending = data.rindex(b"\xff\xda")
    return data[:ending] + data[ending:-2] * count + b"\xff\xd9"


def raw_tiff(width: int, height: int, bits: int, kind: int, compression: int, body: bytes, **more: int) -> bytes:
    at = 8 + 2 + 12 * 11 + 4
    entries = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, bits), 259: (3, 1, compression), 262: (3, 1, 1)}
    entries |= {273: (4, 1, at), 277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, len(body)), 339: (3, 1, kind)}
    return tiff(entries | {274: (3, 1, more.get("orientation", 1))}, more.get("next", 0), body)


def zeros(count: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(count >> 20)) + packer.flush()


def element(group: int, number: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    size = len(value) if length is None else length
    if vr in (b"SQ", b"UN", b"OB", b"OW"):
        return struct.pack("<HH2sHI", group, number, vr, 0, size) + value
    return struct.pack("<HH2sH", group, number, vr, size) + value


UNDEFINED = 2**32 - 1
ITEM, END_ITEM, END = (struct.pack("<HHI", 0xFFFE, number, 0) for number in (0xE000, 0xE00D, 0xE0DD))


def dicom_with(*elements: bytes, **tags: object) -> bytes:
    """A film with elements put before its Rows or, of a sequence, where its tag stands."""
    data = dicom(**tags)
    at = data.index(struct.pack("<HH", 0x0028, 0x0002))
    return data[:at] + b"".join(elements) + data[at:]


def big_dicom(bits: int, **tags: object) -> bytes:
    side = SIDE if bits <= 16 else SIDE * 7 // 10
    pixels = bytes(side * side * bits // 8)
    size = {"Rows": side, "Columns": side, "BitsAllocated": bits, "BitsStored": min(bits, 16)}
    return dicom(pixels=pixels, **size | {"HighBit": min(bits, 16) - 1} | tags)


def big_j2k(side: int, most: int = 0, bits: int = 8, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, most + 1, (side, side)).astype(f"u{bits // 8}")
    picture = saved("JPEG2000", pixels, no_jp2=True, **options)
    depth = {"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1}
    return dicom(uid.JPEG2000Lossless, picture, Rows=side, Columns=side, **depth)


def rle_dicom(segment: bytes, side: int = SIDE) -> bytes:
    return dicom(uid.RLELossless, rle(segment), Rows=side, Columns=side)


HUGE = MAX_FILE_BYTES - 10_000
BOMBS: dict[str, Callable[[], bytes]] = {
    "scans.jpg": lambda: scans(1000, 2000),
    "few-scans.jpg": lambda: scans(SIDE, 12),
    "few-colour-scans.jpg": lambda: scans(5700, 8, 3),
    "large.jpg": lambda: saved("JPEG", Image.new("L", (SIDE, SIDE), 9)),
    "large-ink.jpg": lambda: saved("JPEG", Image.new("CMYK", (5000, 5000)), progressive=True),
    "comments.jpg": lambda: saved("JPEG")[:2] + b"\xff\xfe\0\2" * (HUGE // 4) + saved("JPEG")[2:],
    "fill.jpg": lambda: saved("JPEG")[:2] + b"\xff" * HUGE + saved("JPEG")[2:],
    "junk.jpg": lambda: saved("JPEG")[:2] + b"\xff\0" * (HUGE // 2) + saved("JPEG")[2:],
    "tail.jpg": lambda: saved("JPEG") + bytes(HUGE),
    "restarts.jpg": lambda: saved("JPEG", restart_marker_blocks=1)[:-2] + b"\xff\xd0" * (HUGE // 2) + b"\xff\xd9",
    "exif.jpg": lambda: saved("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + exif_tags(5400, 60_000)),
    "sixteen.png": lambda: png(SIDE, SIDE, 16, 0, row=2 * SIDE),
    "bits.png": lambda: png(SIDE, SIDE, 1, 0, row=SIDE // 8),
    "rgba.png": lambda: png(SIDE, SIDE, 8, 6, row=4 * SIDE),
    "rgba-bounded.png": lambda: png(5000, 5000, 8, 6, row=20_000),
    "la.png": lambda: png(7000, 7000, 8, 4, row=14_000),
    "palette.png": lambda: png(SIDE, SIDE, 8, 3, chunk(b"PLTE", bytes(768)), chunk(b"tRNS", b"\1"), row=SIDE),
    "chunks.png": lambda: png(64, 64, 8, 0, chunk(b"IDAT", b"") * (HUGE // 12), row=64),
    "text.png": lambda: png(64, 64, 8, 0, chunk(b"tEXt", b"a\0" + bytes(HUGE)), row=64),
    "exif.png": lambda: png(64, 64, 8, 0, chunk(b"eXIf", b"II*\0\x08\0\0\0" + exif_tags(65_000, 800_000)), row=64),
    "turned.png": lambda: png(SIDE, SIDE, 16, 0, chunk(b"eXIf", told(5).tobytes()[6:]), row=2 * SIDE),
    "noise.png": lambda: saved("PNG", np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), np.uint8)),
    "rle.bmp": lambda: rle_bmp(),
    "large.bmp": lambda: saved("BMP", Image.new("RGBA", (5000, 5000))),
    "float.tif": lambda: raw_tiff(7000, 7000, 32, 3, 8, zeros(200 << 20), orientation=5),
    "float-too-large.tif": lambda: raw_tiff(SIDE, SIDE, 32, 3, 8, zeros(400 << 20)),
    "integers.tif": lambda: raw_tiff(7000, 7000, 32, 1, 1, bytes(7000 * 7000 * 4), orientation=6),
    "sixteen.tif": lambda: raw_tiff(SIDE, SIDE, 16, 1, 8, zeros(200 << 20), orientation=5),
    "frames.tif": lambda: many_directories(40_000),
    "tags.tif": lambda: saved("TIFF")[:4] + struct.pack("<I", 8) + exif_tags(65_000, 1_000_000) + bytes(1_000_000),
    "strips.tif": lambda: tiff_of_pieces(100_000),
    "more-strips.tif": lambda: tiff_of_pieces(1_000_000),
    "large.dcm": lambda: big_dicom(16),
    "padded.dcm": lambda: big_dicom(16, PixelPaddingValue=7, PhotometricInterpretation="MONOCHROME2"),
    "wide.dcm": lambda: big_dicom(32),
    "items.dcm": lambda: dicom_with(element(0x0028, 0, b"UL", b"\4\0\0\0"), VOILUTSequence=[Dataset()] * 1_000_000),
    "elements.dcm": lambda: dicom_with(element(0x0027, 1, b"LO", b"") * (HUGE // 8)),
    "undefined.dcm": lambda: dicom_with(element(0x0027, 0x1001, b"OB", ITEM, UNDEFINED) * 100_000),
    "sequences.dcm": lambda: dicom_with(element(0x0027, 0x1001, b"SQ", ITEM * 1_000_000 + END, UNDEFINED)),
    "nested.dcm": lambda: dicom_with((element(0x0027, 1, b"SQ", ITEM[:4] + b"\xff" * 4, UNDEFINED)) * 100_000),
    "values.dcm": lambda: dicom(uid.ImplicitVRLittleEndian, WindowCenter=["1"] * 1_000_000),
    "many-values.dcm": lambda: dicom(
        uid.ImplicitVRLittleEndian, **dict.fromkeys(("WindowCenter", "WindowWidth", "RescaleSlope"), ["1"] * 400_000)
    ),
    "charset.dcm": lambda: charsets(100_000_000),
    "charsets.dcm": lambda: charsets(1000, 50_000),
    "fragments.dcm": lambda: fragments(90_000),
    "more-fragments.dcm": lambda: fragments(4_000_000),
    "offsets.dcm": lambda: offsets(50_000_000),
    "rle-nothing.dcm": lambda: rle_dicom(b"\x80" * 200_000_000),
    "rle-pairs.dcm": lambda: rle_dicom(b"\xff\7" * (3160 * 3160 // 2), 3160),
    "rle-whole.dcm": lambda: rle_dicom(b"\x81\7" * (SIDE * SIDE // 128 + 1)),
    "deflated.dcm": lambda: deflated(),
    "jpeg-scans.dcm": lambda: dicom(uid.JPEGBaseline8Bit, scans(1000, 2000), Rows=1000, Columns=1000),
    "jpeg-large.dcm": lambda: dicom(
        uid.JPEGBaseline8Bit, saved("JPEG", Image.new("L", (SIDE, SIDE), 9)), Rows=SIDE, Columns=SIDE
    ),
    "j2k-noise.dcm": lambda: big_j2k(4900, 65535, 16),
    "j2k-large.dcm": lambda: big_j2k(SIDE),
    "j2k-blocks.dcm": lambda: big_j2k(5000, codeblock_size=(4, 4)),
    "j2k-small-blocks.dcm": lambda: big_j2k(5000, codeblock_size=(16, 16)),
    "j2k-precincts.dcm": lambda: big_j2k(5000, precinct_size=(16, 16), codeblock_size=(16, 16)),
    "j2k-few-tiles.dcm": lambda: big_j2k(5000, tile_size=(160, 160)),
    "j2k-tiles.dcm": lambda: big_j2k(5000, tile_size=(20, 20)),
    "scans.stored": lambda: scans(1000, 2000),
    "few-scans.stored": lambda: scans(SIDE, 12),
    "sixteen.stored": lambda: png(SIDE, SIDE, 16, 0, row=2 * SIDE),
    "rgba.stored": lambda: png(SIDE, SIDE, 8, 6, row=4 * SIDE),
    "palette.stored": lambda: png(SIDE, SIDE, 8, 3, chunk(b"PLTE", bytes(768)), chunk(b"tRNS", b"\1"), row=SIDE),
}


def exif_tags(count: int, size: int) -> bytes:
    """A directory of so many tags that all have the same `size` bytes."""
    tags = b"".join(struct.pack("<HHII", tag, 7, size, 8) for tag in range(500, 500 + count))
    return struct.pack("<H", count) + tags + bytes(4)


def rle_bmp() -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + header + bytes(1024) + b"\0\0" * 20_000 + b"\0\1"


def many_directories(count: int) -> bytes:
    whole = raw_tiff(64, 64, 8, 1, 1, bytes(4096))
    start, size = len(whole), 2 + 12 + 4
    more = b"".join(
        struct.pack("<HHHIII", 1, 256, 4, 1, 64, start + (number + 1) * size if number + 1 < count else 0)
        for number in range(count)
    )
    at = 8 + 2 + 12 * 11
    return whole[:at] + struct.pack("<I", start) + whole[at + 4 :] + more


def tiff_of_pieces(count: int) -> bytes:
    side, at = 64, 8 + 2 + 12 * 9 + 4
    entries = {256: (4, 1, side), 257: (4, 1, side), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1)}
    entries |= {273: (4, count, at), 277: (3, 1, 1), 278: (4, 1, 1), 279: (4, count, at)}
    return tiff(entries, 0, struct.pack("<I", 64) * count + bytes(4096))


def charsets(size: int, count: int = 1) -> bytes:
    """Sets of characters in a sequence of undefined length, of implicit VR."""
    values = struct.pack("<HHI", 8, 5, size) + b"\\" * size
    sequence = struct.pack("<HHI", 0x0008, 0x1140, UNDEFINED) + ITEM[:4] + b"\xff" * 4 + values * count + END_ITEM + END
    data = dicom(uid.ImplicitVRLittleEndian)
    at = data.index(struct.pack("<HHI", 0x0010, 0x0010, len(SECRET)))
    return data[:at] + sequence + data[at:]


def fragments(count: int) -> bytes:
    pixels = ITEM + ITEM * count + END
    return dicom(uid.JPEGBaseline8Bit, b"\0\0", PixelData=pixels)


def offsets(count: int) -> bytes:
    return dicom(
        uid.JPEGBaseline8Bit, b"\0\0", PixelData=ITEM[:4] + struct.pack("<I", 4 * count) + bytes(4 * count) + END
    )


def deflated() -> bytes:
    data = dicom(uid.DeflatedExplicitVRLittleEndian)
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    body = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1000)) + packer.flush()
    mark = b"1.2.840.10008.1.2.1.99"
    return data[: data.index(mark) + len(mark)] + body


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str, tmp_path: Path) -> None:
    data = BOMBS[name]()
    fault = hunt(READERS[name.rpartition(".")[2]], [data], tmp_path, right=is_film)
    assert not fault, f"{fault}; input in {tmp_path / 'fault'}"


@pytest.mark.parametrize(
    ("read", "fault"),
    [
        (lambda data: 1 / 0, "ZeroDivisionError is none of our errors"),
        (lambda data: bytearray(1_000_000_000), "1,000 MB"),
        (lambda data: sum(range(10**8)), "CPU seconds"),
        (lambda data: print(SECRET) or os.write(2, SECRET.encode()), "text of the file is told"),
        (lambda data: os._exit(9), "the process died"),
        (lambda data: signal.pause(), "nothing for 5 s"),
        (lambda data: None, ""),
    ],
)
def test_the_judge_sees_faults(
    read: Callable[[bytes], object], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutate, "CPU_SECONDS", 1 if "CPU" in fault else 10)  # a gigabyte takes a second at times
    monkeypatch.setattr(mutate, "WALL_SECONDS", 5 if "nothing" in fault else 60)
    found = hunt(read, [b"input"], tmp_path)
    assert fault in found and bool(fault) == bool(found)
    assert (tmp_path / "fault").exists() == bool(fault)
