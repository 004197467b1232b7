"""COCO data sets in several files, one for each split, with the boxes and splits that they tell."""

import json
from pathlib import Path

import pytest
from image_files import volume
from PIL import Image

from ssl_med.data.index import describe_layout, find_images
from ssl_med.errors import UserError

MASS, CYST = {"id": 7, "name": "mass"}, {"id": 3, "name": "cyst"}


def coco(path: Path, images: list[str], categories: list[dict], number: int) -> None:
    """A file with one box in its first image, of the category ``number``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [{"id": place, "file_name": name} for place, name in enumerate(images)],
        "categories": categories,
        "annotations": [{"image_id": 0, "category_id": number, "bbox": [1, 2, 3, 4]}],
    }
    path.write_text(json.dumps(content))


def pictures(folder: Path, names: list[str]) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(volume((8, 9)).astype("uint8")).save(folder / name)
    return names


def told(folder: Path) -> list[tuple]:
    return [(record.name, record.split, record.boxes) for record in find_images(folder)]


@pytest.mark.parametrize("place", ["", "images"])
def test_the_folders_of_coco_itself(tmp_path, place):
    for split in ("train2017", "val2017"):
        names = pictures(tmp_path / place / split, ["0.png", "1.png"])  # the same bare names in both
        coco(tmp_path / "annotations" / f"instances_{split}.json", names, [MASS, CYST], 7)
        coco(tmp_path / "annotations" / f"person_keypoints_{split}.json", names, [MASS], 7)
    box = (1, 2, 4, 6, 1)
    base = f"{place}/" if place else ""
    assert told(tmp_path) == [
        (f"{base}train2017/0.png", "train", box),
        (f"{base}train2017/1.png", "train", ()),
        (f"{base}val2017/0.png", "val", box),
        (f"{base}val2017/1.png", "val", ()),
    ]
    layout = describe_layout(tmp_path)
    assert layout.name == "COCO instances_train2017.json, instances_val2017.json: 4 images, 2 boxes"
    assert layout.box_names == ("cyst", "mass")


def test_one_file_in_the_folder_of_each_split(tmp_path):
    for split, categories in (("train", [MASS]), ("valid", [{"id": 1, "name": "mass"}, CYST])):
        names = pictures(tmp_path / split, [f"{split}.png"])
        coco(tmp_path / split / "_annotations.coco.json", names, categories, categories[0]["id"])
    assert describe_layout(tmp_path).box_names == ("mass", "cyst")
    assert told(tmp_path) == [
        ("train/train.png", "train", (1, 2, 4, 6, 0)),
        ("valid/valid.png", "val", (1, 2, 4, 6, 0)),
    ]


def test_the_name_of_a_file_alone_deals_no_splits(tmp_path):
    names = pictures(tmp_path / "images", ["0.png"])
    coco(tmp_path / "instances_train.json", names, [MASS], 7)
    (tmp_path / "sites.csv").write_text("site\nA\n")
    assert told(tmp_path) == [("images/0.png", "", (1, 2, 4, 6, 0))]
    assert describe_layout(tmp_path).notes == ("table sites.csv names no image files of this folder, not used",)


def test_files_that_list_the_same_images_are_refused(tmp_path):
    names = pictures(tmp_path, ["0.png"])
    for name in ("first.json", "second.json"):
        coco(tmp_path / name, names, [MASS], 7)
    with pytest.raises(UserError, match=r"first\.json and second\.json .* list the same image: choose one"):
        describe_layout(tmp_path)
    assert len(list(find_images(tmp_path, Path("second.json")))) == 1
