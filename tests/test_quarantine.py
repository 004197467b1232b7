"""An image that breaks between prepare and training is left out and named by its id; nothing else changes."""

import json

import pyarrow.parquet as pq
import pytest
from stores import pictures, store_of

from ssl_med.cli import main
from ssl_med.data.store import Store


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
