"""Samples: a function of (seed, position), padded with a record of it, the same with any number of workers."""

import shutil
from itertools import islice

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from stores import pictures, store_of, volume, volumes

from ssl_med.data.crops import CropAffine
from ssl_med.data.dataset import CropDataset
from ssl_med.data.module import StoreData
from ssl_med.data.rows import Rows
from ssl_med.data.sampler import GlobalOrder
from ssl_med.data.store import Store
from ssl_med.data.whole import WholeDataset
from ssl_med.errors import UserError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    return store_of(volumes(folder / "in", 10), folder / "store")


def crops(store, crop=(8, 8, 8), seed=0, **arguments) -> CropDataset:
    return CropDataset(store, store.rows, list(crop), "auto", seed, **arguments)


def same(first: dict, second: dict) -> bool:
    if first.keys() != second.keys():
        return False
    pairs = [(first[name], second[name]) for name in first]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_a_sample_is_a_function_of_seed_and_position(store):
    first, second = crops(store), crops(store)
    expected = [first[position] for position in range(12)]
    for position in (7, 0, 11, 7):
        assert same(second[position], expected[position])
    others = [crops(store, seed=1)[position] for position in range(12)]
    assert not any(same(a, b) for a, b in zip(expected, others, strict=True))


def test_one_pass_shows_every_image_once_and_the_next_other_crops(store):
    dataset, count = crops(store), len(store.rows)
    first, second = ({s["id"]: s for s in (dataset[p] for p in range(n, n + count))} for n in (0, count))
    assert set(first) == set(second) == {row.id for row in store.rows}
    assert sum(torch.equal(first[i]["image"], second[i]["image"]) for i in first) <= 1


def test_keys_are_those_of_the_positions(store):
    dataset = crops(store)
    batch, alone = dataset.collate([dataset[4], dataset[9]]), dataset.collate([dataset[9]])
    assert batch["key"][1] == alone["key"][0]
    assert batch["key"][0] != batch["key"][1]
    assert "position" not in batch


def test_a_crop_is_a_scaled_slice_of_its_image(store):
    sample = crops(store)[3]
    row = next(r for r in store.rows if r.id == sample["id"])
    whole = row.scale("auto")(store.read(row))
    windows = np.lib.stride_tricks.sliding_window_view(whole[0], (8, 8, 8)).reshape(-1, 512)
    assert (windows == sample["image"].numpy().reshape(1, 512)).all(1).any()
    assert sample["image"].dtype == torch.float32
    assert sample["spacing"].tolist() == row.spacing


def test_masks_are_read_only_when_asked(store, monkeypatch):
    read, parts = type(store).read, []

    def noted(self, row, part="images", *window, **how):
        parts.append(part)
        return read(self, row, part, *window, **how)

    monkeypatch.setattr(type(store), "read", noted)
    assert "mask" not in crops(store)[0]
    assert parts == ["images"]
    mask = crops(store, targets="mask")[0]["mask"]
    assert parts == ["images", "images", "masks"]
    assert mask.dtype == torch.int64
    assert mask.shape == (1, 8, 8, 8)


def test_image_and_mask_show_the_same_window(store):
    """The box of the mask is bright in the image, wherever the crop lies."""
    dataset = crops(store, foreground=1.0, targets="mask")
    for position in range(20):
        sample = dataset[position]
        inside = sample["mask"] > 0
        assert inside.any()
        if not inside.all():
            assert sample["image"][inside].mean() > sample["image"][~inside].mean() + 1


def test_the_share_of_crops_with_foreground(store):
    """A crop of one voxel shows a label by chance in about one of twenty cases."""
    shares = []
    for foreground in (0.0, 0.5, 1.0):
        dataset = crops(store, (1, 1, 1), foreground=foreground, targets="mask")
        shares.append(np.mean([bool((dataset[p]["mask"] > 0).any()) for p in range(200)]))
    assert shares[0] < 0.15
    assert 0.35 < shares[1] < 0.7
    assert shares[2] == 1


def test_padding_lies_behind_and_is_marked(store):
    sample = crops(store, (32, 16, 32), targets="mask")[0]
    assert sample["image"].shape == sample["valid"].shape == sample["mask"].shape == (1, 32, 16, 32)
    expected = torch.zeros(1, 32, 16, 32, dtype=torch.bool)
    expected[:, :24, :, :20] = True
    assert torch.equal(sample["valid"], expected)
    row = next(r for r in store.rows if r.id == sample["id"])
    assert (sample["image"][~expected] == row.scale("auto").background).all()  # what air looks like, not the mean
    assert (sample["mask"][~expected] == -1).all()
    assert (sample["mask"][expected] >= 0).all()
    assert "valid" not in crops(store, (16, 16, 16))[0]


def test_whole_images_are_padded_to_least_and_multiple(store):
    dataset = WholeDataset(store, store.rows, "auto", [16, 30, 16], [8, 8, 8], targets="mask")
    assert dataset.one_size()
    sample = dataset[2]
    assert sample["image"].shape == (1, 24, 32, 24)
    assert sample["id"] == store.rows[2].id
    image = store.rows[2].scale("auto")(store.read(store.rows[2]))
    assert np.array_equal(sample["image"][:, :24, :22, :20], image)
    assert np.array_equal(sample["mask"][0, :24, :22, :20], volume(2)[1].transpose(2, 1, 0))
    assert int(sample["valid"].sum()) == image.size


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more processes than cores, on purpose
@pytest.mark.parametrize(("start", "workers"), [(0, 1), (3, 4)])
def test_loader_processes_change_nothing(store, start, workers):
    def batches(workers: int) -> list[dict]:
        data = StoreData(str(store.folder), 8, 4, num_workers=workers, seed=2, crops_per_image=2, window=3)
        data.trainer = type(
            "T",
            (),
            {"global_step": start, "accumulate_grad_batches": 1, "global_rank": 0, "world_size": 1, "num_nodes": 1},
        )()
        return list(islice(data.train_dataloader(), 4))

    alone, spread = batches(0), batches(workers)
    assert all(same(a, b) for a, b in zip(alone, spread, strict=True))
    dataset = StoreData(str(store.folder), 8, 4, seed=2, crops_per_image=2, window=3).crops()
    assert same(alone[1], dataset.collate([dataset[p] for p in range(4 * (start + 1), 4 * (start + 2))]))


def test_accumulation_and_rank_take_their_own_positions(store):
    data = StoreData(str(store.folder), 8, 4)
    data.trainer = type(
        "T", (), {"global_step": 3, "accumulate_grad_batches": 2, "global_rank": 1, "world_size": 2, "num_nodes": 1}
    )()
    loader = data.train_dataloader()
    assert list(islice(loader.batch_sampler, 2)) == [[26, 27], [30, 31]]


def test_splits_and_targets(store, tmp_path):
    data = StoreData(str(store.folder), 8, targets="mask", labels=1, labels_seed=1)
    assert len(data.rows("train")) == 2  # the two images of one patient
    assert len(StoreData(str(store.folder), 8).rows("train")) == 6
    assert [len(data.rows(split)) for split in ("val", "test")] == [2, 2]
    with pytest.raises(UserError, match="no image with a label in split 'train'"):
        StoreData(str(store.folder), 8, targets="label").rows("train")
    with pytest.raises(UserError, match="its splits: test, train, val"):
        data.rows("training")
    with pytest.raises(UserError, match="one size for each of the 3 axes"):
        StoreData(str(store.folder), [8, 8])


def test_labels_of_pictures(tmp_path):
    store = store_of(pictures(tmp_path / "in", 10), tmp_path / "store")
    batch = next(iter(StoreData(str(store.folder), 32, 10, targets="label").whole("train", (8, 8))))
    assert batch["image"].shape == (6, 1, 40, 40)
    assert sorted(batch["label"].tolist()) == [0, 0, 0, 1, 1, 1]
    assert batch["id"] == [row.id for row in store.rows if row.split == "train"]


@pytest.fixture
def damaged(store, tmp_path):
    """A copy of the store in which one byte of one image, and one whole file, are not what was written."""
    shutil.copytree(store.folder, tmp_path / "store")
    flipped, missing = (tmp_path / "store" / "images" / f"{store.rows[n].id}.b2nd" for n in (1, 4))
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    missing.unlink()
    return Store(tmp_path / "store")


def test_damaged_images_are_replaced_by_the_next_ones(damaged, caplog):
    dataset, order = crops(damaged, most_damaged=0.5), GlobalOrder(10, 0)
    bad = {damaged.rows[n].id for n in (1, 4)}
    for position in range(20):
        rows = [damaged.rows[order(position, attempt)].id for attempt in range(10)]
        assert dataset[position]["id"] == next(row for row in rows if row not in bad)
    assert dataset.damaged == bad
    assert len(caplog.records) == 2  # each once
    assert all(str(damaged.folder) not in record.getMessage() for record in caplog.records)
    assert {row for row in bad if row in caplog.text} == bad
    fresh = crops(damaged, most_damaged=0.5)  # that has seen none of the others
    assert all(same(fresh[position], dataset[position]) for position in (19, 3, 8))


def test_too_many_damaged_images_stop_the_training(damaged):
    dataset = crops(damaged)
    with pytest.raises(UserError, match="2 of 10 images are damaged"):
        [dataset[position] for position in range(10)]


def test_one_image_in_a_hundred_may_be_damaged(store):
    dataset = crops(store)
    dataset.rows = Rows.of([store.rows[0]] * 300)
    for number in range(3):
        dataset.ledger.note(f"image {number}", "broken")
    dataset._check_share()
    dataset.ledger.note("image 3", "broken")
    with pytest.raises(UserError, match="4 of 300 images are damaged"):
        dataset._check_share()


def test_turned_crops_show_the_same_of_image_and_mask(store):
    dataset = crops(store, affine=CropAffine(30.0, (0.7, 1.4)), foreground=1.0, targets="mask")
    straight = crops(store, foreground=1.0, targets="mask")
    for position in range(10):
        sample = dataset[position]
        inside = sample["mask"] > 0
        assert torch.equal(sample["mask"] >= 0, sample["valid"])
        assert inside.any()
        seen = ~inside & sample["valid"]
        if seen.sum() > 50:
            assert sample["image"][inside].mean() > sample["image"][seen].mean() + 0.8
        assert not torch.equal(sample["image"], straight[position]["image"])
        assert same(sample, dataset[position])


def test_crops_in_millimetres_have_one_spacing(store):
    data = StoreData(str(store.folder), [8, 8, 8], 4, crop_mm=[24.0, 12.0, 8.0], targets="mask")
    batch = next(iter(data.train_dataloader()))
    assert batch["spacing"].tolist() == [[3.0, 1.5, 1.0]] * 4
    assert batch["image"].shape == (4, 1, 8, 8, 8)
    whole = next(iter(data.whole("val", [8, 8, 8])))
    row = data.rows("val")[0]
    assert row.spacing == [2.0, 1.5, 1.0]
    assert whole["image"].shape[2:] == (16, 24, 24)  # 24 x 2 / 3, 22 and 20 up to multiples of 8
    assert whole["valid"][0].sum() == 16 * 22 * 20
    image = data.store.read(row).astype(np.float64)
    places = np.indices((16, 22, 20)).astype(float)
    places[0] = (places[0] + 0.5) * 1.5 - 0.5  # voxels fill their size: the outer faces agree
    expected = map_coordinates(image[0], places, order=1)
    low, high = row.scale("auto").low, row.scale("auto").high
    scaled = (expected.clip(low, high) - row.scale("auto").shift) * row.scale("auto").factor
    assert np.abs(whole["image"][0, 0, :16, :22, :20].numpy() - scaled).max() < 1e-5


def test_a_batch_in_use_is_not_written_over(store):
    dataset = crops(store)
    held = dataset.__getitems__([0, 1])["image"]
    copy = held.clone()
    other = dataset.__getitems__([2, 3])["image"]
    assert torch.equal(held, copy)
    view, place = held[0], held.data_ptr()
    del held
    assert dataset.__getitems__([4, 5])["image"].data_ptr() not in (place, other.data_ptr())  # the view holds it
    assert torch.equal(view, copy[0])
    del view
    assert dataset.__getitems__([4, 5])["image"].data_ptr() == place or len(dataset._buffers._arrays) > 2


def test_memory_of_a_batch_is_used_again(store):
    dataset = crops(store)
    places = set()
    for position in range(8):
        places.add(dataset.__getitems__([position])["image"].data_ptr())
    assert len(places) == 1
