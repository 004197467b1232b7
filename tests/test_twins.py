"""The same image in two splits or under two patients is told, and a copy that looks alike; nothing else is."""

import shutil
import stat

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from stores import build_store, find_images, pictures

from ssl_med.data.rows import Row, Rows
from ssl_med.data.store import Store
from ssl_med.data.twins import twins, write_twins


def row(number: int, split: str = "train", patient: str = "", content: str = "", phash: int = 0) -> Row:
    rest = {"study": "", "site": "", "label": -1, "modality": "", "shape": [1, 8, 8], "spacing": [1.0, 1.0]}
    rest |= {"affine": [], "dtype": "uint8", "has_mask": False, "mask_values": [], "low": 0.0, "high": 1.0}
    rest |= {"mean": 0.5, "sd": 0.1, "minimum": 0.0, "maximum": 1.0}
    names = {"id": f"i{number}", "patient": patient or f"p{number}", "split": split, "sha256": content or f"c{number}"}
    return Row(**names, **rest, phash=phash)


def test_copies_are_sorted_by_what_they_spoil():
    rows = [row(0, content="a"), row(1, "test", content="a"), row(2, "val", content="b"), row(3, "val", content="b")]
    rows += [row(4, patient="x", content="c"), row(5, patient="x", content="c"), row(6)]
    found = twins(Rows.of(rows))
    assert found.splits == ((0, 1),)
    assert found.patients == ((2, 3),)  # one patient with one image twice spoils nothing
    assert found.sentence() == (
        "2 images stand in more than one of train, val and test (same voxels); "
        "2 images stand under more than one patient (same voxels)"
    )
    assert not twins(Rows.of(rows[4:]))


@pytest.mark.parametrize(("most", "expected"), [(100, ((0, 1, 3), (2, 3, 0))), (3, ((2, 3, 0),))])
def test_near_duplicates_are_looked_for_across_splits(most, expected):
    """More rows than ``most``: only hashes that are equal."""
    near = (1 << 60) | 0b111
    rows = [row(0, phash=1 << 60), row(1, "test", phash=near), row(2, phash=-77), row(3, "val", phash=-77)]
    rows += [row(4, phash=(1 << 60) | 1), row(5, "test", phash=0)]  # like the first, but both are trained on
    found = twins(Rows.of([*rows[:4], *rows[5:]]), most)
    assert found.near == expected
    words = "equal perceptual hashes" if most == 3 else "perceptual hashes within 4 bits"
    assert found.sentence() == f"{2 * len(expected)} images look alike across splits ({words})"
    assert {pair[:2] for pair in twins(Rows.of(rows)).near} == {(0, 1), (1, 4), (2, 3)}


def test_many_rows_are_cheap():
    import time

    import pyarrow as pa

    count = 200_000
    one, rng = Rows.of([row(0)]).table, np.random.default_rng(0)
    columns = {name: one.column(name).take(pa.array(np.zeros(count, np.int64))) for name in one.schema.names}
    columns["sha256"] = pa.array([f"{n:064x}" for n in range(count - 1)] + [f"{5:064x}"])
    columns["split"] = pa.array(rng.choice(["train", "val", "test"], count, p=[0.8, 0.1, 0.1]))
    columns["phash"] = pa.array(rng.integers(-(2**62), 2**62, count))
    rows, began = Rows(pa.table(columns, one.schema)), time.process_time()
    found = twins(rows)
    assert time.process_time() - began < 12
    assert len(found.splits) + len(found.patients) in (0, 1)
    assert found.distance == 0


def test_prepare_tells_of_copies_and_lists_them(tmp_path):
    source, out, said = pictures(tmp_path / "in", 20), tmp_path / "store", []
    same = source / "test" / "left" / "copy.png"
    shutil.copy(source / "train" / "left" / "00.png", same)
    twin = source / "val" / "right" / "paler.png"
    Image.fromarray((np.asarray(Image.open(source / "train" / "right" / "01.png")) * 0.9).astype("uint8")).save(twin)
    path = out / "private" / "duplicates.parquet"
    build_store(list(find_images(source)), out, ["left", "right"], say=said.append)
    told = next(line for line in said if "same voxels" in line)
    assert told.startswith("  2 images stand in more than one of train, val and test (same voxels); ")
    assert told.endswith(str(path))
    lines = pq.read_table(path).to_pylist()
    kinds = [line for line in lines if line["kind"] == "same voxels, other split"]
    assert [{line["first_split"], line["second_split"]} for line in kinds] == [{"train", "test"}]
    assert any(line["kind"] == "looks alike, other split" for line in lines)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    rows = Store(out).rows
    assert {line["first"] for line in lines} | {line["second"] for line in lines} <= set(rows.column("id"))
    write_twins(twins(rows.take(np.arange(1))), rows, path)
    assert not path.exists()
