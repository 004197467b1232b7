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

from ssl_med.data import at_hand
from ssl_med.data.store import Damaged, Store, content_hash, write_array
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
    row = replace(store.rows[0], id="x", shape=list(shape), seal="")
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
import os, signal, sys, numpy as np
from pathlib import Path
from ssl_med.data.store import write_array
real = Path.write_bytes
def half(path, content):
    real(path, content[:500])
    os.kill(os.getpid(), signal.SIGKILL)
Path.write_bytes = half
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


@pytest.mark.parametrize(
    ("values", "dtype", "stored"),
    [
        ([0, 3, 255], np.float32, np.uint8),
        ([-1000, 0, 3000], np.float32, np.int16),
        ([-1000, 0, 3000], np.int32, np.int16),
        ([0, 70_000, 1], np.int32, np.int32),
        ([0, 0.5, 1], np.float32, np.float32),
        ([-0.0, 5, 6], np.float32, np.float32),
        ([0, 1e12, 5], np.float32, np.float32),
        ([0, 200, 5], np.uint8, np.uint8),
    ],
)
def test_whole_numbers_are_stored_in_the_smallest_integers_and_come_back_as_they_were(tmp_path, values, dtype, stored):
    image = np.random.default_rng(0).choice(np.array(values, dtype), (9, 10, 11))
    save_nifti(tmp_path / "in" / "a.nii.gz", image)
    store = store_of(tmp_path / "in", tmp_path / "store")
    row = store.rows[0]
    assert store.read(row, raw=True).dtype == stored
    assert store.read(row).tobytes() == np.ascontiguousarray(image.transpose(2, 1, 0)).astype(row.dtype).tobytes()
    assert content_hash(store.read(row)) == row.sha256
    out = np.empty((1, 2, 3, 4), np.float32)
    assert store.read(row, "images", [1, 1, 1], [2, 3, 4], raw=True, out=out) is out
    assert np.array_equal(out, store.read(row)[:, 1:3, 1:4, 1:5].astype(np.float32))
    with pytest.raises(ValueError, match="raw=True"):
        store.read(row, "images", [1, 1, 1], [2, 3, 4], out=out)


def test_a_damaged_image_is_named_by_its_row(tmp_path):
    store = store_of(volumes(tmp_path / "in", 2), tmp_path / "store")
    row = store.rows[0]
    path = tmp_path / "store" / "images" / f"{row.id}.b2nd"
    whole = store.read(row)
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 3] ^= 1
    path.write_bytes(changed)
    with pytest.raises(Damaged, match=f"images {row.id}: ") as error:
        store.read(row)
    assert str(tmp_path) not in str(error.value)
    assert not np.array_equal(Store(store.folder, verify=False).read(row), whole)
    assert np.array_equal(store.read(store.rows[1]), volume(1)[0].transpose(2, 1, 0)[None])


def test_a_disk_that_gives_up_on_a_file_is_told_of_its_row(tmp_path, monkeypatch):
    store = store_of(volumes(tmp_path / "in", 2), tmp_path / "store")
    row = store.rows[0]
    store.read(row, start=[0] * 3, size=[2] * 3)  # open, so that only the reading fails

    def fails(*words: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    with pytest.raises(Damaged, match=f"{row.id}: its file cannot be read: Input/output error"):
        Store(store.folder).read(row)


def test_an_image_that_was_prepared_anew_is_not_read_as_the_old_one(tmp_path):
    source = volumes(tmp_path / "in", 1)
    store = store_of(source, tmp_path / "store")
    row = store.rows[0]
    store.read(row)  # and stays open
    save_nifti(source / "images" / "case_0.nii.gz", volume(9)[0])
    again = store_of(source, tmp_path / "store")
    with pytest.raises(Damaged, match="not the file that the index knows"):
        store.read(row)
    assert np.array_equal(again.read(again.rows[0]), volume(9)[0].transpose(2, 1, 0)[None])


def test_small_images_are_opened_once_and_large_ones_when_they_are_out_of_reach(tmp_path, monkeypatch):
    store = store_of(pictures(tmp_path / "in", 20), tmp_path / "store")
    opened = []
    shelf = store._shelf
    store._shelf = lambda part, name, *rest: (opened.append(name), shelf(part, name, *rest))[1]
    first = [store.read(row) for row in store.rows]
    first[0] += 1  # what was given out is the reader's own
    again = [store.read(row) for row in store.rows]
    assert len(opened) == 20
    assert np.array_equal(first[0], again[0] + 1)
    small = {"start": [3, 4], "size": [5, 6]}
    assert np.array_equal(store.read(store.rows[3], **small), again[3][:, 3:8, 4:10])
    room = 3 * again[0].nbytes
    monkeypatch.setattr(at_hand, "_HELD", room)
    assert [np.array_equal(store.read(row), image) for row, image in zip(store.rows, again, strict=True)] == [True] * 20
    held = store._at_hand
    assert held._bytes == sum(array.nbytes for array in held._held.values()) <= room
    del opened[:]
    monkeypatch.setattr(at_hand, "_SMALL", 0)
    fresh = Store(store.folder)
    fresh._shelf = store._shelf
    for _ in range(2):
        for row in fresh.rows:
            fresh.read(row)
    assert len(opened) == 40  # 16 files stay open, and 20 go round


def test_only_a_few_files_stay_open(tmp_path):
    store = store_of(pictures(tmp_path / "in", 30), tmp_path / "store")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for row in [*store.rows, *store.rows]:
        store.read(row)
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 40


def test_what_is_written_reaches_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A power cut must not leave an index that names an empty file."""
    seen = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: (seen.append(str(Path(f"/proc/self/fd/{file}").readlink())), real(file))[1]
    )
    rename = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (seen.append(str(to)), rename(self, to))[1])
    store_of(volumes(tmp_path / "in", 1), tmp_path / "store")
    for name in (f"images/{Store(tmp_path / 'store').rows[0].id}.b2nd", "index.arrow", "index.parquet"):
        place = seen.index(str(tmp_path / "store" / name))
        assert Path(seen[place - 1]).parent == (tmp_path / "store" / name).parent, name
        assert Path(seen[place - 1]).name.startswith("."), name
        assert place < seen.index(str(tmp_path / "store" / "store.json"))
