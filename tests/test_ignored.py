"""Voxels that nobody has annotated: from a label of the mask file to -1 in batches, counted nowhere on the way."""

import json

import numpy as np
import pytest
from PIL import Image
from stores import save_nifti, volume

from ssl_med.data.index import describe_layout, find_images
from ssl_med.data.module import StoreData
from ssl_med.data.readers import read, read_mask
from ssl_med.data.store import Store
from ssl_med.verbs.arms import _class_count
from ssl_med.verbs.groups import _size
from ssl_med.verbs.prepare import prepare


def nnunet(folder, labels):
    """Four volumes whose masks are 0, 1 and 2, and 3 in a corner that nobody looked at."""
    for number in range(4):
        image, mask = volume(number)
        mask[15:] = 3
        save_nifti(folder / "imagesTr" / f"case_{number}_0000.nii.gz", image)
        save_nifti(folder / "labelsTr" / f"case_{number}.nii.gz", mask)
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": labels}))
    return folder


@pytest.mark.parametrize("format", ["b2nd", "npy"])
def test_the_ignore_label_of_nnunet_is_no_class(tmp_path, format, capsys):
    folder = nnunet(tmp_path / "scans", {"background": 0, "liver": 1, "tumour": 2, "ignore": 3})
    prepare(folder, tmp_path / "store", format=format)
    assert "voxels of label 3 are kept as -1 and count nowhere" in capsys.readouterr().out
    store = Store(tmp_path / "store")
    assert store.facts["mask_names"] == {"0": "background", "1": "liver", "2": "tumour"}
    assert _class_count(store, "mask") == 3
    sources = {row.id: row for row in store.rows}
    for row in sources.values():
        assert row.mask_values == [-1, 0, 1, 2]
        mask = store.read(row, "masks")
        assert (mask == -1).sum() == 24 * 22 * 5  # (z, y, x) of 20 x 22 x 24
        assert (mask[..., 15:] == -1).all()
        part = store.read(row, "masks", [2, 3, 10], [6, 6, 10])
        assert (part == mask[:, 2:8, 3:9, 10:20]).all()
        assert (mask.ravel()[store.foreground(row)] > 0).all()
        assert _size(store, row) == pytest.approx((mask > 0).sum() * 0.003)
    module = StoreData(str(tmp_path / "store"), crop=16, batch_size=2, targets="mask", intensity="unit")
    batch = next(iter(module.whole("train", (8, 8, 8))))
    unknown = batch["mask"][0, 0] == -1
    assert unknown[:24, :22, 15:20].all()
    assert not unknown[:24, :22, :15].any()


def test_a_person_may_say_which_label_is_to_be_ignored(tmp_path):
    """Painted masks stay painted: black, white, and a grey that says nothing."""
    for number in range(4):
        picture, mask = np.full((20, 24), 10 * number, np.uint8), np.zeros((20, 24), np.uint8)
        picture[:, 12:], mask[:, 12:], mask[:5] = 200, 255, 128
        for part, array in (("images", picture), ("masks", mask)):
            (tmp_path / "scans" / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(tmp_path / "scans" / part / f"{number}.png")
    before = prepare(tmp_path / "scans", tmp_path / "store")
    after = prepare(tmp_path / "scans", tmp_path / "store", ignore_label=128)
    assert before["new"] == after["new"] == 4  # what is ignored changes what is stored
    assert prepare(tmp_path / "scans", tmp_path / "store", ignore_label=128)["new"] == 0
    store = Store(tmp_path / "store")
    for row in store.rows:
        assert row.mask_values == [-1, 0, 1]
        mask = store.read(row, "masks")[0]
        assert (mask[:5] == -1).all()
        assert (mask[5:, 12:] == 1).all()
        assert (mask[5:, :12] == 0).all()


def test_without_such_a_label_masks_are_as_they_were(tmp_path):
    folder = nnunet(tmp_path, {"background": 0, "liver": 1, "tumour": 2, "spleen": 3})
    layout, record = describe_layout(folder), next(find_images(folder))
    assert (layout.ignored_labels, layout.mask_names[3], record.ignored) == ((), "spleen", ())
    mask = read_mask(record, read(record))
    assert mask is not None
    assert sorted(np.unique(mask)) == [0, 1, 2, 3]
