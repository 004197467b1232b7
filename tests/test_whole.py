"""Evaluation sees every image or none: damage is named with what to do, and loader processes change no result."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from stores import build, pictures, store_of, volumes

from ssl_med.cli import main
from ssl_med.data.dataset import DamagedImage
from ssl_med.data.ledger import Ledger, images_left_out
from ssl_med.data.module import StoreData
from ssl_med.data.soundness import is_sound
from ssl_med.data.store import Store
from ssl_med.verbs.prepare import prepare

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def flip(store: Store, name: str) -> Path:
    """One bit of the voxels of an image, in the middle of its file's first chunk."""
    path = store.folder / "images" / f"{name}.b2nd"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(bytes(content))
    return path


@pytest.fixture
def store(tmp_path) -> Store:
    return store_of(volumes(tmp_path / "in", 10), tmp_path / "store")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_ends_an_evaluation_with_advice(store, tmp_path, workers):
    row = store.rows.where(split="test")[1]
    flip(store, row.id)
    module = StoreData(str(store.folder), 8, 4, targets="mask", num_workers=workers)
    module.ledger = tmp_path / "ledger.jsonl"
    with pytest.raises(DamagedImage) as caught:
        list(module.whole("test", [8, 8, 8]))
    told = str(caught.value)
    assert told.startswith(f"{store.folder}: image {row.id} is damaged (images {row.id}: ")
    assert told.endswith("run `ssl-med prepare --check` again with the same folders, which makes it anew")
    assert "Traceback" not in told
    assert "\n" not in told
    assert list(images_left_out(module.ledger)) == [row.id]
    training = Ledger(module.ledger)
    training.refresh()
    assert training.left_out == {}  # it uses up nothing of what a training may leave out


def test_crops_of_a_test_split_are_not_replaced(store):
    row = store.rows.where(split="test")[0]
    flip(store, row.id)
    dataset = StoreData(str(store.folder), 24, targets="mask").crops("test")
    position = next(n for n in range(20) if dataset.rows[dataset.order(n)].id == row.id)
    with pytest.raises(DamagedImage, match=row.id):
        dataset[position]


def test_a_check_makes_damaged_files_anew(tmp_path):
    source, out = volumes(tmp_path / "in", 4), tmp_path / "store"
    store = store_of(source, out)
    before = {path: path.read_bytes() for path in (out / "images").iterdir()}
    path = flip(store, store.rows[1].id)
    assert not is_sound(path, store.rows[1].seal)
    assert build(source, out)["new"] == 0  # a flipped bit changes neither name nor size nor time of the source
    assert build(source, out, check=True)["new"] == 1
    assert {path: path.read_bytes() for path in (out / "images").iterdir()} == before
    assert prepare(source, out, check=True)["new"] == 0


@pytest.mark.parametrize("targets", ["mask", None])
def test_loader_processes_give_the_same_images_in_the_same_order(store, targets):
    found = []
    for workers in (0, 2):
        module = StoreData(str(store.folder), 8, 4, targets=targets, num_workers=workers)
        loader = module.whole("train", [8, 8, 8])
        assert loader.num_workers == workers
        assert loader.pin_memory == torch.cuda.is_available()
        found.append(list(loader))
    assert len(found[0]) == len(found[1]) > 1
    for one, other in zip(*found, strict=True):
        assert one["id"] == other["id"]
        assert all(torch.equal(one[name], other[name]) for name in one if isinstance(one[name], torch.Tensor))


def test_no_more_loader_processes_than_batches_and_none_without_room(store, monkeypatch, caplog):
    module = StoreData(str(store.folder), 8, 8, num_workers=2)
    assert module.whole("val", [8, 8, 8]).num_workers == 1  # both validation images in one batch
    needed = 2 * 2 * 8 * module.whole("val", [8, 8, 8]).dataset.largest()
    for free, workers in ((needed - 1, 0), (needed, 1)):
        monkeypatch.setattr("ssl_med.data.module.free_shared_memory", lambda free=free: free)
        assert module.whole("val", [8, 8, 8]).num_workers == workers
    assert caplog.text.count("no loader processes: ") == 1


def test_verbs_say_which_image_is_damaged(tmp_path, capsys):
    store = store_of(pictures(tmp_path / "in"), tmp_path / "store")
    run, out, data = str(tmp_path / "run"), tmp_path / "out", ["--data", str(store.folder)]
    quiet = ["--watch.probes", "1", "--watch.health", "0", "--watch.pictures", "0", "--trainer.max_steps", "1"]
    seen = store.rows.where(split="val")[0]
    flip(store, seen.id)
    assert main(["pretrain", "smoke/mae_2d", *data, "--out", run, *quiet]) == 0  # it can do without its probes
    log = (tmp_path / "run" / "train.log").read_text()
    assert "no probes in this run: " in log
    assert f"image {seen.id} is damaged" in log
    assert str(tmp_path) not in log
    flip(store, seen.id)  # repaired
    row = store.rows.where(split="test")[0]
    flip(store, row.id)
    tune = ["finetune", "smoke/classify", *data, "--init", run, "--out", str(out), "--trainer.max_steps", "1"]
    for words in (["embed", run, *data, "--out", str(tmp_path / "a.npz")], tune):
        assert main(words) == 2
        told = capsys.readouterr().err
        assert f"image {row.id} is damaged" in told
        assert "prepare --check" in told
    table = pq.read_table(next(out.glob("pretrained*")) / "quarantine.parquet").to_pylist()
    assert [line["id"] for line in table] == [row.id]
