"""An image that breaks between prepare and training is left out and named by its id; nothing else changes."""

import json

import pyarrow.parquet as pq
import pytest
from stores import pictures, store_of, volumes

from ssl_med.cli import main
from ssl_med.data.module import StoreData
from ssl_med.data.store import Store
from ssl_med.errors import UserError
from ssl_med.fit import lock_data
from ssl_med.verbs.predict import _other_grid, _target


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_left_out_and_listed(tmp_path, workers) -> None:
    pictures(tmp_path / "scans")
    store: Store = store_of(tmp_path / "scans", tmp_path / "store")
    row = next(row for row in store.rows if row.split == "train")
    (tmp_path / "store" / "images" / f"{row.id}.b2nd").write_bytes(b"not what was written")
    run = tmp_path / "run"
    command = ["pretrain", "smoke/mae_2d", "--data", tmp_path / "store", "--out", run, "--trainer.max_steps", 6]
    quiet = ["--watch.probes", 0, "--watch.health", 0, "--watch.pictures", 0, "--data.num_workers", workers]
    assert main([str(part) for part in [*command, *quiet]]) == 0
    table = pq.read_table(run / "quarantine.parquet").to_pylist()
    assert [line["id"] for line in table] == [row.id]
    assert str(tmp_path) not in table[0]["reason"]
    assert json.loads((run / "run.json").read_text())["step"] == 6
    lock = pq.read_table(run / "manifest.lock")
    train = {row.id for row in store.rows if row.split == "train"}
    assert set(lock.column("id").to_pylist()) == train
    if workers == 0:
        assert f"image {row.id} is left out" in (run / "train.log").read_text()


def test_what_a_position_gives_does_not_depend_on_what_was_met_before(tmp_path) -> None:
    """A flipped bit is found only by the crops that touch it; the others of that image are used by every process."""
    volumes(tmp_path / "scans", 6, masks=False)
    store = store_of(tmp_path / "scans", tmp_path / "store")
    rows = store.rows.where(split="train")
    file = tmp_path / "store" / "images" / f"{rows[0].id}.b2nd"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    data = StoreData(str(tmp_path / "store"), crop=8, seed=3)
    together, apart = data.crops(), [data.crops() for _ in range(2)]
    for position in range(40):
        expected = together[position]["id"]
        assert apart[position % 2][position]["id"] == expected
        assert data.crops()[position]["id"] == expected


def test_a_run_does_not_go_on_with_other_images(tmp_path) -> None:
    pictures(tmp_path / "scans", 20)
    store_of(tmp_path / "scans", tmp_path / "store")
    (tmp_path / "run").mkdir()
    lock_data(StoreData(str(tmp_path / "store"), crop=8), tmp_path / "run")
    lock_data(StoreData(str(tmp_path / "store"), crop=8), tmp_path / "run")  # the same images: goes on
    pictures(tmp_path / "scans", 24)
    store_of(tmp_path / "scans", tmp_path / "store")
    with pytest.raises(UserError, match="has other training images than when the run"):
        lock_data(StoreData(str(tmp_path / "store"), crop=8), tmp_path / "run")


def test_predictions_of_different_sources_do_not_overwrite_each_other(tmp_path) -> None:
    written: set = set()
    names = ["a.npz#0", "a.npz#1", "b.nii.gz", "b.mha", "slide.svs#3/7", "deep/c.nii"]
    targets = [_target(name, tmp_path, ".nii.gz", written).relative_to(tmp_path).as_posix() for name in names]
    assert targets == [
        "a_0.nii.gz",
        "a_1.nii.gz",
        "b.nii.gz",
        "b.mha.nii.gz",
        "slide_3_7.nii.gz",
        "deep/c.nii.gz",
    ]


def test_a_task_of_another_grid_does_not_predict() -> None:
    assert _other_grid({"input": {"prepared": {"spacing": None, "orientation": "RAS"}}}) == ""
    assert "2.0 mm" in _other_grid({"input": {"prepared": {"spacing": 2.0}}})
    assert "LPS" in _other_grid({"input": {"prepared": {"spacing": None, "orientation": "LPS"}}})
    assert "crop_mm" in _other_grid({"input": {"fixed_spacing_mm": [1.0, 1.0, 1.0]}})


def test_hashes_are_checked_unless_told_not_to(tmp_path) -> None:
    volumes(tmp_path / "scans", 4, masks=False)
    store_of(tmp_path / "scans", tmp_path / "store")
    assert StoreData(str(tmp_path / "store"), crop=8).store.verify
    assert not StoreData(str(tmp_path / "store"), crop=8, verify=False).store.verify
