"""The same patient, the same image and a copy of it are found between two sets; different subjects are not."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image as Pillow
from scipy.ndimage import gaussian_filter, zoom
from stores import store_of, volume, volumes

from ssl_med.data.likeness import near_duplicates, perceptual_hash
from ssl_med.data.manifest import write_lock
from ssl_med.data.overlap import Members, Overlap, check_overlap, overlap, refuse_overlap
from ssl_med.errors import UserError


def subject(number: int, space: tuple[int, ...]) -> np.ndarray:
    """A smooth body with organs of its own, (1, \\*space) int16."""
    rng = np.random.default_rng(number)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, size) for size in space], indexing="ij"))
    image = 400.0 * ((grid**2).sum(0) < 0.8)
    for _ in range(12):
        centre = rng.uniform(-0.6, 0.6, len(space)).reshape(-1, *[1] * len(space))
        image += rng.uniform(-300, 300) * (((grid - centre) ** 2).sum(0) < rng.uniform(0.02, 0.15))
    return gaussian_filter(image, 1.0)[None].astype(np.int16)


def bits_between(a: int, b: int) -> int:
    return ((a ^ b) & (2**64 - 1)).bit_count()


SPACES = [(96, 80), (40, 48, 44)]


@pytest.mark.parametrize("space", SPACES)
def test_copies_are_found(space):
    rng = np.random.default_rng(9)
    for number in range(8):
        image = subject(number, space)
        own = perceptual_hash(image)
        noisy = image + rng.normal(0, 0.03 * image.std(), image.shape)
        rescaled = zoom(image.astype(float), (1, *[0.8] * len(space)), order=1)
        brighter = 0.5 * image + 100
        for copy in (noisy, rescaled, brighter):
            assert bits_between(own, perceptual_hash(copy)) <= 4


def test_a_recompressed_picture_is_found():
    for number in range(8):
        image = subject(number, (96, 80))[0]
        grey = ((image - image.min()) / np.ptp(image) * 255).astype(np.uint8)
        packed = BytesIO()
        Pillow.fromarray(grey).save(packed, "JPEG", quality=60)
        assert bits_between(perceptual_hash(grey[None]), perceptual_hash(np.asarray(Pillow.open(packed))[None])) <= 4


@pytest.mark.parametrize("space", SPACES)
def test_different_subjects_are_not_taken_for_copies(space):
    hashes = [perceptual_hash(subject(number, space)) for number in range(30)]
    assert near_duplicates(hashes, 4) == []
    balance = np.mean([bits_between(a, b) for i, a in enumerate(hashes) for b in hashes[:i]])
    assert 20 < balance < 40  # the bits of unrelated images agree by chance


def test_a_constant_image_is_like_nothing():
    flat = perceptual_hash(np.full((1, 20, 20), 7, np.int16))
    assert flat == 0
    assert near_duplicates([flat, flat, 5, 5]) == [(2, 3, 0)]


def test_the_thumbnail_is_an_exact_mean():
    """A picture made of 32 x 32 blocks has the hash of its blocks, whatever the size of the blocks."""
    blocks = np.random.default_rng(0).normal(size=(1, 32, 32))
    assert perceptual_hash(blocks) == perceptual_hash(blocks.repeat(3, 1).repeat(5, 2))


@pytest.mark.parametrize("distance", [0, 3, 4, 9])
def test_all_pairs_are_found_and_no_other(distance):
    rng = np.random.default_rng(distance)
    hashes = rng.integers(-(2**63), 2**63 - 1, 60, dtype=np.int64).tolist()
    for number in range(40):  # relatives at every distance
        flips = rng.choice(64, number % 12, replace=False)
        word = (hashes[number] ^ sum(1 << int(b) for b in flips)) & (2**64 - 1)
        hashes.append(word - 2**64 if word >= 2**63 else word)
    expected = {
        (i, j, bits)
        for j in range(len(hashes))
        for i in range(j)
        if (bits := bits_between(hashes[i], hashes[j])) <= distance
    }
    assert set(near_duplicates(hashes, distance)) == expected
    across = {
        (i, j, bits)
        for i in range(50)
        for j in range(50)
        if (bits := bits_between(hashes[i], hashes[50 + j])) <= distance
    }
    assert set(near_duplicates(hashes[:50], distance, hashes[50:])) == across


def test_many_copies_are_listed_with_the_first():
    assert near_duplicates([8] * 4 + [9]) == [(0, 1, 0), (0, 2, 0), (0, 3, 0), (0, 4, 1)]
    assert near_duplicates([8, 8], 4, [8, 8]) == [(0, 0, 0), (0, 1, 0), (1, 0, 0)]
    with pytest.raises(ValueError, match="expected 0 to 15"):
        near_duplicates([1], 20)


# --- two sets


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("overlap")
    return store_of(volumes(folder / "in", 10, masks=False), folder / "store")


def rows_of(store, split: str) -> list:
    return [row for row in store.rows if row.split == split]


def test_splits_of_one_store_share_nobody(store):
    found = overlap(Members.of_rows(rows_of(store, "train"), "k"), Members.of_rows(rows_of(store, "test"), "k"))
    assert (bool(found), found.patients, found.contents) == (False, (), ())
    assert found.patients_compared
    assert found.sentences()[0].startswith(("no patient and no image", "near", "1 pairs", "2 pairs"))


def test_the_same_patient_is_found(store):
    train, test = rows_of(store, "train"), rows_of(store, "test")
    moved = [*test, replace(train[0], id="other", sha256="0" * 64, phash=0)]
    found = overlap(Members.of_rows(train), Members.of_rows(moved))
    assert found.patients == (train[0].patient,)
    assert found.contents == ()
    with pytest.raises(UserError, match=r"1 patients of the test images are in the pretraining too.*--allow_overlap"):
        refuse_overlap(found)
    refuse_overlap(found, allow=True)
    assert train[0].patient not in " ".join(found.sentences())


def test_the_same_voxels_are_found_under_another_key(store):
    train, test = rows_of(store, "train"), rows_of(store, "test")
    stranger = replace(test[0], id="elsewhere", patient="unknown")
    found = overlap(Members.of_rows([*train, stranger], "k1"), Members.of_rows(test, "k2"))
    assert found.contents == (("elsewhere", test[0].id),)
    assert not found.patients_compared
    assert found.facts()["patients"] is None
    assert "elsewhere and" in " ".join(found.sentences())


def test_near_duplicates_are_listed_and_do_not_stop():
    image = volume(0)[0].transpose()[None]
    own = perceptual_hash(image)
    first = Members(["a"], ["p"], ["1"], np.array([own]), "k")
    second = Members(["b", "c"], ["q", "r"], ["2", "3"], np.array([own, ~own]), "k")
    found = overlap(first, second)
    assert found.near == (("a", "b", 0),)
    assert not found
    refuse_overlap(found)
    assert "1 pairs of a pretraining and a test image look alike (a and b)" in found.sentences()


def test_what_was_not_recorded_is_said(store, tmp_path):
    found = check_overlap(tmp_path, rows_of(store, "test"))
    assert found == Overlap(recorded=False, patients_compared=False, near_compared=False)
    assert "cannot be checked" in found.sentences()[0]
    bare = Members(["a"], ["p"], ["1"])
    assert "perceptual hashes were not recorded" in " ".join(overlap(bare, bare).sentences())


def test_a_run_and_its_export_are_checked(store, tmp_path):
    export = tmp_path / "exports" / "backbone"
    export.mkdir(parents=True)
    write_lock(tmp_path, store.rows)
    for folder in (tmp_path, export):
        with pytest.raises(UserError, match="2 test images are in the pretraining too, voxel by voxel"):
            check_overlap(folder, rows_of(store, "test"))
        found = check_overlap(folder, rows_of(store, "test"), allow=True)
        assert (len(found.contents), len(found.patients)) == (2, 1)
    write_lock(tmp_path, rows_of(store, "train"))
    assert not check_overlap(tmp_path, rows_of(store, "test"))
