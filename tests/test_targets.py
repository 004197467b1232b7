"""Columns of findings, numbers, subgroups and data sets; stores from before there were any of them."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stores import picture, save_nifti, store_of, volume, volumes

from PIL import Image  # isort: skip
from ssl_med.data.index import describe_layout, find_images
from ssl_med.data.layouts.targets import finding, group_of, number_of
from ssl_med.data.module import StoreData
from ssl_med.data.prepare import build_store
from ssl_med.data.record import Record, Tiling
from ssl_med.data.rows import ADDED
from ssl_med.data.spool import Spool
from ssl_med.data.store import Store
from ssl_med.errors import UserError


def table(folder, text: str, count: int = 4):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        Image.fromarray(picture(number, 0)).save(folder / f"{number}.png")
    (folder / "table.csv").write_text(text)
    return folder


def test_columns_of_findings_and_groups(tmp_path):
    text = "image,a,b,years,who\n0.png,1,0,43,F\n1.png,-1,,91,M\n2.png,0.0,yes,,F\n3.png,u,no,7,\n"
    columns = {"labels": "a|b", "label:third": "b", "value": "years", "group:age": "years", "group:sex": "who"}
    records = list(find_images(table(tmp_path, text), columns=columns))
    assert describe_layout(tmp_path, columns=columns).finding_names == ("a", "b", "third")
    assert [record.labels for record in records] == [(1, 0, 0), (-1, -1, -1), (0, 1, 1), (-1, 0, 0)]
    assert [record.value for record in records] == [43, 91, None, 7]
    assert [dict(record.groups) for record in records] == [
        {"age": "40-49", "sex": "F"},
        {"age": "90+", "sex": "M"},
        {"sex": "F"},
        {"age": "0-9"},
    ]
    build_store(records, tmp_path / "store", [], say=lambda text: None, finding_names=("a", "b", "third"))
    store = Store(tmp_path / "store")
    assert store.rows[0].groups == ["age=40-49", "sex=F"]
    assert store.facts["finding_names"] == ["a", "b", "third"]
    assert len(store.rows.where(valued=True)) == 3
    assert store.rows.known("labels").tolist() == [0, 2, 3]


def test_what_is_no_finding_number_or_group_is_refused(tmp_path):
    with pytest.raises(UserError, match="'maybe' is no finding"):
        finding("maybe", "table.csv, line 2")
    with pytest.raises(UserError, match="'old' is no number"):
        number_of("old", "table.csv, line 2")
    assert number_of("-1", "") == -1
    assert group_of("sex", "n/a") == ""
    lines = [f"{number}.png,name {number}" for number in range(52)]
    folder = table(tmp_path, "\n".join(["image,who", *lines]) + "\n", 52)
    with pytest.raises(UserError, match="more than 50 different"):
        list(find_images(folder, columns={"group:who": "who"}))
    with pytest.raises(UserError, match="no column 'none'"):
        list(find_images(folder, columns={"value": "none"}))


def test_weights_by_data_set(tmp_path):
    text = "image,split,dataset\n0.png,train,one\n1.png,train,two\n2.png,train,two\n3.png,train,two\n"
    records = list(find_images(table(tmp_path, text), dataset="rest"))
    build_store(records, tmp_path / "store", [], say=lambda text: None)
    data = StoreData(str(tmp_path / "store"), 8, 4, weights={"one": 3, "two": 1}, weights_by="dataset")
    dataset = data.crops()
    shown = Counter(dataset.rows[dataset.order(position)].dataset for position in range(64))
    assert shown == {"one": 48, "two": 16}


def test_participants_give_subgroups(tmp_path):
    for subject in ("sub-01", "sub-02"):
        save_nifti(tmp_path / subject / "anat" / f"{subject}_T1w.nii.gz", volume(int(subject[-1]))[0])
    text = "participant_id\tsex\tage\tsite\tscore\nsub-01\tF\t34\tA\t1.5\nsub-02\tM\t90\tB\tn/a\n"
    (tmp_path / "participants.tsv").write_text(text)
    first, second = find_images(tmp_path, columns={"value": "score"})
    assert dict(first.groups) == {"sex": "F", "age": "30-39"}
    assert (first.site, first.value, second.value) == ("A", 1.5, None)
    assert dict(second.groups)["age"] == "90+"


def test_a_store_from_before_is_opened_and_brought_up_to_date(tmp_path):
    """Its index has no columns for what was added to version 2 later."""
    store = store_of(volumes(tmp_path / "in", 4), tmp_path / "store")
    old = store.rows.table.drop_columns(list(ADDED))
    for path in (tmp_path / "store" / "index.arrow", tmp_path / "store" / "index.parquet"):
        path.unlink()
    pq.write_table(old, tmp_path / "store" / "index.parquet")
    opened = Store(tmp_path / "store")
    assert opened.rows == store.rows
    with pa.OSFile(str(tmp_path / "store" / "index.arrow"), "wb") as file, pa.ipc.new_file(file, old.schema) as writer:
        writer.write_table(old)
    assert Store(tmp_path / "store").rows == store.rows
    assert build_store(list(find_images(tmp_path / "in")), tmp_path / "store", [], say=lambda text: None)["new"] == 0


def test_records_come_back_from_the_disk_as_they_were(tmp_path):
    full = Record(
        "b", "raster", (tmp_path / "b.png",), 3, tmp_path / "m.png", 2, "p", "s", "x", "val", "CT", "no", ("n",)
    )
    full = full.__class__(**{**vars(full), "labels": (1, -1), "boxes": (0.1, 2.0, 3.0, 4.0, 1.0), "frame": "mm"})
    full = full.__class__(**{**vars(full), "groups": (("sex", "F"),), "value": 0.3, "tiling": Tiling(64)})
    records = [Record("a", "stack", (tmp_path / "1", tmp_path / "2")), full]
    with Spool.of(records, tmp_path) as spool:
        assert list(spool) == records
        pairs = [(one.name, two.name) for one in spool for two in spool]  # two at a time
        assert pairs == [("a", "a"), ("a", "b"), ("b", "a"), ("b", "b")]
    assert np.all([not path.name.startswith("tmp") for path in tmp_path.iterdir()])
