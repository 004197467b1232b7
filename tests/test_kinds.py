"""Folders of several kinds of images: most decide, grey pictures saved as RGB go with either, --rank settles it."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stores import build, build_store, find_images, picture, save_nifti, volume

from ssl_med.cli import build_parser
from ssl_med.data.store import Store
from ssl_med.errors import UserError
from ssl_med.verbs.predict import _admitted


def grey(folder: Path, number: int) -> None:
    Image.fromarray(picture(number, 0)).save(folder / f"{number:02d}_grey.png")


def equal(folder: Path, number: int) -> None:
    Image.fromarray(np.repeat(picture(number, 0)[..., None], 3, 2)).save(folder / f"{number:02d}_equal.png")


def coloured(folder: Path, number: int) -> None:
    planes = [picture(number, 0), picture(number + 1, 1), picture(number + 2, 0)]
    Image.fromarray(np.stack(planes, 2)).save(folder / f"{number:02d}_coloured.png")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
@pytest.mark.parametrize(
    ("greys", "equals", "colours", "channels", "kept"),
    [(6, 3, 0, 1, 9), (2, 6, 0, 1, 8), (1, 2, 3, 3, 5), (0, 4, 0, 3, 4), (3, 2, 1, 1, 5)],
)
def test_equal_channels_go_with_what_most_images_are(tmp_path, order, greys, equals, colours, channels, kept):
    source, numbers = tmp_path / "in", itertools.count()
    source.mkdir()
    parts = [(grey, greys), (equal, equals), (coloured, colours)]
    for make, count in [parts[place] for place in order]:
        for _ in range(count):
            make(source, next(numbers))
    counts = build(source, tmp_path / "store")
    store = Store(tmp_path / "store")
    assert (store.channels, len(store)) == (channels, kept)
    assert counts["set_aside"] == greys + equals + colours - kept
    assert counts["new"] == greys + equals + colours
    for row in store.rows:
        assert store.read(row).shape == (channels, 40, 40)
    if channels == 1:  # one of the equal channels, bit by bit
        wanted = {Path(p).name: picture(int(p.name[:2]), 0) for p in source.glob("*_[ge]*.png")}
        assert sorted(store.read(row).tobytes() for row in store.rows) == sorted(a.tobytes() for a in wanted.values())
    assert build(source, tmp_path / "store")["new"] == 0


def test_equal_channels_follow_when_the_folder_becomes_another(tmp_path):
    source, out = tmp_path / "in", tmp_path / "store"
    source.mkdir()
    grey(source, 0), grey(source, 1), equal(source, 2)
    build(source, out)
    assert (Store(out).channels, len(Store(out))) == (1, 3)
    for number in range(3, 7):
        coloured(source, number)
    assert build(source, out)["set_aside"] == 2
    store = Store(out)
    assert (store.channels, len(store)) == (3, 5)
    assert all(store.read(row).shape[0] == 3 for row in store.rows)


def test_a_person_says_which_rank_is_kept(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for number in range(3):
        grey(source, number)
    save_nifti(source / "a.nii.gz", volume(0)[0])
    records, out = list(find_images(source)), tmp_path / "store"
    for rank, images in ((None, 3), (3, 1), (2, 3)):
        assert build_store(records, out, [], say=str, rank=rank)["images"] == images
        assert Store(out).spatial_dims == (rank or 2)
    (source / "a.nii.gz").unlink()
    with pytest.raises(UserError, match="rank 3: no image here has 3 axes; leave --rank out"):
        build_store(list(find_images(source)), out, [], say=str, rank=3)
    assert build_parser().parse_args(["prepare", "x", "--out", "y", "--rank", "3"]).rank == 3


def test_a_model_of_grey_images_takes_equal_channels(tmp_path):
    equal(tmp_path, 0)
    facts = {"spatial_dims": 2, "channels": 1, "intensity": "unit"}
    image = _admitted(next(iter(find_images(tmp_path))), {"input": facts, "data": {"modalities": {"": 1}}})
    assert image.array.shape == (1, 40, 40)
