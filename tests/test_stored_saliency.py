"""Saliency maps made once by ``prepare``: what is stored, how a batch carries them, and who reads them."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from dicom_files import PIXELS, dicom_slice, saved_all
from jaxtyping import TypeCheckError
from PIL import Image
from stores import build, pictures, store_of, volumes

from ssl_med.data import ingest, maps
from ssl_med.data.index import plan
from ssl_med.data.maps import MEASURES, saliency_map
from ssl_med.data.mixed import MixedData
from ssl_med.data.module import StoreData
from ssl_med.data.readers import read
from ssl_med.data.settings import Settings
from ssl_med.data.store import Store
from ssl_med.errors import UserError
from ssl_med.tasks import MAE, SSiT
from ssl_med.tasks.boxes import SaliencyBoxes
from ssl_med.tasks.saliency import Entropy, FineGrained, Foreground, Gradient, SpectralResidual, StoredSaliency
from ssl_med.transforms import Compose, Flip
from ssl_med.verbs.prepare import prepare

FINE = Settings(saliency="fine_grained")
PROVIDERS = {
    "fine_grained": FineGrained(),
    "spectral_residual": SpectralResidual(),
    "gradient": Gradient(),
    "entropy": Entropy(),
    "foreground": Foreground(),
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("space", [(24, 30), (12, 16, 14)], ids=len)
def test_a_stored_map_is_that_of_the_provider_of_its_name(measure, space) -> None:
    array = np.random.default_rng(0).normal(100, 30, (1, *space)).astype(np.float32)
    low, high = np.percentile(array, [1, 99])
    image = torch.from_numpy(array.clip(low, high))[None]
    found = saliency_map(array, measure, float(low), float(high))
    assert (found.dtype, found.shape) == (np.uint8, (1, *space))
    np.testing.assert_allclose(
        found[0] / 255, PROVIDERS[measure]({"image": image})[0, 0].numpy(), atol=0.5 / 255 + 1e-6
    )


def test_a_large_image_is_measured_smaller(monkeypatch) -> None:
    array = np.zeros((1, 40, 44), np.float32)
    array[:, 8:16, 24:32] = 1
    whole = saliency_map(array, "foreground", 0, 1)
    monkeypatch.setattr(maps, "_MOST", 500)
    reduced = saliency_map(array, "foreground", 0, 1)
    assert reduced.shape == whole.shape
    assert np.array_equal(reduced > 127, whole > 127)
    assert not np.array_equal(reduced, whole)  # it was enlarged linearly


@pytest.mark.parametrize("made", [pictures, volumes])
def test_maps_are_cut_with_their_images_and_turned_with_them(tmp_path, made) -> None:
    store = store_of(made(tmp_path / "in"), tmp_path / "store", settings=FINE)
    data = StoreData(str(store.folder), crop=12, batch_size=4, crops_per_image=1)
    dataset = data.crops()
    for position in range(4):
        sample, row = dataset[position], dataset.rows[dataset.order(position)]
        region = dataset._region(row, position)
        window = tuple(slice(a, a + n) for a, n in zip(region.corner, region.read, strict=True))
        whole = store.read(row, "saliency")
        np.testing.assert_allclose(sample["saliency"][0].numpy(), whole[(0, *window)] / 255, atol=1e-6)
    turned = StoreData(str(store.folder), crop=12, batch_size=4, affine={"rotate": 30.0}).crops()
    affine = [turned[position]["saliency"] for position in range(4)]
    assert all(((map_ >= 0) & (map_ <= 1)).all() for map_ in affine)
    assert not torch.equal(affine[0], dataset[0]["saliency"])


def test_a_view_moves_image_and_stored_map_alike(tmp_path) -> None:
    store = store_of(pictures(tmp_path / "in"), tmp_path / "store", settings=FINE)
    batch = next(iter(StoreData(str(store.folder), crop=16, batch_size=8).loader()))
    turned = Compose([Flip(probability_per_axis=1.0, axes=[1])])(batch)
    assert torch.equal(turned["image"], batch["image"].flip(-1))
    assert torch.equal(turned["saliency"], batch["saliency"].flip(-1))


def test_only_pretraining_gets_maps_and_a_store_without_them_gives_none(tmp_path) -> None:
    source = pictures(tmp_path / "in")
    with_maps, without = (
        store_of(source, tmp_path / n, settings=s).folder for n, s in (("a", FINE), ("b", Settings()))
    )
    batches = {
        (folder, targets): next(iter(StoreData(str(folder), crop=16, batch_size=4, targets=targets).loader()))
        for folder in (with_maps, without)
        for targets in (None, "label")
    }
    assert {key for key, batch in batches.items() if "saliency" in batch} == {(with_maps, None)}
    mixed = MixedData([StoreData(str(f), crop=16, batch_size=4) for f in (with_maps, without)])
    assert "saliency" not in next(iter(mixed.loader()))


def test_the_option_is_idempotent_and_a_change_of_it_is_seen(tmp_path) -> None:
    source, folder = pictures(tmp_path / "in", 4), tmp_path / "store"
    assert build(source, folder)["new"] == 4
    assert build(source, folder, settings=FINE)["new"] == 4
    assert build(source, folder, settings=FINE)["new"] == 0
    fine = [Store(folder).read(row, "saliency") for row in Store(folder).rows]
    next((folder / "saliency").iterdir()).unlink()
    assert build(source, folder, settings=FINE)["new"] == 1  # a lost map is made again
    assert all(
        np.array_equal(a, Store(folder).read(row, "saliency")) for a, row in zip(fine, Store(folder).rows, strict=True)
    )
    assert build(source, folder, settings=Settings(saliency="gradient"))["new"] == 4
    assert not np.array_equal(fine[0], Store(folder).read(Store(folder).rows[0], "saliency"))
    fingerprint = Store(folder).fingerprint()
    assert build(source, folder)["new"] == 4
    assert list((folder / "saliency").iterdir()) == []
    assert Store(folder).fingerprint() == fingerprint  # the images are the same


def test_constant_maps_are_counted_and_told(tmp_path, capsys, monkeypatch) -> None:
    source = pictures(tmp_path / "in", 4)
    monkeypatch.setattr(ingest, "saliency_map", lambda array, *_: np.zeros(array.shape, np.uint8))
    assert prepare(source, tmp_path / "store", saliency="fine_grained")["flat_maps"] == 4
    assert "4 saliency maps are constant" in capsys.readouterr().out
    assert sum(maps.FLAT in row.warnings for row in Store(tmp_path / "store").rows) == 4
    with pytest.raises((UserError, TypeCheckError), match="fine_grained"):
        prepare(source, tmp_path / "other", saliency="attention")


def test_tasks_take_the_stored_map_and_compute_one_where_there_is_none(tiny_vit, make_batch) -> None:
    batch = make_batch((16, 16))
    stored = {**batch, "saliency": torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))}
    readers = (SSiT(tiny_vit(2), hidden_dim=8, out_dim=8).saliency, SaliencyBoxes().saliency)
    for saliency in (*readers, MAE(tiny_vit(2), decoder_dim=8, decoder_heads=2, mask="saliency").saliency):
        assert torch.equal(saliency(stored), stored["saliency"])
        assert torch.equal(saliency(batch), FineGrained()(batch))
    with pytest.raises(UserError, match="prepare the store with --saliency"):
        StoredSaliency()(batch)
    explicit = SSiT(tiny_vit(2), saliency=Gradient(), hidden_dim=8, out_dim=8)  # what is asked for is what is used
    assert torch.equal(explicit.measure(stored)[0]["saliency"], Gradient()(batch))


def test_streams_and_other_formats_hold_maps_too(tmp_path) -> None:
    source = volumes(tmp_path / "in", 2)
    plain = store_of(source, tmp_path / "plain", settings=FINE)
    bare = store_of(source, tmp_path / "bare", settings=Settings(saliency="fine_grained", format="npy"))
    stores = [bare, Store(plain.to_litdata(tmp_path / "stream"))]
    expected = plain.read(plain.rows[0], "saliency")
    for store in stores:
        assert np.array_equal(store.read(store.rows[0], "saliency"), expected)


def read_shape(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.height, image.width


def save_png(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.mark.parametrize("kind", ["bytes", "shares", "binary"])
def test_maps_of_a_person_are_stored_as_they_are(tmp_path, kind) -> None:
    source = pictures(tmp_path / "in", 4)
    given = {}
    for path in sorted(source.rglob("*.png")):
        values = np.random.default_rng(len(given)).integers(0, 256, read_shape(path)).astype(np.uint8)
        place = tmp_path / "maps" / path.relative_to(source)
        if kind == "binary":
            values = (values > 127).astype(np.uint8)
            save_png(place, values)
        elif kind == "bytes":
            save_png(place, values)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            np.save(place.with_suffix(".npy"), (values / 255).astype(np.float32))
        given[values.shape, values.tobytes()] = values * (255 if kind == "binary" else 1)
    counts = prepare(source, tmp_path / "store", saliency=str(tmp_path / "maps"))
    store = Store(tmp_path / "store")
    assert (counts["images"], counts["flat_maps"]) == (4, 0)
    stored = sorted(store.read(row, "saliency")[0].tobytes() for row in store.rows)
    assert stored == sorted(values.tobytes() for values in given.values())
    assert prepare(source, tmp_path / "store", saliency=str(tmp_path / "maps"))["new"] == 0
    batch = next(iter(StoreData(str(store.folder), crop=16, batch_size=4).loader()))
    assert StoredSaliency()(batch).amax() > 0.5


def test_a_changed_map_does_its_image_again_and_a_missing_one_is_named(tmp_path) -> None:
    source, folder = pictures(tmp_path / "in", 4), tmp_path / "maps"
    paths = sorted(source.rglob("*.png"))
    for path in paths:
        save_png(folder / path.relative_to(source), np.full(read_shape(path), 9, np.uint8))
    assert prepare(source, tmp_path / "store", saliency=str(folder))["flat_maps"] == 4
    bright = np.eye(*read_shape(paths[0]), dtype=np.uint8) * 255
    save_png(folder / paths[0].relative_to(source), bright)
    counts = prepare(source, tmp_path / "store", saliency=str(folder))
    assert (counts["new"], counts["flat_maps"]) == (1, 3)
    (folder / paths[1].relative_to(source)).unlink()
    refused = prepare(source, tmp_path / "store", saliency=str(folder))["refused"]
    assert refused == {"saliency: no map": 1}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((5, 7), np.uint8), "saliency: shape (5, 7) where the image has"),
        (np.full((24, 24), -1, np.float32), "values from -1"),
        (np.full((24, 24), 3.5, np.float32), "values from 3.5"),
        (np.full((24, 24), 300, np.int16), "values from 300"),
    ],
)
def test_a_map_that_says_something_else_is_refused(tmp_path, values, words) -> None:
    source, folder = tmp_path / "in", tmp_path / "maps"
    for number in range(2):
        save_png(source / f"{number}.png", np.random.default_rng(number).integers(0, 255, (24, 24)).astype(np.uint8))
    folder.mkdir()
    np.save(folder / "0.npy", values)
    save_png(folder / "1.png", np.zeros((24, 24), np.uint8))
    refused = prepare(source, tmp_path / "store", saliency=str(folder))["refused"]
    assert [count for reason, count in refused.items() if words in reason] == [1]


def test_the_map_of_a_volume_follows_its_spacing(tmp_path) -> None:
    source, folder = tmp_path / "in", tmp_path / "maps"
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    array = np.random.default_rng(0).normal(100, 30, (12, 16, 10)).astype(np.float32)
    ramp = np.broadcast_to(np.linspace(0, 1, 10, dtype=np.float32), array.shape)
    for place, voxels in ((source, array), (folder, ramp)):
        place.mkdir()
        nibabel.save(nibabel.Nifti1Image(voxels, affine), place / "a.nii.gz")
    prepare(source, tmp_path / "store", saliency=str(folder), spacing=1.0)
    store = Store(tmp_path / "store")
    found = store.read(store.rows[0], "saliency")
    assert found.shape[1:] == store.read(store.rows[0]).shape[1:] == (20, 16, 12)
    assert (np.diff(found[0, :, 0, 0].astype(int)) >= 0).all()
    assert found.max() == 255
    moved = nibabel.Nifti1Image(ramp, np.diag([1.0, 1.0, 3.0, 1.0]))
    nibabel.save(moved, folder / "a.nii.gz")
    with pytest.raises(UserError, match="1 of 1"):
        prepare(source, tmp_path / "store", saliency=str(folder), spacing=1.0)


def test_a_folder_of_maps_lies_apart_and_is_there(tmp_path) -> None:
    source = pictures(tmp_path / "in", 4)
    with pytest.raises(UserError, match="among the images"):
        prepare(source, tmp_path / "store", saliency=str(source))
    with pytest.raises(UserError, match="expected a folder of maps or one of fine_grained"):
        prepare(source, tmp_path / "store", saliency="file")


def test_the_map_of_a_dicom_series_bears_the_name_of_its_folder(tmp_path) -> None:
    source, folder = tmp_path / "in", tmp_path / "maps"
    (source / "p" / "s").mkdir(parents=True)
    saved_all(source / "p" / "s", [dicom_slice(n, pixels) for n, pixels in enumerate(PIXELS)])
    image = read(next(iter(plan(source).records())))
    ramp = np.arange(image.array[0].size, dtype=np.uint8).reshape(image.array.shape[1:])
    (folder / "p").mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(ramp.T, image.affine), folder / "p" / "s.nii.gz")
    assert prepare(source, tmp_path / "store", saliency=str(folder))["images"] == 1
    store = Store(tmp_path / "store")
    assert np.array_equal(store.read(store.rows[0], "saliency")[0], ramp)
