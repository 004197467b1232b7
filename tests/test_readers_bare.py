"""DICOM files without a preamble, as old software writes them."""

from pathlib import Path

import numpy as np
import pytest
from dicom_files import PIXELS, dicom_slice, saved
from image_files import record, written
from pydicom.data import get_testdata_file
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless

from ssl_med.data.readers import read, reader_of
from ssl_med.data.readers.dicom import find_series
from ssl_med.data.readers.dicom_start import is_dicom
from ssl_med.data.record import Record, SetAside, Unreadable
from ssl_med.verbs.inspect import inspect


def without_preamble(path: Path, number: int, syntax: str = "", meta: bool = True) -> Path:
    dataset = dicom_slice(number, PIXELS[number])
    if syntax:
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
    data = saved(path, dataset).read_bytes()[132:]
    return written(path, data if meta else data[12 + int.from_bytes(data[8:12], "little") :])


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("syntax", ["", ImplicitVRLittleEndian])
@pytest.mark.parametrize("suffix", ["", ".dcm"])
def test_a_series_without_preambles(tmp_path, meta, syntax, suffix):
    paths = [without_preamble(tmp_path / f"IM{n}{suffix}", n, syntax, meta) for n in range(5)]
    assert {reader_of(path) for path in paths} == {"dicom"}
    (found,) = find_series(paths)
    image = read(Record("s", "dicom", found.files))
    np.testing.assert_array_equal(image.array[0], PIXELS[:, ::-1, ::-1] - 1024)
    assert image.spacing == (2.5, 0.8, 0.5)
    assert inspect(tmp_path)["usable"] == 1


def test_a_deflated_file_without_preamble(tmp_path):
    path = without_preamble(tmp_path / "a.dcm", 0, DeflatedExplicitVRLittleEndian)
    np.testing.assert_array_equal(read(record(path)).array[0], PIXELS[0] - 1024)


def test_bundled_files_without_preamble():
    bundled = [Path(str(get_testdata_file(n, download=False))) for n in ("ExplVR_LitEndNoMeta.dcm", "rtstruct.dcm")]
    assert [is_dicom(path.read_bytes()[:132]) for path in bundled] == [True, True]
    with pytest.raises(SetAside, match="no image: DICOM object of modality RTSTRUCT"):
        read(record(bundled[1]))


def test_packed_pixels_need_their_transfer_syntax(tmp_path):
    dataset = dicom_slice(0, PIXELS[0])
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    dataset.PixelData = b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\x18\0\0\0" + bytes(24)
    dataset["PixelData"].is_undefined_length = True
    path = saved(tmp_path / "a.dcm", dataset)
    data = path.read_bytes()[132:]
    written(path, data[12 + int.from_bytes(data[8:12], "little") :])
    with pytest.raises(Unreadable, match="packed pixels, and no transfer syntax"):
        read(record(path))


@pytest.mark.parametrize(
    "head", [b"", b"\x08\x00", bytes(132), b"\x08\x00\x05\x00\x0a\x00\x00\x01", b"\x02\x00\x10\x00  ", b"P6 3 3 255 "]
)
def test_other_files_are_not_taken_for_dicom(tmp_path, head):
    path = written(tmp_path / "IM0", head + bytes(200))
    assert reader_of(path) is None
    with pytest.raises(Unreadable, match="not a DICOM file"):
        read(Record("a", "dicom", (path,)))


@pytest.mark.parametrize("modality", ["US", "IVUS", "BDUS", "ES"])
def test_text_may_be_burned_into_any_dicom_of_ultrasound_and_endoscopy(tmp_path, modality):
    path = saved(tmp_path / "a.dcm", dicom_slice(0, PIXELS[0], Modality=modality))
    assert read(record(path)).warnings == ("burned-in text possible",)


def test_text_may_be_burned_into_ultrasound_of_any_format(tmp_path):
    from PIL import Image

    Image.fromarray(PIXELS[0].astype("uint8")).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("image,modality\na.png,Ultrasound\n")
    assert inspect(tmp_path)["warnings"] == {"burned-in text possible": 1}
    header = "ObjectType = Image\nNDims = 2\nDimSize = 3 4\nElementType = MET_SHORT\nModality = MET_MOD_US\n"
    path = written(tmp_path / "a.mha", (header + "ElementDataFile = LOCAL\n").encode() + PIXELS[0].tobytes())
    assert read(record(path)).warnings == ("burned-in text possible",)
    path.write_bytes(path.read_bytes().replace(b"MOD_US", b"MOD_CT"))
    assert read(record(path)).warnings == ()
