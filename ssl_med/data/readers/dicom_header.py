"""Headers of DICOM files: read without their pixels and without trusting them, and judged before any pixel is read."""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pydicom.config
import pydicom.filereader
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ssl_med.data.readers.dicom_start import PREAMBLE, has_preamble, is_dicom
from ssl_med.data.readers.dicom_tags import FACTS, MODALITIES, NOT_IMAGES, TAGS
from ssl_med.data.readers.gate import Limits, check_shape
from ssl_med.data.readers.packed import Bounded
from ssl_med.data.record import BURNED_IN, SetAside, Unreadable

BROKEN: tuple[type[Exception], ...] = (ArithmeticError, AssertionError, AttributeError, BytesLengthException, EOFError)
BROKEN += (InvalidDicomError, LookupError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError)
BROKEN += (struct.error, zlib.error)
"""What pydicom and its decoders raise on damaged or unknown files."""

HEADER_BYTES = 1 << 24
"""A header that needs more than this before its pixels is no header of an image."""

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_COLOURS = {"MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1, "RGB": 3, "YBR_FULL": 3, "YBR_FULL_422": 3}
_COLOURS |= {"YBR_PARTIAL_422": 3, "YBR_PARTIAL_420": 3, "YBR_ICT": 3, "YBR_RCT": 3}
_PIXELS = (Tag("FloatPixelData"), Tag("DoubleFloatPixelData"), Tag("PixelData"))
_DEFLATED, _PLAIN = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"


@contextmanager
def refusing(reason: str) -> Iterator[None]:
    """Turn what a broken file raises into a refusal with ``reason``."""
    try:
        yield
    except BROKEN as error:
        raise Unreadable(f"{reason} ({type(error).__name__})") from None  # its words can hold a path or a name


@contextmanager
def quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Keep pydicom's warnings off the screen and out of every log: they quote values, names of patients among them."""
    before = pydicom.config.logger.disabled
    pydicom.config.logger.disabled = True
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    finally:
        pydicom.config.logger.disabled = before


def read_header(file: Path) -> Dataset:
    """The tags of a file that say what its image is; pixels stay on the disk.

    Raises:
        Unreadable: no DICOM file, or a damaged one.
    """
    with refusing("not a DICOM file, or a broken one"), opened(file, HEADER_BYTES) as stream:
        header = parsed(stream, pixels=False)
    with refusing("header holds values that break the standard"):
        for tag in TAGS:
            header.get(tag)  # pydicom interprets a value when it is first asked for
    return header


def parsed(stream: BinaryIO | BytesIO, pixels: bool) -> Dataset:
    """Parse a file up to its pixels, or with them, and nothing behind: a gigabyte of zeros would parse for hours.

    Raises:
        Unreadable: packed pixels in a file that does not say how they are packed.
        InvalidDicomError: another kind of file; or what else pydicom raises on broken ones.
    """
    passed, bare = False, _check_start(stream)

    def ends(tag: BaseTag, vr: str | None, length: int) -> bool:
        nonlocal passed
        if passed or tag.group == 0:  # group 0 is for messages and never in a file, but it is what zeros look like
            return True
        passed = tag in _PIXELS
        return passed and not pixels

    tags: list[BaseTag | int] | None = None if pixels else [Tag(tag) for tag in (*TAGS, *FACTS)]
    dataset = pydicom.filereader.read_partial(stream, ends, force=bare, specific_tags=tags)
    if bare and "TransferSyntaxUID" not in dataset.file_meta:
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            raise Unreadable("packed pixels, and no transfer syntax that says how")
        implicit, _ = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    return dataset


def _check_start(stream: BinaryIO | BytesIO) -> bool:
    """Whether the file has no preamble; the stream stands at its start before and after."""
    head = stream.read(PREAMBLE)
    stream.seek(0)
    if not is_dicom(head):
        raise InvalidDicomError
    return not has_preamble(head)


@contextmanager
def opened(file: Path, most: int) -> Iterator[BinaryIO | BytesIO]:
    """The file as a stream; a deflated one is unpacked in memory, up to ``most`` bytes behind its meta information."""
    if is_deflated(file):
        yield BytesIO(_inflated(file, most))
        return
    with Bounded(file) as stream:
        yield stream


def is_deflated(file: Path) -> bool:
    """All of the file behind its meta information is one packed stream."""
    return _meta(file).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian


def _meta(file: Path) -> Dataset:
    """Group 2, as pydicom's ``read_file_meta_info`` gives it, which would set aside what a broken length asks for."""
    with Bounded(file) as stream:
        pydicom.filereader.read_preamble(stream, force=_check_start(stream))
        return pydicom.filereader.read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)


def _inflated(file: Path, most: int) -> bytes:
    """The same file with its data set unpacked; what lies beyond ``most`` bytes is left out."""
    packed, meta = file.read_bytes(), _meta(file)
    start = 12 + int(meta.FileMetaInformationGroupLength) + PREAMBLE * has_preamble(packed[:PREAMBLE])
    unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed[start:], most)
    return packed[:start].replace(_DEFLATED, _PLAIN) + unpacked


def frames_of(header: Dataset) -> int:
    """Number of frames; 1 where the header does not say."""
    return int(header.get("NumberOfFrames") or 1)


def modality_of(header: Dataset) -> str:
    """A modality that the standard knows, or nothing: a broken header could hold a name here."""
    found = str(header.get("Modality") or "").upper()
    return found if found in MODALITIES else ""


def is_inverted(header: Dataset) -> bool:
    """MONOCHROME1, which readers turn round; in CT and PET, whose numbers mean something, it only says how to show."""
    return str(header.get("PhotometricInterpretation")) == "MONOCHROME1" and modality_of(header) not in ("CT", "PT")


def fact_of(header: Dataset, tag: str) -> str:
    """The text of one of ``FACTS``; empty where it breaks the standard, which is no fault of the image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they would quote it
            return " ".join(str(header.get(tag) or "").split())
    except BROKEN:
        return ""


def words_of(header: Dataset) -> list[str]:
    """The words of ImageType, in capitals."""
    value = header.get("ImageType") or []
    return [str(word).upper() for word in ([value] if isinstance(value, str) else value)]


def is_cut_short(header: Dataset) -> bool:
    """The header ends before it says how large its image is."""
    return header.get("Rows") is None or header.get("Columns") is None


def is_no_image(header: Dataset) -> bool:
    """An object that never had pixels, by its modality or, as for raw data of a scanner, by its SOP class."""
    if modality_of(header) in NOT_IMAGES:
        return True
    kind = UID(str(header.get("SOPClassUID") or ""))
    return is_cut_short(header) and bool(kind) and "Image Storage" not in kind.name


def is_secondary_capture(header: Dataset) -> bool:
    """A picture of a screen or of paper, by its SOP class; single-frame or multi-frame."""
    return str(header.get("SOPClassUID", "")).startswith(_SECONDARY_CAPTURE)


def check_headers(headers: list[Dataset], limits: Limits) -> None:
    """Everything that can be said of one image before a pixel is read.

    Raises:
        SetAside: no image, a localiser.
        Unreadable: cut short, files that do not belong together, too large, a colour that is none.
    """
    for header in headers:
        _check_kind(header)
    for tag in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation"):
        if len({header.get(tag) for header in headers}) > 1:
            raise Unreadable(f"mixed {tag} in one series")
    if len(headers) > 1 and any(frames_of(header) > 1 for header in headers):
        raise Unreadable("several multi-frame files in one series")
    first, count = headers[0], sum(frames_of(header) for header in headers)
    shape = (count, int(first.Rows), int(first.Columns), int(first.get("SamplesPerPixel") or 1))
    check_shape(shape, max(4, int(first.get("BitsAllocated") or 8) // 8), limits)


def _check_kind(header: Dataset) -> None:
    if is_no_image(header):
        raise SetAside(f"no image: DICOM object of modality {modality_of(header) or 'unknown'}")
    if is_cut_short(header):
        raise Unreadable("header cut short: no Rows or Columns")
    if not header.Rows or not header.Columns:
        raise Unreadable("no image: Rows or Columns is zero")
    if "LOCALIZER" in words_of(header):
        raise SetAside("localiser")
    if "ModalityLUTSequence" in header:
        raise Unreadable("modality lookup table: values are no linear function of the units")
    colour = str(header.get("PhotometricInterpretation") or "MONOCHROME2")
    samples = int(header.get("SamplesPerPixel") or 1)
    if colour not in _COLOURS:
        raise Unreadable("unknown photometric interpretation")
    if samples != _COLOURS[colour]:
        raise Unreadable(f"photometric interpretation {colour} with {samples} samples per pixel")


def notes_of(headers: list[Dataset]) -> tuple[str, ...]:
    """What a person should know of the picture: names may stand in it. Of ultrasound that is told for all formats."""
    burned = any(str(header.get("BurnedInAnnotation", "")).upper() == "YES" for header in headers)
    return (BURNED_IN,) if burned or any(map(is_secondary_capture, headers)) else ()
