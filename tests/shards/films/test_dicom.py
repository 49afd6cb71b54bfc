"""The grey-scale pipeline of DICOM films, on films drawn here and written with pydicom."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import convert_color_space

from shards.films.raw import open_film

RAMP = (np.arange(64 * 64).reshape(64, 64)).astype(np.uint16)
"""Every value of 12 bits once."""
GREY = (np.add.outer(np.arange(80), np.arange(64)) * 255 // 142).astype(np.uint8)


def dicom(pixels: np.ndarray, syntax: str = uid.ExplicitVRLittleEndian, **tags: Any) -> Dataset:
    """A film of one patient; `tags` replace or remove (None) elements."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.DigitalXRayImageStorageForPresentation, "1.2.3.4"
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "SECRET77"
    bits = pixels.dtype.itemsize * 8
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<>"[syntax == uid.ExplicitVRBigEndian])).tobytes()
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    for keyword, value in tags.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    return dataset


def twelve(pixels: np.ndarray = RAMP, **tags: Any) -> Dataset:
    return dicom(pixels, **{"BitsStored": 12, "HighBit": 11} | tags)


def film(folder: Path, dataset: Dataset) -> np.ndarray:
    dataset.save_as(folder / "film.dcm", enforce_file_format=True)
    found = open_film(folder / "film.dcm")
    assert found.dtype == np.uint8
    return found


def lut(first: int, bits: int, entries: list[int] | bytes, count: int = 0) -> list[Dataset]:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [(count or len(entries)) % 65536, first, bits])
    item.add_new("LUTData", "OW" if isinstance(entries, bytes) else "US", entries)
    return [item]


def scaled(values: np.ndarray, black: float, white: float) -> np.ndarray:
    return np.round(np.clip((values.astype(float) - black) / (white - black), 0, 1) * 255)


def test_without_a_window_the_range_of_bits_stored_is_black_to_white(tmp_path: Path) -> None:
    assert (film(tmp_path, twelve()) == scaled(RAMP, 0, 4095)).all()
    assert (film(tmp_path, twelve(RAMP // 8)) == scaled(RAMP // 8, 0, 4095)).all()
    signed = RAMP.astype(np.int16) - 2048
    assert (film(tmp_path, twelve(signed)) == scaled(signed, -2048, 2047)).all()


def test_sixteen_bits_declared_and_twelve_filled_are_scaled_as_twelve(tmp_path: Path) -> None:
    assert (film(tmp_path, dicom(RAMP)) == scaled(RAMP, 0, 4095)).all()
    assert (film(tmp_path, dicom(RAMP.astype(np.int16))) == scaled(RAMP, 0, 4095)).all()
    signed = RAMP.astype(np.int16) - 1024
    assert (film(tmp_path, dicom(signed)) == scaled(signed, -8192, 8191)).all()
    assert (film(tmp_path, dicom(RAMP * 16)) == scaled(RAMP * 16, 0, 65535)).all()


@pytest.mark.parametrize("count", [1, 2])
def test_window_is_the_first_and_linear(tmp_path: Path, count: int) -> None:
    window = {"WindowCenter": [2000, 9][:count], "WindowWidth": [1000, 5][:count]}
    assert (film(tmp_path, twelve(**window)) == scaled(RAMP, 2000 - 0.5 - 999 / 2, 2000 - 0.5 + 999 / 2)).all()


def test_window_functions(tmp_path: Path) -> None:
    window = {"WindowCenter": 2000, "WindowWidth": 1000}
    exact = film(tmp_path, twelve(VOILUTFunction="LINEAR_EXACT", **window))
    assert np.abs(exact - scaled(RAMP, 1500, 2500)).max() <= 1
    sigmoid = film(tmp_path, twelve(VOILUTFunction="SIGMOID", **window))
    assert (sigmoid == np.round(255 / (1 + np.exp(-4 * (RAMP - 2000.0) / 1000)))).all()
    threshold = film(tmp_path, twelve(WindowCenter=2000, WindowWidth=1))
    assert (threshold == np.where(RAMP > 1999.5, 255, 0)).all()


def test_rescale_comes_before_the_window_and_changes_nothing_without_one(tmp_path: Path) -> None:
    rescale = {"RescaleSlope": 2, "RescaleIntercept": -1024}
    assert (film(tmp_path, twelve(**rescale)) == scaled(RAMP, 0, 4095)).all()
    found = film(tmp_path, twelve(WindowCenter=1000, WindowWidth=2000, VOILUTFunction="LINEAR_EXACT", **rescale))
    assert np.abs(found - scaled(RAMP * 2.0 - 1024, 0, 2000)).max() <= 1


def test_a_negative_slope_turns_black_and_white_round(tmp_path: Path) -> None:
    found = film(tmp_path, twelve(RescaleSlope=-1, RescaleIntercept=4095))
    assert (found == scaled(4095 - RAMP.astype(float), 0, 4095)).all()


def test_modality_lut_sequence_takes_the_place_of_rescale(tmp_path: Path) -> None:
    table = lut(100, 8, list(range(255, -1, -1)))
    found = film(tmp_path, twelve(ModalityLUTSequence=table, RescaleSlope=7, RescaleIntercept=1))
    assert (found == np.clip(355 - RAMP.astype(int), 0, 255)).all()


def test_voi_lut_goes_before_the_window_and_may_have_more_entries_than_its_bits_count(tmp_path: Path) -> None:
    """pydicom's apply_voi_lut wraps the index of such a table at 256."""
    table = lut(0, 8, [value // 16 for value in range(4096)])
    found = film(tmp_path, twelve(VOILUTSequence=table, WindowCenter=1, WindowWidth=2))
    assert (found == RAMP // 16).all()


def test_voi_lut_that_declares_sixteen_bits_and_fills_twelve(tmp_path: Path) -> None:
    found = film(tmp_path, twelve(VOILUTSequence=lut(0, 16, list(range(4096)))))
    assert (found == scaled(RAMP, 0, 4095)).all()


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_voi_lut_of_signed_values_begins_below_zero(tmp_path: Path, syntax: str) -> None:
    signed = RAMP.astype(np.int16) - 2048
    table = lut(-2000, 12, list(range(4001)))
    found = film(tmp_path, twelve(signed, syntax=syntax, VOILUTSequence=table))
    assert (found == scaled(np.clip(signed + 2000.0, 0, 4000), 0, 4095)).all()


@pytest.mark.parametrize(("syntax", "order"), [(uid.ExplicitVRLittleEndian, "<"), (uid.ExplicitVRBigEndian, ">")])
def test_voi_lut_as_words_or_bytes(tmp_path: Path, syntax: str, order: str) -> None:
    words = (np.arange(4096) // 2).astype(f"{order}u2").tobytes()
    found = film(tmp_path, twelve(syntax=syntax, VOILUTSequence=lut(0, 12, words, 4096)))
    assert (found == scaled(RAMP // 2, 0, 4095)).all()
    if order == "<":
        packed = (np.arange(4096) // 16).astype(np.uint8).tobytes()
        assert (film(tmp_path, twelve(VOILUTSequence=lut(0, 8, packed, 4096))) == RAMP // 16).all()


def test_monochrome1_is_inverted_after_the_window(tmp_path: Path) -> None:
    negative = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 2000, "WindowWidth": 1000}
    exact = {"VOILUTFunction": "LINEAR_EXACT", "PresentationLUTShape": "INVERSE"}
    found = film(tmp_path, twelve(**negative, **exact))
    assert (found == np.round(np.clip(1 - (RAMP - 1500.0) / 1000, 0, 1) * 255)).all()


def test_bits_above_and_below_the_stored_ones_are_cut_off(tmp_path: Path) -> None:
    wanted = scaled(RAMP, 0, 4095)
    assert (film(tmp_path, twelve(RAMP | (RAMP % 5 << 12).astype(np.uint16))) == wanted).all()
    assert (film(tmp_path, twelve((RAMP << 4) | (RAMP % 16), HighBit=15)) == wanted).all()
    signed = (RAMP.astype(np.int16) - 2048) & 0x0FFF
    assert (film(tmp_path, twelve(signed)) == scaled(RAMP, 0, 4095)).all()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_whatever_the_polarity(tmp_path: Path, photometric: str) -> None:
    tags = {"PhotometricInterpretation": photometric, "PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 4095}
    found = film(tmp_path, twelve(**tags))
    grey = scaled(RAMP, 0, 4095) if photometric == "MONOCHROME2" else np.round((1 - RAMP / 4095) * 255)
    assert (found == np.where(RAMP >= 4000, 0, grey)).all()


def test_padding_does_not_count_for_the_depth_and_may_fill_unused_bits(tmp_path: Path) -> None:
    pixels = RAMP.copy()
    pixels[:, :8] = 65535
    found = film(tmp_path, dicom(pixels, PixelPaddingValue=65535))
    assert (found == np.where(pixels == 65535, 0, scaled(pixels, 0, 4095))).all()
    assert (film(tmp_path, twelve(pixels, PixelPaddingValue=65535))[:, :8] == 0).all()
    signed = np.where(pixels == 65535, -2000, RAMP.astype(np.int16)).astype(np.int16)
    found = film(tmp_path, dicom(signed, syntax=uid.ImplicitVRLittleEndian, PixelPaddingValue=-2000))
    assert (found == np.where(signed == -2000, 0, scaled(RAMP, 0, 4095))).all()


def picture(format_: str, pixels: np.ndarray = GREY, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format_, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    "syntax",
    [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian, uid.RLELossless],
)
@pytest.mark.parametrize("pixels", [GREY, RAMP], ids=["8 bits", "16 bits"])
def test_lossless_transfer_syntaxes_give_the_same_film(tmp_path: Path, syntax: str, pixels: np.ndarray) -> None:
    plain = film(tmp_path, dicom(pixels))
    if syntax == uid.RLELossless:
        dataset = dicom(pixels)
        dataset.compress(uid.RLELossless)
    else:
        dataset = dicom(pixels, syntax)
    assert (film(tmp_path, dataset) == plain).all()


@pytest.mark.parametrize("boxes", [False, True])
def test_jpeg_2000_with_and_without_the_boxes_of_a_jp2_file(tmp_path: Path, boxes: bool) -> None:
    frame = picture("JPEG2000", RAMP, no_jp2=not boxes)
    found = film(tmp_path, dicom(RAMP, uid.JPEG2000Lossless, PixelData=encapsulate([frame])))
    assert (found == scaled(RAMP, 0, 4095)).all()


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit])
def test_jpeg_of_eight_bits_in_one_or_more_fragments(tmp_path: Path, syntax: str) -> None:
    frame = picture("JPEG", quality=95)
    for pieces in (1, 2):
        found = film(tmp_path, dicom(GREY, syntax, PixelData=encapsulate([frame], fragments_per_frame=pieces)))
        assert np.abs(found.astype(int) - GREY).max() < 4


COLOURS = np.dstack([GREY, GREY[::-1], np.full_like(GREY, 90)])
LUMINANCE = np.asarray(Image.fromarray(COLOURS).convert("L")).astype(int)


def test_colours_become_luminance(tmp_path: Path) -> None:
    assert (film(tmp_path, dicom(COLOURS)) == LUMINANCE).all()
    planes = np.moveaxis(COLOURS, -1, 0).tobytes()
    assert (film(tmp_path, dicom(COLOURS, PlanarConfiguration=1, PixelData=planes)) == LUMINANCE).all()
    deep = dicom(COLOURS.astype(np.uint16) << 4, BitsStored=12, HighBit=11)
    assert np.abs(film(tmp_path, deep) - LUMINANCE).max() <= 1
    jpeg = dicom(COLOURS, uid.JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL_422")
    jpeg.PixelData = encapsulate([picture("JPEG", COLOURS, quality=95)])
    assert np.abs(film(tmp_path, jpeg) - LUMINANCE).max() < 6


def test_luma_and_chroma_become_luminance(tmp_path: Path) -> None:
    ybr = convert_color_space(COLOURS, "RGB", "YBR_FULL")
    assert np.abs(film(tmp_path, dicom(ybr, PhotometricInterpretation="YBR_FULL")) - LUMINANCE).max() <= 1
    pairs = ybr.reshape(-1, 2, 3)
    halved = np.stack([pairs[:, 0, 0], pairs[:, 1, 0], pairs[:, 0, 1], pairs[:, 0, 2]], axis=-1)
    found = film(tmp_path, dicom(ybr, PhotometricInterpretation="YBR_FULL_422", PixelData=halved.tobytes()))
    assert np.abs(found - LUMINANCE).max() <= 4


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_becomes_luminance(tmp_path: Path, bits: int) -> None:
    dataset = dicom(GREY, PhotometricInterpretation="PALETTE COLOR")
    ramp = np.arange(256, dtype=np.uint16)
    for colour, entries in {"Red": ramp, "Green": ramp[::-1], "Blue": np.full(256, 90, np.uint16)}.items():
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, bits])
        data = entries.astype(np.uint8) if bits == 8 else entries * 257
        setattr(dataset, f"{colour}PaletteColorLookupTableData", data.tobytes())
    coloured = np.dstack([GREY, 255 - GREY, np.full_like(GREY, 90)])
    assert (film(tmp_path, dataset) == np.asarray(Image.fromarray(coloured).convert("L"))).all()
