"""Stored files: windows of what was written, in both formats, and no changed byte goes unseen."""

import os
import threading

import numpy as np
import pytest

from ssl_med.data.arrays import chunks_for, write_array
from ssl_med.data.points import labelled_points, mask_values, otsu, tissue_points
from ssl_med.data.seal import Damaged
from ssl_med.data.stored import StoredFile

FORMATS = ["b2nd", "npy"]


def voxels(shape: tuple[int, ...], dtype: str = "int16") -> np.ndarray:
    rng = np.random.default_rng(3)
    smooth = np.add.outer(np.arange(shape[1]) * 3, np.arange(shape[2])).reshape(1, *shape[1:3], *[1] * (len(shape) - 3))
    return (np.broadcast_to(smooth, shape) + rng.integers(0, 40, shape)).astype(dtype)


def whole(array: StoredFile) -> np.ndarray:
    return array.read(tuple(slice(0, n) for n in array.shape[1:]))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("shape", "crop"), [((1, 70, 45, 65), 48), ((1, 40, 70, 33), None), ((3, 300, 270), 64), ((2, 5, 4, 3), 96)]
)
def test_windows_are_slices_of_the_whole(tmp_path, suffix, shape, crop):
    array, path = voxels(shape), tmp_path / f"x.{suffix}"
    seal = write_array(path, array, crop)
    stored, rng = StoredFile(path, seal), np.random.default_rng(1)
    for _ in range(12):
        size = [int(rng.integers(1, n + 1)) for n in shape[1:]]
        start = [int(rng.integers(0, n - s + 1)) for n, s in zip(shape[1:], size, strict=True)]
        window = tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))
        expected = array[(slice(None), *window)]
        assert np.array_equal(stored.read(window), expected)
        out = np.empty(expected.shape, expected.dtype)
        assert stored.read(window, out) is out
        assert np.array_equal(out, expected)
        assert np.array_equal(stored.read(window, lent=True), expected)
    assert np.array_equal(whole(stored), array)


def test_only_what_is_lent_is_written_over_and_by_the_same_thread_only(tmp_path):
    array = voxels((1, 40, 40, 40))
    stored = StoredFile(tmp_path / "x.b2nd", write_array(tmp_path / "x.b2nd", array))
    first, second = (tuple(slice(a, a + 20) for _ in range(3)) for a in (0, 20))
    kept, lent = stored.read(first), stored.read(first, lent=True)
    other = threading.Thread(target=lambda: stored.read(second, lent=True))
    other.start()
    other.join()
    assert np.array_equal(lent, array[:, :20, :20, :20])
    stored.read(second, lent=True)
    assert np.array_equal(lent, array[:, 20:, 20:, 20:])
    assert np.array_equal(kept, array[:, :20, :20, :20])


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
def test_types_and_constant_images_come_back(tmp_path, suffix, dtype):
    for number, array in enumerate((voxels((1, 9, 8, 7), dtype), np.zeros((1, 40, 40, 40), dtype))):
        path = tmp_path / f"{number}.{suffix}"
        found = whole(StoredFile(path, write_array(path, array)))
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)


@pytest.mark.parametrize("suffix", FORMATS)
def test_points_lie_beside_the_voxels(tmp_path, suffix):
    points = np.array([5, 1, 4_000_000_000])
    path = tmp_path / f"x.{suffix}"
    write_array(path, voxels((1, 8, 8, 8)), points=points)
    found = StoredFile(path).seal.points
    assert found.dtype == np.uint32
    assert found.tolist() == points.tolist()
    write_array(path, voxels((1, 8, 8, 8)), points=np.array([1 << 40]))
    assert StoredFile(path).seal.points.tolist() == [1 << 40]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("array", [voxels((1, 20, 40, 35)), np.zeros((1, 40, 40, 35), np.int16), voxels((3, 60, 140))])
def test_no_flipped_bit_goes_unseen(tmp_path, suffix, array):
    """Every 211th byte of the file, and its first and last 130: header, table and chunks alike."""
    path = tmp_path / f"x.{suffix}"
    seal = write_array(path, array, 48)
    content = path.read_bytes()
    places = {*range(0, len(content), 211), *range(130), *range(len(content) - 130, len(content))}
    for place in sorted(p for p in places if 0 <= p < len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(Damaged):
            whole(StoredFile(path, seal))


def test_a_window_is_judged_by_its_own_chunks(tmp_path):
    """A damaged corner costs the crops that touch it, not the image."""
    array, path = voxels((1, 128, 64, 64)), tmp_path / "x.b2nd"
    seal = write_array(path, array)
    stored = StoredFile(path, seal)
    start, length = stored.seal.spans[1].tolist()
    with path.open("r+b") as file:
        file.seek(start + length // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 8]))
    stored = StoredFile(path, seal)
    first = tuple(slice(0, 64) for _ in range(3))
    assert np.array_equal(stored.read(first), array[(slice(None), *first)])
    with pytest.raises(Damaged, match="bytes have changed"):
        stored.read((slice(60, 70), *first[1:]))


def test_without_the_hashes_a_flipped_bit_is_not_seen(tmp_path):
    """What the hashes are for: blosc2 answers wrong voxels without an error."""
    array, path = voxels((1, 64, 64, 64)), tmp_path / "x.b2nd"
    seal = write_array(path, array)
    content = path.read_bytes()
    silent = 0
    for place in range(2000, 30_000, 701):
        changed = bytearray(content)
        changed[place] ^= 16
        path.write_bytes(changed)
        try:
            silent += not np.array_equal(whole(StoredFile(path, seal, verify=False)), array)
        except Damaged:
            continue
    assert silent > 0


@pytest.mark.parametrize("suffix", FORMATS)
def test_cut_off_exchanged_and_missing_files_are_named(tmp_path, suffix):
    path, other = tmp_path / f"x.{suffix}", tmp_path / f"y.{suffix}"
    seal, another = write_array(path, voxels((1, 20, 20, 20))), write_array(other, voxels((1, 20, 20, 21)))
    with pytest.raises(Damaged, match="not the file that the index knows"):
        StoredFile(path, another)
    content = path.read_bytes()
    for length in (0, 10, 40, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(Damaged):
            StoredFile(path, seal)
    path.unlink()
    with pytest.raises(Damaged, match="cannot be opened: No such file") as error:
        StoredFile(path, seal)
    assert str(tmp_path) not in str(error.value)


def test_other_programs_still_open_the_files(tmp_path):
    import blosc2

    array = voxels((1, 20, 30, 40))
    for suffix in FORMATS:
        write_array(tmp_path / f"x.{suffix}", array)
    assert np.array_equal(blosc2.open(str(tmp_path / "x.b2nd"), mode="r")[:], array)
    assert np.array_equal(np.load(tmp_path / "x.npy"), array)


@pytest.mark.parametrize(
    ("shape", "crop", "chunks", "blocks"),
    [
        ((1, 200, 512, 512), 96, (1, 64, 64, 64), (1, 16, 16, 16)),
        ((1, 200, 512, 512), None, (1, 64, 64, 64), (1, 16, 16, 16)),
        ((1, 200, 512, 512), 64, (1, 32, 32, 32), (1, 16, 16, 16)),
        ((1, 200, 512, 512), 160, (1, 96, 96, 96), (1, 16, 16, 16)),
        ((2, 10, 512, 512), 16, (2, 10, 32, 32), (2, 10, 16, 16)),
        ((3, 1000, 900), None, (3, 512, 512), (3, 64, 64)),
        ((3, 50, 900), 96, (3, 50, 256), (3, 50, 64)),
    ],
)
def test_chunks_follow_the_crop(shape, crop, chunks, blocks):
    assert chunks_for(shape, crop) == (chunks, blocks)


def test_labels_are_counted_as_numpy_does():
    rng = np.random.default_rng(0)
    for dtype in (np.uint8, np.int16, np.int32, np.uint16):
        mask = rng.choice(np.array([0, 1, 7, 200], dtype), (1, 9, 8, 7))
        assert mask_values(mask) == np.unique(mask).tolist()
    assert mask_values(np.array([[-5, 3, -32768, 32767]], np.int16)) == [-32768, -5, 3, 32767]


def test_labelled_points_are_those_of_a_search_class_by_class():
    rng = np.random.default_rng(0)
    mask = rng.choice(np.array([-1, 0, 1, 2, 5], np.int16), (1, 9, 8, 7), p=[0.1, 0.4, 0.4, 0.09, 0.01])
    found = labelled_points(mask, most=20)
    expected = [np.flatnonzero(mask.reshape(-1) == value) for value in (1, 2, 5)]
    chosen = [where[np.linspace(0, len(where) - 1, min(20, len(where))).astype(int)] for where in expected]
    assert found.tolist() == np.concatenate(chosen).tolist()
    assert labelled_points(np.zeros((1, 4, 4), np.int16)).tolist() == []


def test_otsu_is_the_threshold_of_least_variance_within():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(-1000, 30, 4000), rng.normal(40, 60, 1000)])
    counts, edges = np.histogram(values, 256)
    centres = (edges[:-1] + edges[1:]) / 2

    def within(place: int) -> float:
        parts = (counts[:place], centres[:place]), (counts[place:], centres[place:])
        return sum(float(n.sum() * np.average((c - np.average(c, weights=n)) ** 2, weights=n)) for n, c in parts)

    places = [p for p in range(1, 256) if counts[:p].sum() and counts[p:].sum()]
    least = min(map(within, places))
    assert within(int(np.searchsorted(edges, otsu(values)))) == pytest.approx(least)


def test_tissue_points_lie_in_the_bright_part():
    image = np.full((1, 30, 40, 50), -1000, np.int16)
    image[0, 10:20, 10:30, 5:45] = 50
    points = tissue_points(image, -1000, 50)
    assert len(points) == 256
    assert (image.reshape(-1)[points] == 50).all()
    spread = np.unravel_index(points, image.shape[1:])
    assert (spread[0].min(), spread[0].max()) == (10, 19)
    large = np.zeros((1, 120, 130, 140), np.int16)
    large[:, 60:] = 7
    found = tissue_points(large, 0, 7)
    assert (large.reshape(-1)[found] == 7).all()
    assert np.ptp(found % 140) > 100  # not all in one column
