"""The voxels that a header keeps in a second file belong to the image: a change of them is a change of the image."""

import gzip
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from stores import build

from ssl_med.data.readers.companions import companion, with_companions
from ssl_med.data.store import Store

SIZE = 12


def voxels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 1000, (SIZE, SIZE, SIZE)).astype("<i2")


def write_mhd(folder: Path, name: str) -> Path:
    text = f"ObjectType = Image\nNDims = 3\nDimSize = {SIZE} {SIZE} {SIZE}\nElementType = MET_SHORT\n"
    (folder / f"{name}.mhd").write_text(f"{text}ElementSpacing = 1 1 1\nElementDataFile = {name}.raw\n")
    return folder / f"{name}.raw"


def write_nhdr(folder: Path, name: str) -> Path:
    grid = f"dimension: 3\nsizes: {SIZE} {SIZE} {SIZE}\nspacings: 1 1 1\n"
    text = f"NRRD0004\ntype: short\n{grid}encoding: raw\nendian: little\ndata file: {name}.raw\n\n"
    (folder / f"{name}.nhdr").write_text(text)
    return folder / f"{name}.raw"


def write_analyze(folder: Path, name: str) -> Path:
    nibabel.save(nibabel.Nifti1Pair(voxels(0), np.eye(4)), folder / f"{name}.hdr")
    return folder / f"{name}.img"


@pytest.mark.parametrize("write", [write_mhd, write_nhdr, write_analyze])
def test_new_voxels_beside_an_old_header_are_read_again(tmp_path, write):
    source, store = tmp_path / "in", tmp_path / "store"
    source.mkdir()
    files = [write(source, name) for name in ("p0", "p1")]
    for number, file in enumerate(files):
        voxels(number).tofile(file)
    assert build(source, store)["new"] == 2
    assert build(source, store)["new"] == 0
    os.utime(files[0], ns=(1, 1))
    assert build(source, store)["new"] == 0  # touched, not changed
    voxels(7).tofile(files[1])
    assert build(source, store)["new"] == 1
    opened = Store(store)
    stored = sorted((opened.read(row)[0] for row in opened.rows), key=lambda array: array.sum())
    expected = sorted((voxels(number) for number in (0, 7)), key=lambda array: array.sum())
    for array, other in zip(stored, expected, strict=True):
        assert np.array_equal(np.sort(array, None), np.sort(other, None))  # turned to RAS


def test_the_file_of_the_voxels_is_found_as_the_reader_finds_it(tmp_path):
    raw = write_mhd(tmp_path, "a")
    assert companion(tmp_path / "a.mhd") is None  # not there yet
    voxels(0).tofile(raw)
    assert with_companions([tmp_path / "a.mhd", tmp_path / "b.png"]) == [tmp_path / "a.mhd", raw, tmp_path / "b.png"]
    (tmp_path / "a.mhd").write_text("no header")
    assert companion(tmp_path / "a.mhd") is None
    image = write_analyze(tmp_path, "c")
    packed = image.with_name("c.img.gz")
    packed.write_bytes(gzip.compress(image.read_bytes()))
    image.unlink()
    assert companion(tmp_path / "c.hdr") == packed
