"""DICOM films as grey uint8 [H, W]. All failures are DataError; no tag that tells of the patient is read.

The rules, in this order, each applied every time (PS3.3 C.7.6.3, C.11.1, C.11.2):

- file: preamble and "DICM" at byte 128, and a transfer syntax of the standard; others are refused, also headless ones
- one frame with Pixel Data; more frames, an Enhanced object or floating-point pixels are refused. Rows and Columns are
  bounded as other films are, before anything is decoded
- transfer syntaxes: uncompressed, deflated (at most `MAX_FILE_BYTES` when inflated), RLE, JPEG Baseline and 8-bit
  Extended, JPEG 2000 (at most 25 million pixels, which take OpenJPEG 7 s); others need the package that the refusal
  names. The compressed picture must have the header's size, and decoders are the same on every machine
- length: fewer bytes than the header demands are refused; up to `MAX_PADDING_BYTES` too many are padding, more refused
- stored values: the BitsStored bits below HighBit, at most 16; bits above and below (overlays) are cut off, overlay
  planes are ignored; signed where PixelRepresentation says so
- Modality LUT Sequence, else RescaleSlope and RescaleIntercept, else nothing
- VOI LUT Sequence, else WindowCenter and WindowWidth, the first of several, as VOILUTFunction says (LINEAR,
  LINEAR_EXACT, SIGMOID), else the whole range that BitsStored can hold, so that films of one detector stay comparable:
  neither minimum to maximum nor percentiles
- 16 bits, of values or of VOI LUT entries, is what devices declare that fill 12: there the range is the smallest depth
  of 8, 10, 12, 14, 16 bits that holds what is there, as for 16-bit PNG
- MONOCHROME1 is inverted; Presentation LUT Shape says the same and is ignored
- pixels from PixelPaddingValue to PixelPaddingRangeLimit are black in the film, whatever the polarity
- RGB, YBR and PALETTE COLOR become luminance (ITU-R 601); LUTs, windows and padding do not apply to colour
- a window, slope or table that cannot be right (width 0, slope 0, no entries) is refused, not guessed at
"""

import io
import logging
import struct
import zlib
from itertools import pairwise
from typing import Any, BinaryIO

from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame, parse_basic_offsets, parse_fragments
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import get_expected_length
from pydicom.tag import BaseTag, Tag

from shards.errors import DataError
from shards.films.containers import picture_of
from shards.films.limits import HEAD_BYTES, MAX_FILE_BYTES, Film, cause_of, refuse_content, refuse_size
from shards.films.tones import ITEM_TAGS, MAX_BITS, MAX_VALUE_BYTES, PALETTES, Header, film_of, number_of, refuse_long

MAX_PADDING_BYTES = 4096
PREAMBLE_BYTES = 132
PHOTOMETRIC = {
    **dict.fromkeys(("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"), 1),
    **dict.fromkeys(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"), 3),
}
"""Photometric interpretations that are read, and their samples per pixel."""
REQUIRED = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation")
READ: list[BaseTag | int] = [
    Tag(keyword)
    for keyword in (
        *REQUIRED,
        *("PhotometricInterpretation", "PlanarConfiguration", "HighBit", "NumberOfFrames", "PixelData"),
        *("SharedFunctionalGroupsSequence", "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
        *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
        *("PixelPaddingValue", "PixelPaddingRangeLimit"),
        *(f"{palette}{part}" for palette in PALETTES for part in ("Descriptor", "Data")),
    )
]
"""The only tags that are kept of a file (and the character set, which pydicom always keeps)."""
PILLOW = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEG2000Lossless, uid.JPEG2000)
"""Transfer syntaxes that Pillow decodes."""
MAX_READS = 100_000
"""Two or three for an element, an item or a fragment; of a film 10,000 at most."""
MAX_CHARSET_BYTES = 10_000
"""Of all Specific Character Sets, which pydicom splits into names and looks up while it reads."""
CHARSET, PIXEL_DATA_TAGS = (b"\x08\0\x05\0", b"\0\x08\0\x05"), (b"\xe0\x7f\x10\0", b"\x7f\xe0\0\x10")
"""Tags, in either order of bytes."""
MAX_RLE_RUNS = 10_000_000
"""Of all segments: pydicom takes them one by one. A film has one for every few pixels."""
ONE_OFFSET = (b"\0\0\0\0", b"\4\0\0\0")
"""Lengths of the table of offsets of one frame."""
JP2_SIGNATURE = b"\0\0\0\x0cjP  "
J2K_START = b"\xff\x4f\xff\x51"

logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # its log records, as its warnings, quote values of a file


def read_dicom(file: BinaryIO, suffix: str) -> Film:
    """A DICOM film as grey uint8 [H, W] by the rules of this module; errors of pydicom and Pillow are the caller's."""
    try:
        dataset, syntax = _parse(file.read(), suffix)
        refuse_long(dataset)
        header = _header(dataset)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"the DICOM header is damaged ({type(error).__name__})") from None
    return film_of(dataset, header, _stored_values(dataset, header, syntax))


class _Header(io.BytesIO):
    """Bytes of which pydicom reads no more than a film has: headers can be built that keep it busy for minutes."""

    reads = charset_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file; DataError when too much has been asked for."""
        self.reads += 1
        at = self.tell()
        self.seek(max(0, at - 12))
        element = super().read(at - self.tell())
        if any(tag in element for tag in CHARSET):
            self.charset_bytes += size or 0
        if self.reads > MAX_READS or self.charset_bytes > MAX_CHARSET_BYTES:
            raise DataError("the DICOM header has more elements and items than any film's")
        if not 0 <= (size or 0) <= MAX_VALUE_BYTES and not any(tag in element for tag in PIXEL_DATA_TAGS):
            raise DataError(f"an element other than Pixel Data has more than {MAX_VALUE_BYTES:,} bytes")
        return super().read(size)


def _parse(data: bytes, suffix: str) -> tuple[Dataset, uid.UID]:
    """The tags of `READ`, with the transfer syntax that the file names."""
    refuse_content(data[:HEAD_BYTES], "DICOM", suffix)
    file = _Header(data)
    file.seek(PREAMBLE_BYTES)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    syntax = uid.UID(str(meta.get("TransferSyntaxUID") or ""))
    if syntax not in uid.AllTransferSyntaxes:
        raise DataError("the file names no transfer syntax of the DICOM standard")
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated = stream.decompress(data[file.tell() :], MAX_FILE_BYTES + 1)
        if len(inflated) > MAX_FILE_BYTES:
            raise DataError(f"the deflated data is more than {MAX_FILE_BYTES:,} bytes long when inflated")
        if not stream.eof:
            raise DataError("the deflated data is cut off")
        file = _Header(inflated)
    dataset = read_dataset(file, syntax.is_implicit_VR, syntax.is_little_endian, specific_tags=READ)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset, syntax


def _header(dataset: Dataset) -> Header:
    """How the stored values are laid out; DataError when no film can be laid out so."""
    if "SharedFunctionalGroupsSequence" in dataset:
        raise DataError("it is an Enhanced DICOM object, whose windows lie in functional groups not read here")
    if (number_of(dataset, "NumberOfFrames") or 1) != 1:
        raise DataError("the file holds several frames; a film has one")
    if missing := [keyword for keyword in REQUIRED if number_of(dataset, keyword) is None]:
        raise DataError(f"the DICOM header lacks {', '.join(missing)}")
    rows, columns, samples, allocated, stored, signed = (int(number_of(dataset, keyword) or 0) for keyword in REQUIRED)
    if max(rows, columns, samples, allocated, stored, signed) > 65535:
        raise DataError(f"one of {', '.join(REQUIRED)} has more than 16 bits")
    refuse_size(columns, rows, samples=samples * (2 if allocated > MAX_BITS else 1))
    given = number_of(dataset, "HighBit")
    high = stored - 1 if given is None else int(given)
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip()
    if PHOTOMETRIC.get(photometric) != samples:
        known = ", ".join(PHOTOMETRIC)
        raise DataError(f"{samples} samples per pixel with another PhotometricInterpretation; read are {known}")
    if allocated not in (1, 8, 16, 32) or not 0 < stored <= high + 1 <= allocated:
        raise DataError(f"BitsAllocated {allocated}, BitsStored {stored}, HighBit {high} cannot be")
    if stored > MAX_BITS:
        raise DataError(f"BitsStored is {stored}; a film has at most {MAX_BITS}")
    if signed not in (0, 1) or (signed and (samples > 1 or photometric.startswith("P"))):
        raise DataError(f"PixelRepresentation {signed} cannot be with {photometric}")
    if photometric.startswith("YBR") and (allocated, stored) != (8, 8):
        raise DataError(f"{photometric} is read with 8 bits, not {stored} of {allocated}")
    dataset.NumberOfFrames = 1
    return Header(rows, columns, samples, allocated, stored, high, signed == 1, photometric)


def _stored_values(dataset: Dataset, header: Header, syntax: uid.UID) -> NDArray[Any]:
    """The stored values, unused bits cut off: [H, W], or [H, W, 3] as RGB."""
    if "PixelData" not in dataset or not dataset.PixelData:
        raise DataError("there is no Pixel Data, or it is cut off")
    plugin = _plugin(header, syntax)
    if syntax.is_encapsulated:
        dataset.PixelData = encapsulate([_frame(dataset.PixelData, header, syntax)])
    else:
        length, expected = len(dataset.PixelData), get_expected_length(dataset)
        if not expected <= length <= expected + MAX_PADDING_BYTES:
            raise DataError(f"there are {length:,} bytes of pixels where the header means {expected:,}")
    own = not syntax.is_encapsulated or syntax == uid.RLELossless
    options: Any = {"correct_unused_bits": False} if own else {}
    try:
        values, _ = get_decoder(syntax).as_array(dataset, index=0, decoding_plugin=plugin, **options)
    except Exception as error:
        what = f"{syntax.name} pixels are damaged or of a kind not read here"
        raise DataError(f"{what} ({cause_of(error)})") from None
    del dataset.PixelData
    if own and header.allocated > 1:
        values = values if values.flags.writeable else values.copy()
        values <<= header.allocated - 1 - header.high
        values >>= header.allocated - header.stored
    return values


def _plugin(header: Header, syntax: uid.UID) -> str:
    """The decoder that every machine has, else "" for whatever is installed; DataError says what to install."""
    deep = syntax == uid.JPEGExtended12Bit and header.stored != 8
    if syntax in PILLOW and not deep:
        return "pillow"
    if not syntax.is_encapsulated or syntax == uid.RLELossless:
        return "pydicom" if syntax == uid.RLELossless else ""
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DataError(f"transfer syntax {syntax.name} ({syntax}) holds no film that is read here") from None
    if not decoder.is_available or (deep and decoder.available_plugins == ("pillow",)):
        package = "pylibjpeg-openjpeg" if "2000" in syntax.name else "pylibjpeg-libjpeg"
        what = f"transfer syntax {syntax.name} ({syntax}) with {header.stored} bits"
        raise DataError(f"{what} needs another decoder: pip install pylibjpeg {package}")
    return ""


def _frame(pixel_data: bytes, header: Header, syntax: uid.UID) -> bytes:
    """The one frame; DataError when it is not one, not of the header's size, or inflates beyond."""
    if pixel_data.count(ITEM_TAGS[0]) > MAX_READS or pixel_data[4:8] not in ONE_OFFSET:
        raise DataError("the pixel data holds several frames where the header says one")
    fragments = io.BytesIO(pixel_data)
    offsets = parse_basic_offsets(fragments)
    if len(offsets) > 1 or (syntax == uid.RLELossless and parse_fragments(fragments)[0] > 1):
        raise DataError("the pixel data holds several frames where the header says one")
    frame = get_frame(pixel_data, 0, number_of_frames=1)
    if syntax == uid.RLELossless:
        _refuse_rle(frame, header.rows * header.columns)
    elif syntax in PILLOW:
        if frame.startswith(JP2_SIGNATURE):  # in the boxes of a JP2 file: pydicom loops for ever over one of no size
            frame = frame[max(0, frame.find(J2K_START)) :]
        if frame.startswith((b"\xff\xd8", J2K_START)):
            frame = picture_of(frame, "JPEG2000" if frame.startswith(J2K_START) else "JPEG")
        with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as picture:
            width, height, samples = *picture.size, len(picture.getbands())
        if (width, height, samples) != (header.columns, header.rows, header.samples):
            expected = f"{header.columns}x{header.rows} px of {header.samples} samples"
            raise DataError(f"the compressed picture is {width}x{height} px of {samples}, the header says {expected}")
    return frame


def _refuse_rle(frame: bytes, pixels: int) -> None:
    """DataError when a segment inflates beyond the film: found without inflating it, since pydicom sets no bound."""
    count, *starts = struct.unpack("<16L", frame[:64].ljust(64, b"\0"))
    runs = 0
    for start, end in pairwise([*starts[:count], len(frame)]):
        at, inflated = start, 0
        while at < min(end, len(frame)) and inflated <= pixels + MAX_PADDING_BYTES and runs <= MAX_RLE_RUNS:
            length, runs = frame[at], runs + 1
            inflated += length + 1 if length < 128 else 257 - length if length > 128 else 0
            at += length + 2 if length < 128 else 2 if length > 128 else 1
        if runs > MAX_RLE_RUNS:
            raise DataError(f"the RLE pixels have more than {MAX_RLE_RUNS:,} runs")
        if inflated > pixels + MAX_PADDING_BYTES:
            raise DataError(f"the RLE pixels inflate to more than the {pixels:,} the header means")
