"""Tables as people save them: separators of Excel, tables that are not used, boxes beside the images."""

from pathlib import Path

import pytest
from image_files import volume
from PIL import Image

from ssl_med.data.index import describe_layout, find_images
from ssl_med.verbs.inspect import inspect


def pictures(folder: Path, count: int = 4) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray((volume((8, 9)) + number).astype("uint8")).save(folder / f"a{number}.png")


@pytest.mark.parametrize(("separator", "suffix"), [(";", "csv"), ("\t", "csv"), ("\t", "tsv"), (",", "csv")])
def test_separators_of_excel(tmp_path, separator, suffix):
    pictures(tmp_path)
    rows = [("image", "patient", "label", "note"), *((f"a{n}.png", f"p{n // 2}", f"{n % 2}", "x, y") for n in range(4))]
    quoted = [separator.join(f'"{cell}"' if separator in cell else cell for cell in row) for row in rows]
    (tmp_path / f"table.{suffix}").write_bytes("\r\n".join(["\ufeff" + quoted[0], *quoted[1:], ""]).encode())
    records = list(find_images(tmp_path))
    assert [(r.patient, r.label) for r in records] == [("p0", 0), ("p0", 1), ("p1", 0), ("p1", 1)]
    assert describe_layout(tmp_path).name.startswith(f"table table.{suffix}: image from `image`")


def test_a_table_that_is_not_used_is_told(tmp_path, capsys):
    pictures(tmp_path)
    (tmp_path / "scanner.csv").write_text("name;class\nPrisma;0.25\nSkyra;0.5\n")  # labels that are no classes
    told = "table scanner.csv names no image files of this folder, not used"
    assert describe_layout(tmp_path).notes == (told, "ignored 1 other files: .csv 1")
    (tmp_path / "table.csv").write_text("image,label\na0.png,1\n")
    assert inspect(tmp_path)["layout"]["notes"] == [told]
    assert f"note        {told}" in capsys.readouterr().out


def test_a_table_of_boxes_is_not_taken_for_that_of_the_images(tmp_path):
    pictures(tmp_path, 2)
    (tmp_path / "index.csv").write_text("image,label\na0.png,1\na1.png,0\n")
    (tmp_path / "boxes.csv").write_text("image;x;y;w;h;class\na0.png;1;2;3;4;0\n")
    first, second = find_images(tmp_path, columns={"boxes": "boxes.csv"})
    assert (first.label, first.boxes, second.boxes) == (1, (1, 2, 4, 6, 0), ())
