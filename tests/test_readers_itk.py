"""NRRD and MetaImage agree with SimpleITK in every voxel and millimetre, and refuse what SimpleITK lets pass."""

import bz2
import gzip
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from image_files import AXIS_CODES, SHAPE, assert_same_world, named, oblique, record, turned_affine, volume, written

from ssl_med.data.readers import Limits, read
from ssl_med.data.record import Unreadable

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def saved(path: Path, array: np.ndarray, affine: np.ndarray, packed: bool = False) -> Path:
    """Written by SimpleITK from (x, y, z) or (x, y, z, c) and a RAS affine."""
    stored = array.transpose(2, 1, 0) if array.ndim == 3 else array.transpose(2, 1, 0, 3)
    image = SimpleITK.GetImageFromArray(stored, isVector=array.ndim == 4)
    steps = (LPS @ affine)[:3, :3]
    spacing = np.linalg.norm(steps, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((steps / spacing).ravel().tolist())
    image.SetOrigin((LPS @ affine)[:3, 3].tolist())
    SimpleITK.WriteImage(image, path, packed)
    return path


def world_of_itk(path: Path) -> dict[float, tuple[float, ...]]:
    """RAS millimetre of each value, as SimpleITK says."""
    image = SimpleITK.ReadImage(path)
    values = SimpleITK.GetArrayFromImage(image)
    return {
        value: tuple(np.array([-1, -1, 1]) * image.TransformIndexToPhysicalPoint((x, y, z)))
        for (z, y, x), value in np.ndenumerate(values)
    }


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
@pytest.mark.parametrize("start", [np.diag([0.7, 0.9, 2.5, 1.0]), oblique()], ids=["straight", "oblique"])
@pytest.mark.parametrize("code", AXIS_CODES, ids=named)
def test_every_orientation_keeps_the_world(tmp_path, code, start, suffix):
    affine = turned_affine(code, start)
    path = saved(tmp_path / f"a.{suffix}", volume(), affine, packed=bool(code[0, 1] > 0))
    image = read(record(path))
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_allclose(image.spacing, [2.5, 0.9, 0.7], rtol=1e-5)
    assert_same_world(path, image, volume(), affine)
    expected = world_of_itk(path)
    indices = np.indices(image.array.shape[1:]).reshape(3, -1)[::-1]
    world = (image.affine @ np.vstack([indices, np.ones(indices.shape[1])]))[:3].T
    np.testing.assert_allclose(world, [expected[value] for value in image.array.reshape(-1)], atol=1e-4)


@pytest.mark.parametrize("suffix", ["nhdr", "mhd"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_voxels_may_lie_in_a_second_file(tmp_path, suffix, packed):
    image = read(record(saved(tmp_path / f"a.{suffix}", volume(), oblique(), packed)))
    assert_same_world(tmp_path, image, volume(), oblique())
    (second,) = (file for file in tmp_path.iterdir() if file.suffix != f".{suffix}")
    written(second, second.read_bytes()[:-3])
    with pytest.raises(Unreadable, match="cut short"):
        read(record(tmp_path / f"a.{suffix}"))
    second.unlink()
    with pytest.raises(Unreadable, match="file of the voxels that the header names is missing"):
        read(record(tmp_path / f"a.{suffix}"))


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_every_type(tmp_path, suffix, dtype):
    image = read(record(saved(tmp_path / f"a.{suffix}", volume(dtype=dtype), np.eye(4))))
    expected = np.float32 if dtype == "f8" else dtype
    assert image.array.dtype == expected
    np.testing.assert_array_equal(image.array[0], volume(dtype=dtype).transpose())


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_channels_and_single_slices(tmp_path, suffix):
    colour = volume((*SHAPE, 3))
    image = read(record(saved(tmp_path / f"a.{suffix}", colour, np.eye(4))))
    np.testing.assert_array_equal(image.array, colour.transpose(3, 2, 1, 0))
    flat = volume((4, 5, 1))
    image = read(record(saved(tmp_path / f"b.{suffix}", flat, np.diag([2.0, 3, 5, 1]))))
    np.testing.assert_array_equal(image.array[0], flat[..., 0].T)
    assert image.spacing == (3.0, 2.0)
    plane = SimpleITK.GetImageFromArray(flat[..., 0].T.copy())
    plane.SetSpacing((0.5, 0.25))
    SimpleITK.WriteImage(plane, tmp_path / f"c.{suffix}")
    image = read(record(tmp_path / f"c.{suffix}"))
    np.testing.assert_array_equal(image.array[0], flat[..., 0].T)
    assert image.spacing == (0.25, 0.5)


def nrrd(body: bytes, **changes: str | None) -> bytes:
    fields: dict[str, str | None] = {
        "type": "int16",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": "4 5 6",
        "space directions": "(1,0,0) (0,1,0) (0,0,2)",
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": "(1,2,3)",
    }
    fields |= {key.replace("_", " "): value for key, value in changes.items()}
    lines = [f"{key}: {value}" for key, value in fields.items() if value is not None]
    return ("NRRD0005\n# a comment\n" + "\n".join(lines) + "\nkey:=PatientName=X\n\n").encode() + body


RAW = volume().tobytes("F")


@pytest.mark.parametrize(
    ("space", "first"),
    [
        ("LPS", (-1, -2, 3)),
        ("left-anterior-superior", (-1, 2, 3)),
        ("RAS", (1, 2, 3)),
        ("right-anterior-superior", (1, 2, 3)),
    ],
)
def test_spaces_of_nrrd(tmp_path, space, first):
    image = read(record(written(tmp_path / "a.nrrd", nrrd(RAW, space=space))))
    z, y, x = np.argwhere(image.array[0] == volume()[0, 0, 0])[0]
    np.testing.assert_allclose((image.affine @ [x, y, z, 1])[:3], first)
    assert image.warnings == ()


def test_nrrd_variants_hold_the_same_volume(tmp_path):
    expected = read(record(written(tmp_path / "a.nrrd", nrrd(RAW))))
    swapped = volume().astype(">i2").tobytes("F")
    last = {"dimension": "4", "sizes": "4 5 6 1", "space_directions": "(1,0,0) (0,1,0) (0,0,2) none"}
    variants = {
        "big": nrrd(swapped, endian="big"),
        "gzip": nrrd(gzip.compress(RAW), encoding="gz"),
        "bzip2": nrrd(bz2.compress(RAW), encoding="bzip2"),
        "skipped": nrrd(b"one\ntwo\nxyz" + RAW, line_skip="2", byte_skip="3"),
        "end": nrrd(b"anything" + RAW, byte_skip="-1"),
        "skipped gzip": nrrd(gzip.compress(b"xyz" + RAW), encoding="gzip", byte_skip="3"),
        "list last": nrrd(RAW, kinds="domain domain domain list", **last),
        "micron": nrrd(
            RAW,
            space_units='"um" "um" "um"',
            space_origin="(1000,2000,3000)",
            space_directions="(1000,0,0) (0,1000,0) (0,0,2000)",
        ),
    }
    for name, data in variants.items():
        image = read(record(written(tmp_path / "b.nrrd", data)))
        np.testing.assert_array_equal(image.array, expected.array, err_msg=name)
        np.testing.assert_allclose(image.affine, expected.affine, err_msg=name)
    assert image.warnings == ("lengths given in units of 0.001 mm, turned into mm",)


def test_nrrd_without_orientation_is_a_guess_like_itk(tmp_path):
    data = nrrd(RAW, space=None, space_directions=None, space_origin=None, spacings="0.5 0.6 2", kinds=None)
    path = written(tmp_path / "a.nrrd", data)
    image = read(record(path))
    np.testing.assert_allclose(image.spacing, (2.0, 0.6, 0.5))
    assert "no orientation in the header: left and right are a guess" in image.warnings
    itk = world_of_itk(path)
    z, y, x = np.argwhere(image.array[0] == volume()[3, 2, 1])[0]
    np.testing.assert_allclose((image.affine @ [x, y, z, 1])[:3], itk[volume()[3, 2, 1]], atol=1e-6)


def test_alpha_is_dropped(tmp_path):
    colour = volume((4, *SHAPE))
    data = nrrd(
        colour.tobytes("F"),
        dimension="4",
        sizes="4 4 5 6",
        kinds="RGBA-color domain domain domain",
        space_directions="none (1,0,0) (0,1,0) (0,0,2)",
        space="RAS",
    )
    image = read(record(written(tmp_path / "a.nrrd", data)))
    np.testing.assert_array_equal(image.array, colour[:3].transpose(0, 3, 2, 1))


BROKEN_NRRD = {
    "cut": (nrrd(RAW[:-5]), "data cut short: 235 of 240"),
    "long": (nrrd(RAW + b"x"), "more data than the 240 bytes"),
    "no end": (nrrd(b"")[:-2], "header cut short"),
    "magic": (nrrd(RAW).replace(b"NRRD", b"NERD"), "not an NRRD file"),
    "gzip cut": (nrrd(gzip.compress(RAW)[:-12], encoding="gzip"), "gzip stream is cut short"),
    "gzip bomb": (nrrd(gzip.compress(RAW + bytes(10**7)), encoding="gzip"), "more data than the 240 bytes"),
    "bzip2 cut": (nrrd(bz2.compress(RAW)[:-5], encoding="bzip2"), "bzip2 stream is cut short"),
    "huge": (nrrd(RAW, sizes="30000 30000 30000"), "header claims 27000000000000 voxels"),
    "zero": (nrrd(RAW, sizes="4 0 6"), "axis of size zero"),
    "text": (nrrd(RAW, encoding="ascii"), "encoding is not raw, gzip or bzip2"),
    "block": (nrrd(RAW, type="block"), "unknown type"),
    "nan": (nrrd(RAW, space_origin="(nan,0,0)"), "space origin is not finite"),
    "flat": (nrrd(RAW, space_directions="(1,0,0) (1,0,0) (0,0,2)"), "determinant zero"),
    "time": (nrrd(RAW, kinds="domain domain time"), "time series"),
    "complex": (nrrd(RAW, kinds="complex domain domain"), "holds no intensities"),
    "disagree": (nrrd(RAW, kinds="vector domain domain"), "disagree"),
    "endless": (b"NRRD0004\n" + b"x" * 100_000, "line of the header has no end"),
    "many lines": (b"NRRD0004\n" + b"#\n" * 10_000, "header of more than 4096 lines"),
    "no endian": (nrrd(RAW, endian=None), "neither little nor big"),
    "elsewhere": (nrrd(b"", data_file="../other.raw"), "outside its own folder"),
    "absolute": (nrrd(b"", data_file="/etc/passwd"), "outside its own folder"),
    "drive": (nrrd(b"", data_file="C:\\other.raw"), "outside its own folder"),
    "list": (nrrd(b"", data_file="LIST"), "several files"),
    "twice": (nrrd(RAW).replace(b"encoding: raw", b"encoding: raw\nencoding: gzip"), "given twice"),
}


@pytest.mark.parametrize("case", BROKEN_NRRD)
def test_broken_nrrd_says_why(tmp_path, case):
    data, reason = BROKEN_NRRD[case]
    with pytest.raises(Unreadable, match=reason) as caught:
        read(record(written(tmp_path / "a.nrrd", data)))
    assert str(tmp_path) not in str(caught.value)


def meta(body: bytes, **changes: str | None) -> bytes:
    fields: dict[str, str | None] = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "1 2 3",
        "ElementSpacing": "0.5 0.6 2",
        "DimSize": "4 5 6",
        "ElementType": "MET_SHORT",
    }
    fields |= changes
    file = fields.pop("ElementDataFile", "LOCAL")
    lines = [f"{key} = {value}" for key, value in fields.items() if value is not None]
    return "\n".join([*lines, f"ElementDataFile = {file}\n"]).encode() + body


def test_metaimage_variants_hold_the_same_volume(tmp_path):
    expected = read(record(written(tmp_path / "a.mha", meta(RAW, Modality="MET_MOD_CT"))))
    assert expected.modality == "CT"
    swapped = volume().astype(">i2").tobytes("F")
    written(tmp_path / "b.raw", b"12345" + RAW)
    variants = {
        "big": meta(swapped, BinaryDataByteOrderMSB="True"),
        "big by its other name": meta(swapped, BinaryDataByteOrderMSB=None, ElementByteOrderMSB="True"),
        "zlib": meta(zlib.compress(RAW), CompressedData="True"),
        "gzip": meta(gzip.compress(RAW), CompressedData="True"),
        "other names": meta(RAW, Offset=None, Position="1 2 3", TransformMatrix=None, Orientation="1 0 0 0 1 0 0 0 1"),
        "skipped": meta(b"", HeaderSize="5", ElementDataFile="b.raw"),
        "end": meta(b"", HeaderSize="-1", ElementDataFile="b.raw"),
        "four axes": meta(
            RAW,
            NDims="4",
            DimSize="4 5 6 1",
            ElementSpacing="0.5 0.6 2 1",
            Offset="1 2 3 0",
            TransformMatrix="1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1",
        ),
    }
    for name, data in variants.items():
        image = read(record(written(tmp_path / "a.mha", data)))
        np.testing.assert_array_equal(image.array, expected.array, err_msg=name)
        np.testing.assert_allclose(image.affine, expected.affine, err_msg=name)


BROKEN_META = {
    "cut": (meta(RAW[:-5]), "data cut short: 235 of 240"),
    "long": (meta(RAW + b"x"), "more data than the 240 bytes"),
    "zlib cut": (meta(zlib.compress(RAW)[:-3], CompressedData="True"), "zlib stream is cut short"),
    "zlib long": (meta(zlib.compress(RAW) + b"x", CompressedData="True"), "bytes after the end of the zlib stream"),
    "zlib checksum": (meta(zlib.compress(RAW)[:-1] + b"\0", CompressedData="True"), "wrong checksum"),
    "bomb": (meta(zlib.compress(RAW + bytes(10**7)), CompressedData="True"), "more data than the 240 bytes"),
    "huge": (meta(RAW, DimSize="30000 30000 30000"), "header claims 27000000000000 voxels"),
    "channels": (meta(RAW, ElementNumberOfChannels="3"), "data cut short"),
    "long number": (meta(RAW, DimSize=f"4 5 {'9' * 5000}"), "holds no whole numbers"),
    "text": (meta(RAW, BinaryData="False"), "voxels as text"),
    "type": (meta(RAW, ElementType="MET_STRING"), "unknown ElementType"),
    "nan": (meta(RAW, ElementSpacing="1 nan 1"), "ElementSpacing is not finite"),
    "spacing": (meta(RAW, ElementSpacing="1 0 1"), "is not positive"),
    "flat": (meta(RAW, TransformMatrix="1 0 0 1 0 0 0 0 1"), "determinant zero"),
    "time": (
        meta(RAW, NDims="4", DimSize="4 5 3 2", ElementSpacing=None, Offset=None, TransformMatrix=None),
        "time series",
    ),
    "slope": (meta(RAW, ElementToIntensityFunctionSlope="2"), "some programs apply it"),
    "elsewhere": (meta(b"", ElementDataFile="../a.raw"), "outside its own folder"),
    "list": (meta(b"", ElementDataFile="LIST"), "several files"),
    "page": (b"<html>\n" * 50, "not a MetaImage file"),
    "object": (meta(RAW, ObjectType="Tube"), "no image"),
}


@pytest.mark.parametrize("case", BROKEN_META)
def test_broken_metaimage_says_why(tmp_path, case):
    data, reason = BROKEN_META[case]
    with pytest.raises(Unreadable, match=reason) as caught:
        read(record(written(tmp_path / "a.mha", data)))
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_limits_come_before_allocation(tmp_path, suffix):
    path = saved(tmp_path / f"a.{suffix}", volume(), np.eye(4))
    with pytest.raises(Unreadable, match="120 voxels, the limit is 100"):
        read(record(path), Limits(voxels=100))
    with pytest.raises(Unreadable, match="240 bytes, the limit is 200"):
        read(record(path), Limits(size=200))
