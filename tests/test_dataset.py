"""Samples: a function of (seed, position), padded with a record of it, the same with any number of workers."""

from itertools import islice

import numpy as np
import pytest
import torch
from stores import pictures, store_of, volume, volumes

from ssl_med.data.dataset import CropDataset, WholeDataset
from ssl_med.data.module import StoreData
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

    def noted(self, row, part="images", *window):
        parts.append(part)
        return read(self, row, part, *window)

    monkeypatch.setattr(type(store), "read", noted)
    assert "mask" not in crops(store)[0]
    assert parts == ["images"]
    mask = crops(store, masks=True)[0]["mask"]
    assert parts == ["images", "images", "masks"]
    assert mask.dtype == torch.int64
    assert mask.shape == (1, 8, 8, 8)


def test_image_and_mask_show_the_same_window(store):
    """The box of the mask is bright in the image, wherever the crop lies."""
    dataset = crops(store, foreground=1.0, masks=True)
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
        dataset = crops(store, (1, 1, 1), foreground=foreground, masks=True)
        shares.append(np.mean([bool((dataset[p]["mask"] > 0).any()) for p in range(200)]))
    assert shares[0] < 0.15
    assert 0.35 < shares[1] < 0.7
    assert shares[2] == 1


def test_padding_lies_behind_and_is_marked(store):
    sample = crops(store, (32, 16, 32), masks=True)[0]
    assert sample["image"].shape == sample["valid"].shape == sample["mask"].shape == (1, 32, 16, 32)
    expected = torch.zeros(1, 32, 16, 32, dtype=torch.bool)
    expected[:, :24, :, :20] = True
    assert torch.equal(sample["valid"], expected)
    assert (sample["image"][~expected] == 0).all()
    assert (sample["mask"][~expected] == -1).all()
    assert (sample["mask"][expected] >= 0).all()
    assert "valid" not in crops(store, (16, 16, 16))[0]


def test_whole_images_are_padded_to_least_and_multiple(store):
    dataset = WholeDataset(store, store.rows, "auto", [16, 30, 16], [8, 8, 8], masks=True)
    assert dataset.one_size()
    sample = dataset[2]
    assert sample["image"].shape == (1, 24, 32, 24)
    assert sample["id"] == store.rows[2].id
    image = store.rows[2].scale("auto")(store.read(store.rows[2]))
    assert np.array_equal(sample["image"][:, :24, :22, :20], image)
    assert np.array_equal(sample["mask"][0, :24, :22, :20], volume(2)[1].transpose(2, 1, 0))
    assert int(sample["valid"].sum()) == image.size


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more processes than cores, on purpose
@pytest.mark.parametrize("start", [0, 3])
def test_loader_processes_change_nothing(store, start):
    def batches(workers: int) -> list[dict]:
        data = StoreData(str(store.folder), 8, 4, num_workers=workers, seed=2)
        data.trainer = type(
            "T", (), {"global_step": start, "accumulate_grad_batches": 1, "global_rank": 0, "world_size": 1}
        )()
        return list(islice(data.train_dataloader(), 4))

    alone, spread = batches(0), batches(2)
    assert all(same(a, b) for a, b in zip(alone, spread, strict=True))
    data = StoreData(str(store.folder), 8, 4, seed=2)
    dataset = data.crops()
    assert same(alone[1], dataset.collate([dataset[p] for p in range(4 * (start + 1), 4 * (start + 2))]))


def test_accumulation_and_rank_take_their_own_positions(store):
    data = StoreData(str(store.folder), 8, 4)
    data.trainer = type("T", (), {"global_step": 3, "accumulate_grad_batches": 2, "global_rank": 1, "world_size": 2})()
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
