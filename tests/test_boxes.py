"""Boxes: from every frame into the voxels of the store, through crops, and with every transform that moves voxels."""

import csv
import json

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from PIL import Image as Picture

from ssl_med.data.boxes import moved, stored_boxes
from ssl_med.data.index import describe_layout, find_images
from ssl_med.data.layouts.box_table import BoxTable, box_line
from ssl_med.data.module import StoreData
from ssl_med.data.prepare import build_store
from ssl_med.data.readers import read
from ssl_med.data.record import Unreadable
from ssl_med.data.settings import Settings, regrid
from ssl_med.data.store import Store
from ssl_med.data.subsets import _class
from ssl_med.errors import UserError
from ssl_med.ops.random import sample_keys
from ssl_med.transforms import Affine, Flip, RandomResizedCrop, Rotate90, SpatialTransform
from ssl_med.transforms.corruption import RepeatedFlip

SPACING = (1.0, 1.5, 2.0)
LOW, SIDES = (3, 4, 5), (8, 6, 4)
"""Of the bright box, along the x, y, z of a RAS file of 20 x 22 x 24 voxels."""


def scan(folder, codes: str = "RAS"):
    """A file in any orientation whose bright box lies at one place of the world, and that box as the file counts it."""
    array = np.random.default_rng(0).normal(0, 1, (20, 22, 24)).astype(np.float32)
    array[tuple(slice(a, a + n) for a, n in zip(LOW, SIDES, strict=True))] += 100
    affine = nibabel.affines.from_matvec(np.diag(SPACING), (-10, 5, 30))
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    stored = nibabel.orientations.apply_orientation(array, turn)
    affine = affine @ inv_ornt_aff(turn, array.shape)
    folder.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(stored, affine), folder / "scan.nii.gz")
    voxels = np.argwhere(stored > 50)
    return voxels.min(0), voxels.max(0) + 1 - voxels.min(0)


def table(folder, header: list[str], *lines: list) -> None:
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *lines])


def bright(array: np.ndarray) -> list[float]:
    places = np.argwhere(array[0] > 50)
    return [*places.min(0).tolist(), *(places.max(0) + 1).tolist()]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "PIR"])
@pytest.mark.parametrize("frame", ["file", "mm"])
def test_boxes_lie_where_they_lie_in_the_world(tmp_path, codes, frame):
    low, sides = scan(tmp_path / "in", codes)
    if frame == "mm":
        low = np.array([-10, 5, 30]) + (np.array(LOW) - 0.5) * SPACING
        sides = np.array(SIDES) * SPACING
    box = json.dumps([[*low.tolist(), *sides.tolist(), 3]])
    table(tmp_path / "in", ["image", "found"], ["scan.nii.gz", box])
    record = next(find_images(tmp_path / "in", columns={"boxes" if frame == "file" else "boxes_mm": "found"}))
    assert record.frame == frame
    image = read(record)
    assert np.allclose(stored_boxes(record, image, image), [*bright(image.array), 3], atol=1e-4)


@pytest.mark.parametrize(
    "settings", [Settings(orientation="LPI"), Settings(orientation="SAL"), Settings(spacing=(1, 1, 1))]
)
def test_boxes_follow_another_grid(tmp_path, settings):
    low, sides = scan(tmp_path / "in")
    table(tmp_path / "in", ["image", "b"], ["scan.nii.gz", json.dumps([[*low.tolist(), *sides.tolist(), 0]])])
    record = next(find_images(tmp_path / "in", columns={"boxes": "b"}))
    image = read(record)
    kept = regrid(image, settings)
    found = stored_boxes(record, image, kept)
    assert np.allclose(found[:6], bright(kept.array), atol=0.5 if settings.spacing else 1e-6)


def test_boxes_that_cannot_be_are_refused(tmp_path):
    scan(tmp_path / "in")
    table(tmp_path / "in", ["image", "b"], ["scan.nii.gz", "[[100, 100, 100, 5, 5, 5, 0]]"])
    record = next(find_images(tmp_path / "in", columns={"boxes": "b"}))
    image = read(record)
    with pytest.raises(Unreadable, match="outside the image"):
        stored_boxes(record, image, image)
    flat = next(find_images(tmp_path / "in", columns={"boxes": "b"}))
    with pytest.raises(Unreadable, match="boxes of 3 axes"):
        stored_boxes(flat.__class__(**{**flat.__dict__, "boxes": (1.0, 2.0, 3.0, 4.0, 0.0)}), image, image)
    for cell, sentence in (("[[1, 2, 3]]", "is no box"), ("[[1, 2, -3, 4, 0]]", "is no box"), ("x", "is not JSON")):
        table(tmp_path / "in", ["image", "b"], ["scan.nii.gz", cell])
        with pytest.raises(UserError, match=sentence):
            list(find_images(tmp_path / "in", columns={"boxes": "b"}))


def test_boxes_of_a_table_of_their_own(tmp_path):
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (30, 40), np.uint8)
        Picture.fromarray(pixels).save(tmp_path / f"{number}.png")
    table(tmp_path, ["image"], ["0.png"], ["1.png"])
    (tmp_path / "boxes").mkdir()
    path = tmp_path / "boxes" / "all.csv"
    path.write_text("image,x,y,w,h,class\n0.png,5,6,7,8,nodule\n0.png,0,0,2,2,cyst\n1.png,,,,,\n")
    columns = {"boxes": "boxes/all.csv"}
    assert describe_layout(tmp_path, columns=columns).box_names == ("cyst", "nodule")
    first, second = find_images(tmp_path, columns=columns)
    assert first.boxes == (5, 6, 12, 14, 1, 0, 0, 2, 2, 0)
    assert second.boxes == ()
    assert second.boxed  # the table of images has it, and the table of boxes none of it
    path.write_text("image,x,y,w\n0.png,5,6,7\n")
    with pytest.raises(UserError, match=r"expected image, x, y, w, h, class"):
        BoxTable(path)
    with pytest.raises(UserError, match="no such table"):
        list(find_images(tmp_path, columns={"boxes": "none.csv"}))
    assert box_line({"x": 1, "y": 2, "w": 3, "h": 4, "category": 5}, "") == (1, 2, 4, 6, 5)


def test_a_coco_file(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (30, 40), np.uint8)
        Picture.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    content = {
        "images": [{"id": 10 + n, "file_name": f"{n}.png"} for n in range(3)],
        "categories": [{"id": 7, "name": "mass"}, {"id": 3, "name": "calcification"}],
        "annotations": [
            {"image_id": 10, "category_id": 7, "bbox": [4, 5, 10, 12]},
            {"image_id": 12, "category_id": 3, "bbox": [0, 0, 40, 30]},
            {"image_id": 12, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    layout, records = describe_layout(tmp_path), list(find_images(tmp_path))
    assert layout.name == "COCO instances.json: 3 images, 2 boxes"
    assert layout.box_names == ("calcification", "mass")
    assert [record.boxes for record in records] == [(4, 5, 14, 17, 1), (), (0, 0, 40, 30, 0, 0, 0, 9, 9, -1)]
    assert all(record.boxed for record in records)
    build_store(records, tmp_path / "store", [], say=lambda text: None, box_names=layout.box_names)
    store = Store(tmp_path / "store")
    assert sorted(row.boxes for row in store.rows) == [[], [0, 0, 30, 40, 0, 0, 0, 9, 9, -1], [5, 4, 17, 14, 1]]
    assert store.facts["box_names"] == ["calcification", "mass"]


def pictures_with(tmp_path, *cells):
    """A store of pictures with a column of boxes; the cells, for training, and ``[]`` and an empty one for the test."""
    lines = [(cell, "train") for cell in cells] + [("[]", "test"), ("", "test")]
    for number in range(len(lines)):
        pixels = np.random.default_rng(number).integers(0, 255, (30, 40), np.uint8)
        Picture.fromarray(pixels).save(tmp_path / f"{number}.png")
    rows = [[f"{number}.png", split, cell] for number, (cell, split) in enumerate(lines)]
    table(tmp_path, ["image", "split", "b"], *rows)
    records = list(find_images(tmp_path, columns={"boxes": "b"}))
    build_store(records, tmp_path / "store", [], say=lambda text: None)
    return StoreData(str(tmp_path / "store"), 16, 2, targets="boxes", foreground=0.5)


def test_images_that_are_known_to_have_no_box_are_learned_from(tmp_path):
    data = pictures_with(tmp_path, "[[4, 5, 10, 12, 1], [1, 1, 3, 3, 0]]", "[]", "")
    rows = data.rows("train")
    assert sorted(len(row.boxes) for row in rows) == [0, 10]
    assert [row.boxed for row in data.store.rows].count(False) == 2  # of an empty cell nothing is known
    batch = data.crops().__getitems__([0, 1])
    assert batch["boxes"].shape == (2, 2, 4)
    empty = [row.id for row in rows if not row.boxes]
    assert batch["box_labels"][batch["id"].index(empty[0])].tolist() == [-1, -1]
    test = next(iter(data.whole("test", [1, 1])))
    assert test["boxes"].shape == (1, 0, 4)
    assert test["box_labels"].shape == (1, 0)
    assert sorted(_class(row) for row in rows) == [0, 1]


def test_images_without_any_box_alone_cannot_be_learned_from(tmp_path):
    with pytest.raises(UserError, match="no image with a boxes in split 'train'"):
        pictures_with(tmp_path, "[]", "").rows("train")


def test_boxes_of_whole_images_are_in_voxels_of_the_batch(tmp_path):
    low, sides = scan(tmp_path / "in")
    table(
        tmp_path / "in", ["image", "split", "b"], ["scan.nii.gz", "test", json.dumps([[*map(int, (*low, *sides)), 2]])]
    )
    build_store(
        list(find_images(tmp_path / "in", columns={"boxes": "b"})), tmp_path / "store", [], say=lambda text: None
    )
    data = StoreData(str(tmp_path / "store"), 24, 1, targets="boxes", crop_mm=24)
    batch = next(iter(data.whole("test", [1, 1, 1])))
    assert batch["box_labels"].tolist() == [[2]]
    expected = np.array([*LOW[::-1], *np.add(LOW, SIDES)[::-1]]) * np.tile(SPACING[::-1], 2)
    assert np.allclose(batch["boxes"][0, 0], expected, atol=1e-4)


def painted(space: tuple[int, ...], count: int = 16) -> dict:
    """Images with one box each, painted into the mask, and a line without a box."""
    generator = torch.Generator().manual_seed(0)
    boxes, mask = torch.zeros(count, 2, 2 * len(space)), torch.zeros(count, 1, *space, dtype=torch.int64)
    for row in range(count):
        low = [int(torch.randint(1, size // 2, (1,), generator=generator)) for size in space]
        high = [
            a + int(torch.randint(2, size // 3, (1,), generator=generator)) for a, size in zip(low, space, strict=True)
        ]
        boxes[row, 0] = torch.tensor([*low, *high])
        mask[(row, 0, *(slice(a, b) for a, b in zip(low, high, strict=True)))] = 1
    labels = torch.tensor([[4, -1]]).repeat(count, 1)
    step = torch.ones(count, len(space))
    image = mask + 0.1 * torch.rand(mask.shape, generator=generator)
    return {
        "image": image,
        "mask": mask,
        "boxes": boxes,
        "box_labels": labels,
        "spacing": step,
        "key": sample_keys(0, torch.arange(count)),
    }


def shown(mask: torch.Tensor) -> list[float]:
    places = mask[0].nonzero()
    return [*places.amin(0).tolist(), *(places.amax(0) + 1).tolist()]


@pytest.mark.parametrize("space", [(24, 24), (12, 24, 24)])
@pytest.mark.parametrize(
    "transform", [Flip(), Flip(axes=[1]), Rotate90(), RepeatedFlip(again=0.9)], ids=lambda t: type(t).__name__
)
def test_boxes_move_with_their_images_exactly(space, transform):
    batch = painted(space)
    after = transform(batch)
    assert not torch.equal(after["boxes"], batch["boxes"])
    assert [shown(mask) for mask in after["mask"]] == after["boxes"][:, 0].tolist()
    assert after["box_labels"].tolist() == [[4, -1]] * 16
    assert not after["boxes"][:, 1].any()


@pytest.mark.parametrize("space", [(24, 24), (12, 24, 24)])
def test_a_resized_crop_clips_boxes_and_loses_those_it_does_not_show(space):
    batch = painted(space)
    after = RandomResizedCrop([2 * size for size in space], scale=(0.2, 0.6))(batch)
    kept = after["box_labels"][:, 0] == 4
    assert 0 < kept.sum() < 16
    for row in kept.nonzero()[:, 0]:
        assert np.allclose(after["boxes"][row, 0], shown(after["mask"][row]), atol=1.01)
    assert not after["boxes"][~kept, 1].any()
    for row in (~kept).nonzero()[:, 0]:  # what is left of a box without its centre is no background
        seen = after["mask"][row] > 0
        assert not seen.any() or np.allclose(after["boxes"][row, 0], shown(after["mask"][row]), atol=1.01)


@pytest.mark.parametrize("space", [(24, 24), (12, 24, 24)])
def test_a_turned_box_is_the_straight_one_around_it(space):
    batch = painted(space)
    batch["spacing"] = torch.tensor([3.0, 1.0, 1.5][-len(space) :]).expand(16, -1)
    after = Affine(rotation=20, scale=(0.8, 1.2), shear=0.1, translation=0.1)(batch)
    middle = Affine(rotation=0, scale=(1.2, 1.2))(batch)
    for row in range(16):
        if after["box_labels"][row, 0] == 4 and after["mask"][row].any():
            seen, box = shown(after["mask"][row]), after["boxes"][row, 0]
            axes = len(space)
            assert (np.array(seen[:axes]) >= box[:axes].numpy() - 0.6).all()
            assert (np.array(seen[axes:]) <= box[axes:].numpy() + 0.6).all()
        if middle["box_labels"][row, 0] == 4:
            assert np.allclose(middle["boxes"][row, 0], shown(middle["mask"][row]), atol=1.01)


def test_some_images_only_and_transforms_that_were_not_told_how():
    batch = painted((24, 24))
    flip = Flip(1.0)
    flip.probability = 0.5
    after = flip(batch)
    moved_ones = (after["boxes"] != batch["boxes"]).flatten(1).any(1)
    assert 0 < moved_ones.sum() < 16
    assert [shown(mask) for mask in after["mask"]] == after["boxes"][:, 0].tolist()

    class Shift(SpatialTransform):
        def sample(self, image, draws):
            return {}

        def transform(self, x, params, key):
            return x.roll(1, 2)

    with pytest.raises(UserError, match="Shift does not move boxes"):
        Shift()(batch)


def test_the_map_of_corners_encloses():
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    assert moved(np.array([[1.0, 2.0, 3.0, 7.0]]), turn, np.array([10.0, 0.0])).tolist() == [[3, 1, 8, 3]]
