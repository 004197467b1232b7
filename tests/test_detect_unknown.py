"""Boxes of which nothing is known, and lesions that a crop cuts: no lesion to be learned, and no background either."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from finetune import Detect
from finetune.box_geometry import contain
from finetune.detection_metrics import FALSE, HIT, REPEATED, judge, summary
from ssl_med.backbones import UNetEncoder
from ssl_med.data.crops import Region, boxes_inside
from ssl_med.data.index import describe_layout, find_images
from ssl_med.data.layouts.box_table import BoxTable, box_line
from ssl_med.data.module import StoreData
from ssl_med.data.prepare import build_store
from ssl_med.errors import UserError
from ssl_med.ops.random import sample_keys
from ssl_med.transforms import Affine, Flip
from ssl_med.transforms.box_corners import settled
from ssl_med.verbs.arms import _class_count


def test_what_a_crop_shows_of_a_cut_box_is_neither_lesion_nor_background():
    boxes = np.array([[2, 2, 8, 8, 1], [9, 0, 19, 5, 0], [1, 1, 3, 3, -1], [15, 15, 18, 18, 0]], float)
    found, classes = boxes_inside(boxes, Region([10, 10], [0, 0], [10, 10], [1.0, 1.0]), 4)
    assert found.tolist() == [[2, 2, 8, 8], [9, 0, 10, 5], [1, 1, 3, 3], [0, 0, 0, 0]]
    assert classes.tolist() == [1, -1, -1, -1]


def test_transforms_keep_places_of_which_nothing_is_known():
    boxes = torch.tensor([[[2.0, 2, 8, 8], [9, 0, 19, 5], [1, 1, 3, 3], [0, 0, 0, 0], [12, 12, 14, 14]]])
    moved, labels = settled(boxes, torch.tensor([[1, 0, -1, -1, 2]]), (10, 10))
    assert moved[0].tolist() == [[2, 2, 8, 8], [9, 0, 10, 5], [1, 1, 3, 3], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert labels.tolist() == [[1, -1, -1, -1, -1]]
    batch = {"image": torch.zeros(1, 1, 20, 20), "boxes": boxes[:, 2:4], "box_labels": torch.tensor([[-1, -1]])}
    batch["key"] = sample_keys(0, torch.arange(1))
    assert Flip(1.0, axes=[1])(batch)["boxes"].tolist() == [[[1, 17, 3, 19], [0, 0, 0, 0]]]
    turned = Affine(rotation=20, scale=(0.8, 1.2), translation=0.1)(batch)["boxes"][0]
    assert turned[0].any()
    assert not turned[1].any()  # a line without a box stays one


def test_points_in_boxes():
    boxes = torch.tensor([[[0.0, 0, 4, 4], [0, 0, 0, 0]]])
    points = torch.tensor([[0.0, 0], [3.9, 1], [4, 1]])
    assert contain(boxes, points).tolist() == [[[True, True, False], [False] * 3]]


def test_cells_on_an_unknown_box_are_no_background(make_batch):
    torch.manual_seed(0)
    task = Detect(UNetEncoder(2, 1, (8, 16, 16), blocks=1), 2, [16, 16], width=16, depth=1, finest=2, levels=2)
    batch = make_batch((16, 16))
    plain = task(batch, 0.0)["focal"]
    known = {**batch, "mask": batch["mask"].clone()}
    known["mask"][..., 12:, :] = -1
    batch["boxes"][:, 1] = torch.tensor([12.0, 0, 16, 16])
    assert batch["box_labels"][:, 1].tolist() == [-1] * 4
    focal = task(batch, 0.0)["focal"]
    assert focal < plain
    assert torch.equal(focal, task(known, 0.0)["focal"])


def lines(*found: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor([found], dtype=torch.float32)


UNKNOWN = torch.tensor([[[0.0, 0, 20, 20], [40, 40, 50, 50], [0, 0, 0, 0]]]), torch.tensor([[-1, 0, -1]])
"""A region, a lesion, and a line without a box."""


@pytest.mark.parametrize(
    ("box", "froc", "kind"),
    [
        ((40, 40, 50, 50), HIT, 0),
        ((2, 2, 8, 8), REPEATED, -1),
        ((15, 15, 24, 24), REPEATED, -1),  # its centre lies in it
        ((5, 10, 15, 31), FALSE, 0),  # less than half of it, and not its centre
        ((0, 12, 20, 29), FALSE, 0),
        ((30, 0, 36, 6), FALSE, 0),
    ],
)
def test_a_find_where_nothing_is_known_is_neither_right_nor_wrong(box, froc, kind):
    cases = judge(lines((*box, 0.9, 0)), *UNKNOWN, classes=1)
    assert (cases["froc"].item(), cases["class"].item()) == (froc, kind)
    assert cases["lesions"].tolist() == [[1]]


def test_half_of_a_box_in_an_unknown_region_is_enough():
    two = torch.tensor([[[0.0, 0, 4, 10], [6, 0, 10, 10], [40, 40, 50, 50]]])
    wide = (0, 0, 10, 10)  # 4 of 10 in each of two regions, and its centre in neither
    assert judge(lines((*wide, 0.9, 0)), two, torch.tensor([[-1, -1, 0]]), 1)["class"].item() == 0
    two[0, 0, 2] = 5
    assert judge(lines((*wide, 0.9, 0)), two, torch.tensor([[-1, -1, 0]]), 1)["class"].item() == -1


def test_scores_are_as_if_such_finds_had_not_been_made():
    good, unsure, wrong = (40, 40, 50, 50, 0.6, 0), (2, 2, 8, 8, 0.9, 0), (30, 0, 36, 6, 0.8, 0)
    with_it, without, none = lines(unsure, wrong, good), lines(wrong, good), (0,) * 5 + (-1,)
    scores = [
        summary({name: value.numpy() for name, value in judge(found, *UNKNOWN, classes=1).items()})
        for found in (with_it, torch.cat([without, lines(none)], 1))
    ]
    assert scores[0] == scores[1]
    assert scores[0]["map_10"] == pytest.approx(0.5)
    strict = judge(with_it, UNKNOWN[0][:, 1:2], UNKNOWN[1][:, 1:2], classes=1)
    assert summary({name: value.numpy() for name, value in strict.items()})["map_10"] == pytest.approx(1 / 3)


def test_a_lesion_that_is_known_inside_a_region_is_still_found():
    boxes, labels = torch.tensor([[[0.0, 0, 60, 60], [40, 40, 50, 50]]]), torch.tensor([[-1, 0]])
    cases = judge(lines((41, 40, 50, 50, 0.9, 0), (10, 10, 20, 20, 0.8, 0)), boxes, labels, classes=1)
    assert cases["class"].tolist() == [[0, -1]]
    assert cases["hits"][0, :, 0].tolist() == [1, 0]
    assert cases["froc"].tolist() == [[HIT, REPEATED]]


def write_pictures(folder, count: int) -> list[str]:
    for number in range(count):
        Picture.fromarray(np.random.default_rng(number).integers(0, 255, (30, 40), np.uint8)).save(
            folder / f"{number}.png"
        )
    return [f"{number}.png" for number in range(count)]


def test_crowds_of_coco_and_their_way_into_batches(tmp_path):
    names = write_pictures(tmp_path, 8)
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "categories": [{"id": 1, "name": "mass"}],
        "annotations": [
            entry
            for number in range(8)
            for entry in (
                {"image_id": number, "category_id": 1, "bbox": [2, 3, 4, 4]},
                {"image_id": number, "category_id": 1, "bbox": [20, 15, 18, 12], "iscrowd": 1},
            )
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    assert describe_layout(tmp_path).name == "COCO instances.json: 8 images, 8 boxes"
    build_store(list(find_images(tmp_path)), tmp_path / "store", [], say=lambda text: None)
    data = StoreData(str(tmp_path / "store"), 16, 2, targets="boxes", foreground=1.0)
    assert _class_count(data.store, "boxes") == 1
    for position in range(0, 20, 2):
        batch = data.crops().__getitems__([position, position + 1])
        assert (batch["box_labels"] == 0).any(1).all()  # around the lesion, never around the crowd
    whole = next(iter(data.whole("test", [1, 1])))
    assert whole["boxes"][0].tolist() == [[3, 2, 7, 6], [15, 20, 27, 38]]
    assert whole["box_labels"][0].tolist() == [0, -1]


def test_unknown_lesions_of_tables(tmp_path):
    assert box_line([1, 2, 3, 4, -1], "") == (1, 2, 4, 6, -1)
    with pytest.raises(UserError, match="or -1 where it is not known"):
        box_line([1, 2, 3, 4, -2], "")
    rows = [["image", "x", "y", "w", "h", "class"], ["a.png", 1, 2, 3, 4, "-1"], ["a.png", 5, 6, 7, 8, "mass"]]
    with (tmp_path / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    table = BoxTable(tmp_path / "boxes.csv")
    assert table.class_names == ("mass",)
    assert table.of("a.png") == [(1, 2, 4, 6, -1), (5, 6, 12, 14, 0)]
