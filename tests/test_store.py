"""The store gives back what was put in: every voxel, every slice, and no half-written file."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stores import pictures, save_nifti, store_of, volume, volumes

from ssl_med.data.store import Store, content_hash, write_array
from ssl_med.errors import UserError


def row_named(store: Store, name: str):
    lines = (store.folder / "private" / "sources.csv").read_text().splitlines()
    ids = {Path(path).name: id_ for id_, path in (line.split(",") for line in lines)}
    return next(row for row in store.rows if row.id == ids[name])


def test_int16_volumes_come_back_exactly(tmp_path):
    store = store_of(volumes(tmp_path / "in", 4), tmp_path / "store")
    for number in range(4):
        row, (image, mask) = row_named(store, f"case_{number}.nii.gz"), volume(number)
        found = store.read(row)
        assert found.dtype == np.int16
        assert np.array_equal(found, image.transpose(2, 1, 0)[None])
        assert np.array_equal(store.read(row, "masks"), mask.transpose(2, 1, 0)[None])
        assert row.spacing == [2.0, 1.5, 1.0]
        assert row.mask_values == [0, 1, 2]
        assert row.sha256 == content_hash(found)


def test_floats_come_back_exactly(tmp_path):
    image = np.random.default_rng(0).normal(size=(9, 10, 11)).astype(np.float32)
    save_nifti(tmp_path / "in" / "a.nii.gz", image)
    store = store_of(tmp_path / "in", tmp_path / "store")
    found = store.read(store.rows[0])
    assert found.dtype == np.float32
    assert np.array_equal(found, image.transpose(2, 1, 0)[None])


def test_colour_comes_back_exactly_with_channels_first(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "in" / "a.png")
    store = store_of(tmp_path / "in", tmp_path / "store")
    found = store.read(store.rows[0])
    assert found.dtype == np.uint8
    assert np.array_equal(found, image.transpose(2, 0, 1))
    assert (store.channels, store.spatial_dims) == (3, 2)


@pytest.mark.parametrize("shape", [(1, 70, 90, 65), (3, 600, 530)])
def test_a_window_is_a_slice_of_the_whole(tmp_path, shape):
    """Larger than one chunk along each axis, so that windows cross chunks."""
    image = save_nifti(tmp_path / "in" / "a.nii.gz", volume(0)[0])
    store = store_of(image.parent, tmp_path)
    row = replace(store.rows[0], id="x")
    rng = np.random.default_rng(2)
    array = rng.integers(-1000, 1000, shape, dtype=np.int16)
    write_array(tmp_path / "images" / "x.b2nd", array)
    for _ in range(10):
        size = [int(rng.integers(1, n + 1)) for n in shape[1:]]
        start = [int(rng.integers(0, n - s + 1)) for n, s in zip(shape[1:], size, strict=True)]
        window = tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))
        assert np.array_equal(store.read(row, "images", start, size), array[(slice(None), *window)])
    assert np.array_equal(store.read(row), array)


def test_the_hash_sees_voxels_type_and_shape_only():
    array = np.arange(24, dtype=np.int16).reshape(1, 2, 3, 4)
    other = array.copy()
    other[0, 1, 2, 3] += 1
    hashes = [content_hash(a) for a in (array, other, array.astype(np.int32), array.reshape(1, 2, 4, 3))]
    assert len(set(hashes)) == 4
    assert content_hash(np.asfortranarray(array)) == hashes[0]


KILLED = """
import os, signal, sys, blosc2, numpy as np
from pathlib import Path
from ssl_med.data.store import write_array
real = blosc2.asarray
def half(*args, **kwargs):
    real(*args, **kwargs)
    with open(kwargs["urlpath"], "r+b") as file:
        file.truncate(500)
    os.kill(os.getpid(), signal.SIGKILL)
blosc2.asarray = half
write_array(Path(sys.argv[1]), np.arange(10000, dtype=np.int16).reshape(1, 10, 10, 100))
"""


def test_a_killed_write_leaves_no_file_of_the_final_name(tmp_path):
    path = tmp_path / "images" / "x.b2nd"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    assert list(path.parent.iterdir())  # the half is there, under another name


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a store"):
        Store(tmp_path)
    store = store_of(pictures(tmp_path / "in", 10), tmp_path / "store")
    assert store.class_names == ["left", "right"]
    head = tmp_path / "store" / "store.json"
    head.write_text(json.dumps(json.loads(head.read_text()) | {"version": 99}))
    with pytest.raises(UserError, match="version 99"):
        Store(tmp_path / "store")


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    source = volumes(tmp_path / "in", 2)
    first, second = (store_of(source, tmp_path / name) for name in ("a", "b"))
    assert [row.id for row in first.rows] != [row.id for row in second.rows]  # each store has a key of its own
    assert first.fingerprint() == second.fingerprint()
    image, _ = volume(0)
    image[0, 0, 0] += 1
    save_nifti(source / "images" / "case_0.nii.gz", image)
    assert store_of(source, tmp_path / "c").fingerprint() != first.fingerprint()
