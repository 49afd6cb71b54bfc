"""What Pillow would not check, or could be kept busy with, in JPEG, JPEG 2000, PNG, BMP and TIFF: DataError.

A film's bytes are walked once without decoding them, and what is handed to Pillow is the picture alone: no text,
profile, preview or further picture, which are as many ways to take memory and time, and hold what nobody should read.

What can be known of damage:

- PNG: every chunk has a checksum, all are checked
- JPEG of one scan (baseline): a scan that is cut and closed by an end marker is found, where libjpeg alone goes on in
  grey; only when no more than its last four blocks of 8 x 8 pixels are missing, it is not
- JPEG of several scans (progressive): scans that are missing are found. A cut inside the last one, which has the last
  bit of the coefficients, is not: what follows an early end is laid out like what follows a whole scan
- JPEG 2000: OpenJPEG refuses a code stream that ends early
- a flipped bit in the pixels of JPEG, BMP or TIFF, also TIFF with LZW, deflate or PackBits, cannot be known: they have
  no checksum, or one that libtiff does not look at. Owners' checksums (SHA256SUMS of MIMIC-CXR) are the way.
"""

import re
import struct
import zlib

from shards.errors import DataError

MAX_SEGMENTS = 1000
"""Segments of a JPEG, its scans' tables among them."""
MAX_SCANS = 20
"""Scans of a JPEG: libjpeg goes over the whole picture in each. Encoders write 6 to 12."""
MAX_CHUNKS = 100_000
"""Chunks of a PNG: of 400 MB in pieces of 8 kB there are 50,000."""
MAX_PIECES = 100_000
"""Strips or tiles of a TIFF: one for every row of three planes, at most."""
JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])", re.DOTALL)
JPEG_SCAN_END = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
MAX_GAP_BYTES = 1000
"""Fill bytes between two segments of a JPEG, over which Pillow goes one by one."""
SOF, OTHER_SOF, SOS, EOI = (0xC0, 0xC1, 0xC2), {*range(0xC3, 0xD0)} - {0xC4, 0xC8, 0xCC}, 0xDA, 0xD9
PADDING = b"\xff\0" * 8
"""What libjpeg may look ahead at behind a whole scan: 64 bits, as many as its buffer holds; no code is all ones."""
J2K_COD, J2K_COC, J2K_SOT, J2K_SOD, J2K_EOC = 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
J2K_MAX_PIXELS, J2K_MAX_TILES, J2K_MAX_LEVELS = 25_000_000, 1024, 10
"""OpenJPEG decodes 5 million pixels a second, and takes 10 kB for a tile and up to 30 bytes for a pixel."""
J2K_LEAST_PRECINCT, J2K_LEAST_BLOCK = 4, 8
"""Precincts have at least 16 x 16 samples, code blocks 256; as powers of two."""
PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
MAX_EXIF_BYTES = 65_536
BMP_PLAIN = (0, 3)
"""Compression of a BMP: none, or none with masks of bits."""
TIFF_TAGS = (*(256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317), *range(320, 326), 338, 339)
"""Size, depth, polarity, orientation, planes, strips or tiles, predictor, palette, alpha, signs: how pixels lie."""
TIFF_COMPRESSIONS = (1, 5, 8, 32773, 32946)
"""None, LZW, deflate, PackBits, deflate as it was numbered once."""
TIFF_SIZES = dict(enumerate((0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4)))
"""Bytes of a value, by its type."""


def picture_of(data: bytes, format_: str) -> bytes:
    """The bytes of the picture alone, in the same format, for a file of `format_` (JPEG, JPEG2000, PNG, BMP, TIFF)."""
    try:
        return {"JPEG": _jpeg, "JPEG2000": _jpeg2000, "PNG": _png, "BMP": _bmp, "TIFF": _tiff}[format_](data)
    except (IndexError, ZeroDivisionError, struct.error):
        raise DataError("the data is truncated") from None


def _jpeg(data: bytes) -> bytes:
    """The first picture: tables, frame, scans, and of the rest what tells its colours and orientation."""
    kept, at, components, scans = [data[:2]], 2, 0, 0
    progressive = single = exif = False
    done: dict[int, int] = {}  # component: mask of the coefficients whose last bit has come
    for _ in range(MAX_SEGMENTS):
        found = JPEG_MARKER.search(data, at, at + MAX_GAP_BYTES) if not scans else JPEG_SCAN_END.search(data, at)
        if not found:
            raise DataError("the data is truncated, or damaged between two JPEG segments")
        marker, start, at = found[1][0], found.start(), found.end()
        if marker == EOI:
            if not scans or (progressive and any(mask + 1 != 1 << 64 for mask in done.values())):
                raise DataError("the data is truncated: scans are missing")
            if len(done) != components:
                raise DataError("the data is truncated: a colour is missing")
            if single:  # without an end marker a decoder that wants more says so
                return b"".join((*kept, PADDING))
            return b"".join((*kept, data[start:at]))
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        (length,) = struct.unpack_from(">H", data, at)
        segment = data[at + 2 : at + length]
        if length < 2 or at + length > len(data):
            raise DataError("the data is truncated")
        if marker in OTHER_SOF:
            raise DataError("it is a JPEG of a kind not read here: read are baseline, extended and progressive")
        if marker in SOF:
            components, progressive = segment[5], marker == 0xC2
        if marker == SOS:
            scans += 1
            if scans > MAX_SCANS:
                raise DataError(f"it has more than {MAX_SCANS} scans")
            count, first, last, bits = segment[0], *struct.unpack(">3B", segment[-3:])
            single = scans == 1 and count == components and not progressive
            for component in segment[1 : 1 + 2 * count : 2]:
                whole = ((1 << 64) - 1) if not progressive else 0 if bits & 15 else (2 << last) - (1 << first)
                done[component] = done.get(component, 0) | whole
        if first_exif := marker == 0xE1 and segment.startswith(b"Exif\0\0") and not exif:
            exif = True
        if marker in (0xE0, 0xEE) or first_exif or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(data[start : at + length])
        at += length
        if marker == SOS:
            end = JPEG_SCAN_END.search(data, at)
            if not end:
                raise DataError("the data is truncated")
            kept.append(data[at : end.start()])
            at = end.start()
    raise DataError(f"it has more than {MAX_SEGMENTS} JPEG segments")


def _jpeg2000(data: bytes) -> bytes:
    """The code stream as it is, when no table in it makes OpenJPEG build more than a film needs."""
    right, bottom, left, top, width, height, x, y, colours = struct.unpack_from(">8IH", data, 8)
    pixels, tiles = (right - left) * (bottom - top) * colours, -(x - right) // width * (-(y - bottom) // height)
    if pixels > J2K_MAX_PIXELS or tiles > J2K_MAX_TILES or len(data) > 4 * pixels + (1 << 20):
        raise DataError(f"a JPEG 2000 film has at most {J2K_MAX_PIXELS:,} pixels and {J2K_MAX_TILES} tiles")
    at, end = 2, len(data)
    for _ in range(10 * J2K_MAX_TILES):
        marker = int.from_bytes(data[at : at + 2], "big")
        if marker == J2K_EOC or at + 4 > len(data):  # what is missing of the code stream is OpenJPEG's to find
            return data
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == J2K_SOT:
            (size,) = struct.unpack_from(">I", data, at + 6)
            end = at + size if size else len(data)
        if marker in (J2K_COD, J2K_COC):
            start = at + (9 if marker == J2K_COD else 6 + (colours > 256))
            levels, wide, high = struct.unpack_from(">3B", data, start)
            precincts = data[start + 5 : at + 2 + length]
            small = any(min(size & 15, size >> 4) < J2K_LEAST_PRECINCT for size in precincts)
            if small or wide + high + 4 < J2K_LEAST_BLOCK or levels > J2K_MAX_LEVELS:
                raise DataError("the JPEG 2000 film is cut into smaller blocks than any film's")
        at = end if marker == J2K_SOD else at + 2 + length
    raise DataError("it has more segments than a JPEG 2000 film")


def _png(data: bytes) -> bytes:
    view, at, kept = memoryview(data), 8, [memoryview(data)[:8]]
    for _ in range(MAX_CHUNKS):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise DataError("the checksum of a PNG chunk does not hold: the data is damaged")
        if kind == b"acTL" and data[at + 8 : at + 12] != b"\0\0\0\1":
            raise DataError("the file holds several frames; a film has one")
        if kind == b"eXIf" and length > MAX_EXIF_BYTES:
            raise DataError(f"its EXIF is longer than {MAX_EXIF_BYTES:,} bytes")
        if kind in PNG_KEPT:
            kept.append(view[at:end])
        if kind == b"IEND":
            return b"".join(kept)
        at = end
    else:
        raise DataError(f"it has more than {MAX_CHUNKS:,} PNG chunks")
    raise DataError("the data is truncated")


def _bmp(data: bytes) -> bytes:
    (header,) = struct.unpack_from("<I", data, 14)
    if header > 12 and struct.unpack_from("<I", data, 30)[0] not in BMP_PLAIN:
        raise DataError("it is a compressed BMP, which is not read: save it without compression")
    return data


def _tiff(data: bytes) -> bytes:
    """The same file, of whose directory the tags that say how pixels lie remain, each once; a second one is refused."""
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack_from(f"{order}4xI", data)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    entries = data[at + 2 : at + 2 + 12 * count]
    tags: dict[int, bytes] = {}
    (more,) = struct.unpack_from(f"{order}I", data, at + 2 + 12 * count)
    if at < 8:
        raise DataError("the TIFF directory lies in the header")
    if more:
        raise DataError("the file holds several frames; a film has one")
    for entry in range(0, len(entries), 12):
        tag, kind, values = struct.unpack_from(f"{order}HHI", entries, entry)
        if tag in TIFF_TAGS:
            tags.setdefault(tag, entries[entry : entry + 12])
            if values > MAX_PIECES or values * TIFF_SIZES.get(kind, 0) > len(data):
                raise DataError("a table of the TIFF directory is longer than any film's")
    compression = struct.unpack(f"{order}H", tags[259][8:10])[0] if 259 in tags else 1
    if compression not in TIFF_COMPRESSIONS:
        raise DataError("it is a TIFF of a compression not read here: read are none, LZW, deflate and PackBits")
    directory = struct.pack(f"{order}H", len(tags)) + b"".join(tags[tag] for tag in sorted(tags)) + bytes(4)
    return b"".join((memoryview(data)[:at], directory, memoryview(data)[at + len(directory) :]))
