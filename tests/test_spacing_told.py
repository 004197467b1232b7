"""Pixel sizes that no file tells: said as unknown, or taken from a table; headers of every format without voxels."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from image_files import oblique, record, volume
from PIL import Image

from ssl_med.data.index import find_images
from ssl_med.data.peek import peek
from ssl_med.data.readers import read
from ssl_med.data.record import Unreadable
from ssl_med.data.spool import Spool
from ssl_med.errors import UserError
from ssl_med.verbs.inspect import inspect
from ssl_med.verbs.prepare import prepare

UNKNOWN = "no pixel size in the files of {} images: shown as 1 mm; a table may give it in a column spacing"


def files(folder: Path) -> None:
    """A picture and an array, whose files know no spacing, and a NIfTI that does."""
    Image.fromarray(volume((16, 17)).astype("uint8")).save(folder / "a.png")
    np.save(folder / "b.npy", volume((7, 8, 9)))
    nibabel.save(nibabel.Nifti1Image(volume((7, 8, 9)), np.diag([2.0, 2, 2, 1])), folder / "c.nii")


@pytest.mark.parametrize("sample", [None, 1])
def test_an_unknown_pixel_size_is_told(tmp_path, capsys, sample):
    files(tmp_path)
    assert inspect(tmp_path, sample=sample)["unsized"] == 2
    assert UNKNOWN.format(2) in capsys.readouterr().out
    (tmp_path / "t.csv").write_text("image,spacing\na.png,0.5\nb.npy,\nc.nii,\n")
    facts = inspect(tmp_path, sample=sample)
    assert (facts["unsized"], facts["spacings"]["2D"]["max"]) == (1, [0.5, 0.5])


def test_a_table_gives_the_spacing(tmp_path):
    files(tmp_path)
    (tmp_path / "t.csv").write_text("image;spacing\na.png;0.4x0.5\nb.npy;[0.5, 0.6, 2]\nc.nii;9\n")
    records = list(find_images(tmp_path))
    with Spool.of(records, tmp_path) as spool:
        assert list(spool) == records
        images = [read(found) for found in spool]
    assert [image.spacing for image in images] == [(0.5, 0.4), (2.0, 0.6, 0.5), (2.0, 2.0, 2.0)]  # the file goes first
    assert images[0].warnings == ("the table gives a spacing of 0.4 x 0.5 mm",)
    for found, image in zip(records, images, strict=True):
        header = peek(found)
        assert header
        assert (header.spacing, header.sized) == (pytest.approx(image.spacing), True)


def test_another_spacing_is_another_image(tmp_path):
    (tmp_path / "in").mkdir()
    files(tmp_path / "in")
    table = tmp_path / "in" / "t.csv"
    new = []
    for text in ("image\na.png\n", "image,spacing\na.png,0.5\n", "image,spacing\na.png,0.5\n"):
        table.write_text(text)
        new.append(prepare(tmp_path / "in", tmp_path / "store")["new"])
    assert new == [1, 1, 0]


def test_one_number_is_no_time_between_frames_and_wrong_counts_are_refused(tmp_path):
    files(tmp_path)
    two = replace(record(tmp_path / "b.npy"), spacing=(0.5, 0.6))
    assert read(two).spacing == (1.0, 0.6, 0.5)
    with pytest.raises(Unreadable, match="spacing of 3 numbers in the table, the image has 2 axes"):
        read(replace(record(tmp_path / "a.png"), spacing=(1, 2, 3)))
    for cell in ("half", "-2", "1 1 1 1", "0", "inf"):
        (tmp_path / "t.csv").write_text(f"image,spacing\na.png,{cell}\n")
        with pytest.raises(UserError, match=r"t\.csv, line 2: .* is no spacing: expected mm per voxel"):
            list(find_images(tmp_path))
        assert next(iter(find_images(tmp_path, columns={"spacing": ""}))).spacing == ()


# --- headers


@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nrrd", "a.nhdr", "a.hdr", "a.npy"])
@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5, 1), (4, 5)])
def test_a_header_says_what_reading_says(tmp_path, name, shape):
    path, array = tmp_path / name, volume(shape)
    if name == "a.npy":
        np.save(path, array)
    elif name == "a.hdr":
        nibabel.save(nibabel.Nifti1Pair(array, oblique()), path)
    else:
        image = SimpleITK.GetImageFromArray(array.T)
        image.SetSpacing([0.5, 0.75, 2.0][: len(shape)])
        if len(shape) == 3:
            image.SetDirection([0, -1, 0, 1, 0, 0, 0, 0, -1])
        SimpleITK.WriteImage(image, path)
    header, image = peek(record(path)), read(record(path))
    assert header
    assert header.shape == image.array.shape[1:]
    assert header.spacing == pytest.approx(image.spacing)
    assert header.sized == (image.affine is not None)


@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr", "a.hdr"])
def test_a_header_without_its_voxels_is_broken(tmp_path, name):
    array = volume()
    if name == "a.hdr":
        nibabel.save(nibabel.Nifti1Pair(array, np.eye(4)), tmp_path / name)
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), tmp_path / name)
    (voxels,) = (path for path in tmp_path.iterdir() if path.name != name)
    voxels.unlink()
    facts = inspect(tmp_path, sample=1)
    assert [entry["name"] for entry in facts["broken"]] == [name]
    assert "missing" in facts["broken"][0]["reason"]


def test_sampled_volumes_are_counted_once(tmp_path):
    for number in range(4):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(volume()), tmp_path / f"{number}.mha")
    facts = inspect(tmp_path, sample=2)
    assert (facts["voxels_of"], facts["ranks"]) == (2, {"3D": 4})
