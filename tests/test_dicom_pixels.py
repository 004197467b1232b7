"""Pixels of DICOM files: compressed, deflated, truncated, mislabelled, mutated."""

import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import PIXELS, at, dicom_slice, multiframe, saved, series
from image_files import record, volume, written
from pydicom.data import get_testdata_file
from pydicom.pixels import get_decoder
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLosslessSV1, RLELossless

from ssl_med.data.readers import Limits, read
from ssl_med.data.readers.dicom import find_series
from ssl_med.data.record import Record, Unreadable


def bundled(name: str) -> Path:
    return Path(get_testdata_file(name, download=False))


# --- compressed


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("image_dfl.dcm", None),
    ],
)
def test_lossless_syntaxes_give_the_plain_pixels(name, plain):
    expected = pydicom.dcmread(bundled(plain or name)).pixel_array
    np.testing.assert_array_equal(np.moveaxis(read(record(bundled(name))).array, 0, -1).squeeze(), expected)


@pytest.mark.parametrize(
    ("name", "plain", "module", "off"),
    [
        ("MR_small_jp2klossless.dcm", "MR_small.dcm", "openjpeg", 0),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm", "jpeg_ls", 0),
        ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_dcmtk_+eb+cr.dcm", "gdcm", 2),  # lossless, decoded apart, of a lossy one
    ],
)
def test_syntaxes_of_the_extra_give_the_plain_pixels(name, plain, module, off):
    pytest.importorskip(module, reason="needs the extra ssl_med[dicom]")
    expected = pydicom.dcmread(bundled(plain)).pixel_array.astype(int)
    assert np.abs(np.moveaxis(read(record(bundled(name))).array, 0, -1).squeeze() - expected).max() <= off


def test_jpeg_is_read_without_the_extra():
    image = read(record(bundled("SC_rgb_jpeg_dcmtk.dcm")))
    expected = pydicom.dcmread(bundled("SC_rgb_dcmtk_+eb+cr.dcm")).pixel_array
    assert np.abs(np.moveaxis(image.array, 0, -1).astype(int) - expected).mean() < 3  # it is lossy


def test_compressed_series_is_a_volume(tmp_path):
    slices = [dicom_slice(n, PIXELS[n]) for n in range(5)]
    for dataset in slices:
        dataset.compress(RLELossless, generate_instance_uid=False)
    image = read(series(tmp_path, slices))
    np.testing.assert_array_equal(image.array[0], PIXELS[:, ::-1, ::-1] - 1024)


def test_a_missing_decoder_names_the_extra():
    """In a process of its own, in which the decoders of this syntax are not there."""
    code = f"""
import sys
from pathlib import Path
from pydicom.pixels import get_decoder
decoder = get_decoder({str(JPEGLosslessSV1)!r})
for plugin in (*decoder.available_plugins, *(line.split(" ")[0] for line in decoder.missing_dependencies)):
    decoder.remove_plugin(plugin)
from ssl_med.data.readers import read
from ssl_med.data.record import Record, Unreadable
try:
    read(Record("a", "dicom", (Path({str(bundled("SC_rgb_jpeg_gdcm.dcm"))!r}),)))
except Unreadable as reason:
    print(reason)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("pixels in JPEG Lossless")
    assert done.stdout.strip().endswith("need a decoder: pip install 'ssl_med[dicom]'")


def test_a_syntax_without_any_decoder_is_refused(tmp_path):
    path = saved(tmp_path / "a.dcm", dicom_slice(0, PIXELS[0]))
    data = path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4\0")
    with pytest.raises(Unreadable, match="transfer syntax unknown"):
        read(record(written(path, data)))


def test_a_decoder_that_crashes_is_a_refused_image(tmp_path):
    """JPEG lossless is decoded by GDCM apart, which damaged streams may crash: never this process."""
    pytest.importorskip("gdcm", reason="needs the extra ssl_med[dicom]")
    data = bundled("SC_rgb_jpeg_gdcm.dcm").read_bytes()
    start = data.index(b"\xff\xd8\xff")
    broken = data[: start + 2] + b"\xff\xc3\x00\x0b\xd9" + data[start + 7 :]
    with pytest.raises(Unreadable, match="pixels"):
        read(record(written(tmp_path / "a.dcm", broken)))


CONFINED = """
import sys
import numpy as np
from ssl_med.data.readers import dicom_apart
def busy(*_):
    while sys.argv[1] == "time":
        pass
    yield np.empty(dicom_apart._BYTES, np.uint8)
dicom_apart.decoded, dicom_apart._SECONDS = busy, 5
dicom_apart.main()
"""


@pytest.mark.parametrize(
    ("what", "code", "told"), [("time", -signal.SIGXCPU, b""), ("memory", 0, b"rpixels need more")]
)
def test_a_decoder_apart_ends_when_it_takes_too_long_or_too_much(tmp_path, what, code, told):
    path = saved(tmp_path / "a.dcm", dicom_slice(0, PIXELS[0]))
    ended = subprocess.run(
        [sys.executable, "-c", CONFINED, what], input=bytes(path), capture_output=True, timeout=60, check=False
    )
    assert ended.returncode == code, ended.stderr
    assert ended.stdout.startswith(told)


# --- deflated


def deflated(folder: Path, pixels: np.ndarray) -> tuple[Path, int]:
    """A deflated file, and where its packed data set begins."""
    dataset = dicom_slice(0, pixels)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = saved(folder / "a.dcm", dataset)
    return path, 144 + pydicom.dcmread(path).file_meta.FileMetaInformationGroupLength


def test_deflated_is_unpacked(tmp_path):
    path, _ = deflated(tmp_path, PIXELS[0])
    np.testing.assert_array_equal(read(record(path)).array[0], PIXELS[0] - 1024)


def test_deflated_bomb_is_not_unpacked(tmp_path):
    """128 MiB of zeros behind a small picture stay packed."""
    path, start = deflated(tmp_path, PIXELS[0])
    data = path.read_bytes()
    plain = zlib.decompress(data[start:], -15)
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    packed = packer.compress(plain) + packer.compress(bytes(1 << 27)) + packer.flush()
    written(path, data[:start] + packed)
    code = f"""
import resource
from pathlib import Path
from ssl_med.data.readers import read
from ssl_med.data.readers import dicom
from ssl_med.data.record import Record, Unreadable
record = Record("a", "dicom", (Path({str(path)!r}),))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read(record)
except Unreadable:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before >> 10)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 90  # MiB: a header may have 16, and is copied


# --- truncated, too long, mislabelled


def test_a_header_larger_than_its_file_is_refused_before_anything_is_allocated(tmp_path):
    path = saved(tmp_path / "a.dcm", dicom_slice(0, PIXELS[0], Rows=30000, Columns=30000))
    with pytest.raises(Unreadable, match="pixels cut short: header announces 1800000000 bytes, the file has"):
        read(record(path))


def test_a_packed_bomb_is_refused_before_anything_is_allocated(tmp_path):
    dataset = dicom_slice(0, PIXELS[0])
    dataset.compress(RLELossless)
    dataset.Rows = dataset.Columns = 30000
    with pytest.raises(Unreadable, match="1800000000 bytes of pixels in a file of"):
        read(record(saved(tmp_path / "a.dcm", dataset)))


def test_limits_hold(tmp_path):
    path = saved(tmp_path / "a.dcm", multiframe([at(3.0 * n) for n in range(5)]))
    with pytest.raises(Unreadable, match="header claims 60 voxels, the limit is 59"):
        read(record(path), Limits(voxels=59))


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_RLE.dcm", "image_dfl.dcm", "SC_rgb_jpeg_dcmtk.dcm"])
def test_a_truncated_file_is_refused_or_whole(tmp_path, name):
    data = bundled(name).read_bytes()
    expected = read(record(bundled(name))).array
    path, refused = tmp_path / "a.dcm", 0
    for cut in np.random.default_rng(0).integers(0, len(data), 25).tolist():
        try:
            np.testing.assert_array_equal(read(record(written(path, data[:cut] + b""))).array, expected)
        except Unreadable:
            refused += 1
    assert refused > 15


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Columns": 2}, "8 bytes more pixels than the header announces"),
        ({"Rows": 3}, "6 bytes more pixels than the header announces"),
        ({"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, "12 bytes more pixels"),
        ({"PhotometricInterpretation": "RGB"}, "photometric interpretation RGB with 1 samples per pixel"),
        ({"SamplesPerPixel": 3}, "photometric interpretation MONOCHROME2 with 3 samples per pixel"),
        ({"PhotometricInterpretation": "DOE JOHN"}, "unknown photometric interpretation"),
        ({"RescaleSlope": "inf"}, "break the standard|not finite"),
        ({"Rows": 0}, "no image"),
    ],
)
def test_headers_that_contradict_their_pixels_are_refused(tmp_path, tags, reason):
    path = saved(tmp_path / "a.dcm", dicom_slice(0, PIXELS[0]))
    dataset = pydicom.dcmread(path)
    with pydicom.config.disable_value_validation():
        for tag, value in tags.items():
            setattr(dataset, tag, value)
    dataset.save_as(path)
    with pytest.raises(Unreadable, match=reason) as caught:
        read(record(path))
    assert "DOE" not in str(caught.value)


def test_zeros_behind_the_pixels_are_padding(tmp_path):
    dataset = dicom_slice(0, PIXELS[0])
    dataset.PixelData += bytes(10)
    np.testing.assert_array_equal(read(record(saved(tmp_path / "a.dcm", dataset))).array[0], PIXELS[0] - 1024)


def test_more_values_than_sixteen_bits_stay_whole(tmp_path):
    pixels = volume((4, 3), np.int32) * 5000
    image = read(series(tmp_path, [dicom_slice(0, pixels, BitsStored=16, HighBit=15)]))
    assert image.array.dtype == np.int32
    np.testing.assert_array_equal(image.array[0], pixels.astype(int) - 1024)


# --- mutations


def sources(folder: Path) -> dict[str, bytes]:
    groups = [at(3.0 * n, MREchoSequence={"EffectiveEchoTime": echo}) for echo in (10.0, 80.0) for n in range(5)]
    enhanced = multiframe(groups, np.concatenate([PIXELS, PIXELS + 500]), Modality="MR", PatientID="DOE^JOHN")
    plain = dicom_slice(0, PIXELS[0], PatientID="DOE^JOHN", PatientName="DOE^JOHN")
    names = ("MR_small_RLE.dcm", "image_dfl.dcm", "SC_rgb_jpeg_dcmtk.dcm", "examples_palette.dcm")
    return {
        "plain": saved(folder / "plain.dcm", plain).read_bytes(),
        "enhanced": saved(folder / "enhanced.dcm", enhanced).read_bytes(),
        **{name: bundled(name).read_bytes() for name in names},
    }


def test_mutated_files_are_read_or_refused_and_never_crash(tmp_path, capfd):
    """25 mutations of each of six files: only ``Unreadable``, no identifier in it, no value that is not finite."""
    rng, path, said = np.random.default_rng(1), tmp_path / "m.dcm", []
    for name, data in sources(tmp_path).items():
        for _ in range(25):
            block = np.frombuffer(data, np.uint8).copy()
            where = rng.integers(0, min(len(block), 2500), rng.integers(1, 5))
            block[where] = rng.integers(0, 256, len(where))
            written(path, block.tobytes())
            for found in find_series([path]):
                try:
                    image = read(Record(name, "dicom", found.files, item=found.item))
                    assert np.isfinite(image.array).all()
                except Unreadable as reason:
                    said.append(str(reason))
    printed = capfd.readouterr()
    told = "\n".join([*said, printed.out, printed.err])
    assert len(said) > 30
    assert "DOE" not in told
    assert str(tmp_path) not in told


def test_fuzzed_decoders_are_the_ones_in_use():
    """Plugins outside this list have not been fuzzed, so they work apart."""
    from ssl_med.data.readers.dicom_frames import plugin_for

    header = pydicom.dcmread(bundled("SC_rgb_jpeg_gdcm.dcm"), stop_before_pixels=True)
    if "gdcm" in get_decoder(JPEGLosslessSV1).available_plugins:
        assert plugin_for(header) == ("gdcm", True)
    assert plugin_for(pydicom.dcmread(bundled("MR_small_RLE.dcm"), stop_before_pixels=True)) == ("pydicom", False)
    assert plugin_for(pydicom.dcmread(bundled("CT_small.dcm"), stop_before_pixels=True)) == ("", False)
