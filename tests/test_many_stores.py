"""Several stores in one pretraining: images and volumes in turn, stores of one kind mixed, stopped and resumed."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from stores import pictures, store_of, volumes
from worlds import together

from ssl_med.cli import build_parser, main
from ssl_med.config import difference, load_config
from ssl_med.data.manifest import locks_in, read_lock
from ssl_med.data.mixed import MixedData
from ssl_med.data.module import StoreData
from ssl_med.data.overlap import check_overlap
from ssl_med.data.sections import folders_of, sections_of
from ssl_med.data.store import Store
from ssl_med.errors import UserError
from ssl_med.exports import load_backbone, read_card
from ssl_med.verbs.pretrain import pretrain

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:Checkpoint directory")
STEPS = 8
TINY = {
    "task.settings": {"hidden_dim": 16, "out_dim": 8},
    "task.backbone.patch_2d": 8,
    "task.backbone.patch_3d": [4, 8, 8],
    "task.backbone.embed_dim": 24,
    "task.backbone.depth": 2,
    "task.backbone.heads": 2,
    "task.hidden_dim": 16,
    "data.stores.0.crop": 16,
    "data.stores.0.batch_size": 4,
    "data.stores.1.crop": [8, 16, 16],
    "data.stores.1.batch_size": 2,
}
QUIET = {
    "data.num_workers": 0,
    "watch.pictures": 0,
    "watch.health": 1,
    "watch.probes": 1,
    "watch.checkpoint_steps": 4,
    "trainer.max_steps": STEPS,
    "trainer.log_every_n_steps": 1,
    "trainer.accelerator": "cpu",
}
TURNS = ("one_backbone", {**TINY, **QUIET})
MIXED = ("smoke/mae_2d", {**QUIET, "data.weights": [1, 3]})


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("many")
    found = {"images": store_of(pictures(folder / "2d", 20), folder / "images")}
    found["more"] = store_of(pictures(folder / "2d-more", 30), folder / "more")
    found["volumes"] = store_of(volumes(folder / "3d", 10), folder / "volumes")
    return {name: str(store.folder) for name, store in found.items()}


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def whole_and_resumed(case: tuple, data: str, folder: Path, monkeypatch) -> tuple[Path, Path]:
    """A run, and one that was stopped after its checkpoint of step 4 and repeated."""
    config, settings = case
    whole = pretrain(config, data, folder / "whole", settings)
    from ssl_med.learner import Learner

    step, counted = Learner.training_step, []

    def stopping(self, *arguments):
        counted.append(1)
        if len(counted) == 7:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "training_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, data, folder / "resumed", settings)
    return whole, pretrain(config, data, folder / "resumed", settings)


@pytest.fixture(scope="module")
def in_turn(places, tmp_path_factory) -> tuple[Path, Path]:
    data = f"{places['images']},{places['volumes']}"
    with pytest.MonkeyPatch.context() as patch:
        return whole_and_resumed(TURNS, data, tmp_path_factory.mktemp("turns"), patch)


@pytest.fixture(scope="module")
def mixed(places, tmp_path_factory) -> tuple[Path, Path]:
    data = f"{places['images']},{places['more']}"
    with pytest.MonkeyPatch.context() as patch:
        return whole_and_resumed(MIXED, data, tmp_path_factory.mktemp("mixed"), patch)


@pytest.mark.parametrize("kind", ["in_turn", "mixed"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(kind, request) -> None:
    whole, resumed = request.getfixturevalue(kind)
    assert sorted(losses(whole)) == list(range(1, STEPS + 1))
    assert losses(whole) == losses(resumed)
    assert "resuming" in (resumed / "train.log").read_text()


def test_stores_in_turn_give_two_processes_the_losses_of_one(places, tmp_path) -> None:
    """Trained by the command as a launcher starts it; what a batch does not use has no gradient, and nothing waits."""
    wide = {"data.stores.0.batch_size": 8, "data.stores.1.batch_size": 8, "watch.health": 0, "watch.probes": 0}
    settings = {**TURNS[1], **wide, "trainer.max_steps": 4, "trainer.precision": "32-true"}
    words = [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}" for name, value in settings.items()]

    def words_for(processes: int) -> list[str]:
        out = ["--out", str(tmp_path / str(processes)), "--trainer.devices", str(processes)]
        return ["pretrain", "one_backbone", "--data", f"{places['images']},{places['volumes']}", *out, *words]

    assert main(words_for(1)) == 0
    assert together(2, tmp_path / "logs", lambda _: main(words_for(2)), join=False) == [0, 0]
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert sorted(one) == sorted(two) == [1, 2, 3, 4]
    apart = {step: abs(two[step] / loss - 1) for step, loss in one.items()}
    assert max(apart[1], apart[2]) < 1e-6  # the first step of each kind
    assert max(apart.values()) < 1e-3  # batch norms of eight images make much of a rounding error
    assert (tmp_path / "2" / "exports" / "backbone_3d" / "backbone.safetensors").is_file()


def test_images_and_volumes_leave_two_ordinary_backbones(in_turn, places, make_batch) -> None:
    for axes, space in ((2, (16, 16)), (3, (8, 16, 16))):
        folder = in_turn[0] / "exports" / f"backbone_{axes}d"
        backbone = load_backbone(str(folder))
        assert backbone.spatial_dims == axes
        assert backbone(make_batch(space)["image"]).pooled.shape == (4, 24)
        assert read_card(folder)["input"]["spatial_dims"] == axes
    with pytest.raises(UserError, match="backbone_2d, backbone_3d"):
        load_backbone(str(in_turn[0]))


def test_what_a_run_says_of_its_stores(in_turn, places) -> None:
    data = json.loads((in_turn[0] / "run.json").read_text())["data"]
    assert [one["spatial_dims"] for one in data["stores"]] == [2, 3]
    assert data["images"] == sum(one["images"] for one in data["stores"])
    assert sum(data["modalities"].values()) == data["images"]
    signs = [json.loads(line) for line in (in_turn[0] / "metrics.jsonl").read_text().splitlines()]
    assert any("health/feature_spread" in line for line in signs)
    assert any("probe/knn" in line for line in signs)  # the store of images, which comes first, has classes


def test_every_store_is_locked_and_compared_with_a_test(in_turn, places) -> None:
    locks = locks_in(in_turn[0])
    assert [lock.name for lock in locks] == ["manifest.lock", "manifest.1.lock"]
    for lock, name in zip(locks, ("images", "volumes"), strict=True):
        store = Store(places[name])
        assert read_lock(lock)[0].num_rows == len(store.rows.where(split="train"))
        export = in_turn[0] / "exports" / "backbone_2d"
        with pytest.raises(UserError, match="patients of the test images are in the pretraining"):
            check_overlap(export, store.rows.where(split="train"), store.facts["key"])
        assert not check_overlap(export, store.rows.where(split="test"), store.facts["key"])


@pytest.mark.parametrize("changed", [0, 1])
def test_a_run_does_not_go_on_when_one_of_its_stores_has_changed(tmp_path, changed) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for number, folder in enumerate(folders):
        store_of(pictures(tmp_path / f"in{number}", 20), folder)
    settings, data = MIXED[1] | {"watch.health": 0, "watch.probes": 0}, [str(folder) for folder in folders]
    pretrain("smoke/mae_2d", data, tmp_path / "run", settings | {"trainer.max_steps": 2})
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**state, "status": "stopped"}))
    store_of(pictures(tmp_path / f"in{changed}", 30), folders[changed])
    with pytest.raises(UserError, match=f"{folders[changed].name} has other training images"):
        pretrain("smoke/mae_2d", data, tmp_path / "run", settings | {"trainer.max_steps": 2})


def data_of_two(places, **settings) -> MixedData:
    stores = [StoreData(places[name], 16, 8, **settings) for name in ("images", "more")]
    return MixedData(stores, [1, 3])


def test_samples_are_mixed_by_weight_at_any_number_of_processes(places) -> None:
    batches = list(islice(data_of_two(places).loader(), 3))
    first = {row.id for row in Store(places["images"]).rows}
    for batch in batches:
        assert [name in first for name in batch["id"]].count(True) == 2
    halves = [list(islice(data_of_two(places, num_workers=2).loader(0, rank, 2), 3)) for rank in (0, 1)]
    for batch, left, right in zip(batches, *halves, strict=True):
        for name in ("image", "key", "spacing"):
            assert torch.equal(batch[name], torch.cat([left[name], right[name]]))
        assert batch["id"] == [*left["id"], *right["id"]]
    assert len({tuple(key) if key.ndim else int(key) for key in torch.cat([b["key"] for b in batches])}) == 24
    assert torch.equal(next(iter(data_of_two(places).loader(2)))["image"], batches[2]["image"])


def test_a_damaged_image_of_any_store_is_listed(places, tmp_path) -> None:
    for name in ("a", "b"):
        store_of(pictures(tmp_path / f"{name}_in", 20), tmp_path / name)
    row = next(row for row in Store(tmp_path / "b").rows if row.split == "train")
    (tmp_path / "b" / "images" / f"{row.id}.b2nd").write_bytes(b"not what was written")
    settings = MIXED[1] | {"watch.health": 0, "watch.probes": 0}
    run = pretrain("smoke/mae_2d", f"{tmp_path / 'a'},{tmp_path / 'b'}", tmp_path / "run", settings)
    import pyarrow.parquet as pq

    assert pq.read_table(run / "quarantine.parquet").column("id").to_pylist() == [row.id]


def test_the_command_line_takes_several_stores(places, in_turn, monkeypatch) -> None:
    parse = build_parser().parse_args
    assert parse(["pretrain", "c", "--data", "a,b", "--out", "o"]).data == "a,b"
    monkeypatch.setenv("SSL_MED_DATA", "a")
    parse = build_parser().parse_args
    assert parse(["pretrain", "c", "--data", "a", "--data", "b", "--out", "o"]).data == "a,b"
    assert parse(["pretrain", "c", "--out", "o"]).data == "a"
    assert main(["pretrain", "one_backbone", "--data", places["images"], "--out", str(in_turn[0] / "other")]) == 2


def test_folders_and_settings_of_stores(tmp_path) -> None:
    (tmp_path / "a,b").mkdir()
    assert folders_of(tmp_path / "a,b") == [str(tmp_path / "a,b")]
    assert folders_of("x,y") == folders_of(["x", "y"]) == ["x", "y"]
    found = sections_of({"seed": 1, "weights": [1, 2], "stores": [{"crop": 8}, {"crop": 4}]}, ["x", "y"])
    assert found == [{"seed": 1, "crop": 8, "folder": "x"}, {"seed": 1, "crop": 4, "folder": "y"}]
    with pytest.raises(UserError, match="settings for 2 stores, --data names 1"):
        sections_of({"stores": [{}, {}]}, ["x"])


def test_settings_of_stores_are_checked() -> None:
    with pytest.raises(UserError, match="did you mean 'batch_size'"):
        load_config("one_backbone", "pretrain", {"data.stores.1.batchsize": 4})
    with pytest.raises(UserError, match=r"data.crop is set for all stores and in data.stores.0 too"):
        load_config("one_backbone", "pretrain", {"data.crop": 64})
    with pytest.raises(UserError, match="no section of a list of 2"):
        load_config("one_backbone", "pretrain", {"data.stores.2.crop": 64})
    changed = difference({"stores": [{"crop": 1}, {"crop": 2}]}, {"stores": [{"crop": 1}, {"crop": 3}]}, "data")
    assert changed == ["data.stores.1.crop: 2 -> 3"]
