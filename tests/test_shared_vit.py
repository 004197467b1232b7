"""One backbone for images and volumes: ordinary ViTs in one, batches in turn, slices that agree with volumes."""

import re
from itertools import islice
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from stores import pictures, store_of, volumes

from ssl_med.backbones import SharedViT, ViT
from ssl_med.data.alternating import AlternatingData, Turns
from ssl_med.data.module import StoreData
from ssl_med.errors import UserError
from ssl_med.exports import export, load_backbone
from ssl_med.learner import Learner
from ssl_med.ops.collapse import feature_spread
from ssl_med.recipe import build, recipe
from ssl_med.tasks import DINO, IJEPA, Plan, SimCLR, Task
from ssl_med.tasks.slice_consistency import SliceConsistency
from ssl_med.transforms import MultiCrop

SPACES = {2: (16, 16), 3: (8, 16, 16)}
BYOL = ("ssl_med.tasks.BYOL", {"hidden_dim": 16, "out_dim": 8})


def shared(**changes) -> SharedViT:
    torch.manual_seed(0)
    return SharedViT(4, [2, 4, 4], embed_dim=24, depth=2, heads=2, taps=2, **changes)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("alternating")
    images = store_of(pictures(folder / "2d", 20), folder / "images")
    scans = store_of(volumes(folder / "3d", 10), folder / "scans")
    return [str(images.folder), str(scans.folder)]


def data_of(folders: list[str], **changes) -> AlternatingData:
    return AlternatingData([StoreData(folders[0], 16, 4), StoreData(folders[1], [8, 16, 16], 2)], **changes)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("changes", [{}, {"positions": "rotary", "registers": 1}, {"position_unit": "mm"}], ids=str)
def test_it_is_the_ordinary_vit_of_the_kind_at_hand(make_batch, tmp_path: Path, axes: int, changes: dict) -> None:
    vit, batch = shared(**changes).eval(), make_batch(SPACES[axes])
    image, spacing = batch["image"], batch["spacing"]
    one = vit.rank(axes)
    assert type(one) is ViT
    assert one.spatial_dims == axes
    export({"backbone": one}, tmp_path, {})
    loaded = load_backbone(str(tmp_path)).eval()
    assert type(loaded) is ViT
    ours, theirs = vit(image, spacing), loaded(image, spacing)
    assert torch.equal(ours.pooled, theirs.pooled)
    assert all(torch.equal(a, b) for a, b in zip(ours.maps, theirs.maps, strict=True))


def test_the_view_of_one_kind_holds_the_weights_themselves() -> None:
    vit = shared()
    before = torch.get_rng_state()
    views = [vit.rank(2), vit.rank(3)]
    assert torch.equal(before, torch.get_rng_state())
    for view in views:
        assert {id(p) for p in view.parameters()} <= {id(p) for p in vit.parameters()}
        assert not any(p.is_meta for p in view.parameters())
        assert view.training
        assert not vit.eval().rank(2).training
        vit.train()
    both = {id(p) for view in views for p in view.parameters()}
    assert both == {id(p) for p in vit.parameters()}


def test_export_keeps_both_kinds(make_batch, tmp_path: Path) -> None:
    vit = shared().eval()
    export({"backbone": vit}, tmp_path, {})
    loaded = load_backbone(str(tmp_path)).eval()
    for space in SPACES.values():
        image = make_batch(space)["image"]
        assert torch.equal(vit(image).pooled, loaded(image).pooled)


def test_what_it_cannot_take_is_refused() -> None:
    with pytest.raises(UserError, match="2 axes or volumes with 3, got 4"):
        shared()(torch.zeros(1, 1, 4, 4, 4, 4))
    with pytest.raises(UserError, match="patch_2d needs one size"):
        SharedViT([4, 4, 4], 4)


@pytest.mark.parametrize(
    "make",
    [
        lambda vit: SimCLR(vit, hidden_dim=16, out_dim=8),
        lambda vit: IJEPA(vit, predictor_dim=24, predictor_depth=1),
        lambda vit: DINO(vit, MultiCrop(2, multiple=4), prototypes=16, hidden_dim=16, ibot=1.0),
    ],
    ids=["SimCLR", "IJEPA", "DINO+iBOT"],
)
def test_tasks_take_both_kinds_in_turn(make_batch, make) -> None:
    task = make(shared())
    for axes in (2, 3, 2):
        task.zero_grad()
        loss = task(make_batch(SPACES[axes]), 0.5)["loss"]
        loss.backward()
        task.after_step(0.5)
        assert loss.isfinite()
        used = (task.backbone.patch_embed_2d, task.backbone.patch_embed)[axes - 2].proj.weight.grad
        other = (task.backbone.patch_embed_2d, task.backbone.patch_embed)[3 - axes].proj.weight.grad
        assert used.abs().max() > 0
        assert other is None or not other.any()
        assert task.backbone.blocks[0].attn.qkv.weight.grad.abs().max() > 0


def test_turns_are_a_function_of_the_step() -> None:
    turns = Turns([2, 1])
    played = [turns(step) for step in range(30)]
    assert played.count(0) == 20
    assert max(len(run) for run in "".join(map(str, played)).split("1")) <= 2
    for step in range(30):
        assert [turns.before(step, number) for number in (0, 1)] == [played[:step].count(n) for n in (0, 1)]


def test_one_kind_in_a_batch_and_the_same_after_a_kill(folders) -> None:
    data = data_of(folders, weights=[2.0, 1.0])
    whole = list(islice(data.loader(), 12))
    assert [batch["image"].ndim for batch in whole] == [4, 5, 4] * 4
    for step in range(7):
        for resumed, straight in zip(islice(data.loader(step), 4), whole[step:], strict=False):
            assert torch.equal(resumed["image"], straight["image"])
            assert torch.equal(resumed["key"], straight["key"])


def test_batches_are_the_stores_own(folders) -> None:
    data = data_of(folders)
    found = [batch["image"] for batch in islice(data.loader(), 6)]
    for number, store in enumerate(data.stores):
        own = [batch["image"] for batch in islice(store.loader(), 3)]
        assert all(torch.equal(a, b) for a, b in zip(found[number::2], own, strict=True))
    keys = torch.cat([batch["key"] for batch in islice(data.loader(), 6)])
    assert len(keys.unique()) == len(keys) == 18


def test_processes_and_parts_share_the_turns(folders) -> None:
    data = data_of(folders)
    whole = list(islice(data.loader(3), 4))
    halves = [list(islice(data.loader(3, rank, 2), 4)) for rank in range(2)]
    for number, batch in enumerate(whole):
        assert torch.equal(torch.cat([half[number]["image"] for half in halves]), batch["image"])
    assert [batch["image"].ndim for batch in islice(data.loader(1, parts=2), 6)] == [5, 5, 4, 4, 5, 5]
    straight = list(islice(data.loader(0, parts=2), 10))[6:]
    for resumed, batch in zip(data.loader(3, parts=2), straight, strict=False):
        assert torch.equal(resumed["image"], batch["image"])


def test_stores_that_do_not_go_together_are_refused(folders) -> None:
    with pytest.raises(UserError, match="a positive weight for each, got 2 stores, weights"):
        data_of(folders, weights=[1.0])
    images, windows = StoreData(folders[0], 16, 4), StoreData(folders[1], 8, 2, intensity="windows:lung,bone")
    with pytest.raises(UserError, match="one number of channels"):
        AlternatingData([images, windows])


def test_slices_are_slices_and_one_lies_in_each_slab(make_batch) -> None:
    batch = make_batch((8, 16, 12))
    for axis in range(3):
        task = SliceConsistency(shared(), *BYOL, slices=4, axis=axis)
        slices, volume = task.cut(batch), batch["image"].movedim(axis + 2, 1)
        assert slices.shape == (4, 4, 1, *volume.shape[3:])
        depth = volume.shape[1]
        for image in range(4):
            where = [int((volume[image] == cut).flatten(1).all(1).nonzero()) for cut in slices[image]]
            assert [place * 4 // depth for place in where] == [0, 1, 2, 3]
    deep = SliceConsistency(shared(), *BYOL, slices=99).cut(batch)
    assert torch.equal(deep, batch["image"].movedim(2, 1))


def test_agreement_is_the_mean_of_both_predictions(make_batch) -> None:
    batch = make_batch(SPACES[3])
    task = SliceConsistency(shared(), *BYOL, weight=0.5, hidden_dim=16)
    losses = task(batch, 0.5)
    cuts = task.cut(batch)
    with torch.no_grad():
        volume = task.backbone(batch["image"]).pooled
        mean = torch.stack([task.backbone(cuts[:, n]).pooled for n in range(4)]).mean(0)
        cosine = torch.nn.functional.cosine_similarity
        first, second = cosine(task.predictor(mean), volume).mean(), cosine(task.predictor(volume), mean).mean()
    assert losses["consistency"].item() == pytest.approx((2 - first - second).item(), abs=1e-5)
    torch.manual_seed(0)
    alone = task.task(batch, 0.5)["loss"]
    assert losses["loss"].item() == pytest.approx((alone + 0.5 * losses["consistency"]).item(), rel=1e-5)


def test_images_pass_to_the_part_alone(make_batch) -> None:
    task = SliceConsistency(shared(), *BYOL)
    losses = task(make_batch(SPACES[2]), 0.5)
    assert "consistency" not in losses
    assert losses["loss"].isfinite()


def test_a_collapse_of_the_agreement_is_seen_beside_a_healthy_part(make_batch) -> None:
    task = SliceConsistency(shared(), *BYOL, hidden_dim=16)
    images, volumes = (make_batch(SPACES[axes], 8) for axes in (2, 3))
    with torch.no_grad():
        assert "consistency_spread" not in task.eval().vital_signs(images)  # no volume was seen yet
        alive = task.train()(volumes, 0.0)["consistency_spread"]
        cuts = task.cut(volumes)
        volume, mean = task._see(task.backbone, volumes, cuts)
        spreads = [feature_spread(task.predictor(x)) for x in (mean, volume)]
        torch.testing.assert_close(alive, sum(spreads) / 2)
        assert "consistency_spread" not in task.eval().agree(make_batch(SPACES[3], 1))  # one volume has no spread
        assert torch.equal(task.eval().vital_signs(images)["consistency_spread"], task.spread)
        sound = {**{name: float(v) for name, v in task.vital_signs(volumes).items()}, "embedding_spread": 0.9}
        assert task.verdict(sound) == ""
        task.predictor[-1].weight.zero_()  # says its bias of everything
        assert "agree because" in task.verdict({**sound, **{n: float(v) for n, v in task.agree(volumes).items()}})
        for _ in range(60):
            task.train()(volumes, 0.0)
        assert "agree because" in task.verdict({**sound, **{n: float(v) for n, v in task.vital_signs(images).items()}})
    assert task.verdict({**sound, "embedding_spread": 0.0}).startswith("the embedding")  # the part's comes first


def test_targets_are_the_teachers_where_there_is_one(make_batch) -> None:
    views = {"class_path": "ssl_med.transforms.MultiCrop", "init_args": {"local_count": 0, "multiple": 4}}
    dino = ("ssl_med.tasks.DINO", {"views": views, "prototypes": 16, "hidden_dim": 16})
    task, batch = SliceConsistency(shared(), *dino, hidden_dim=16), make_batch(SPACES[3])
    before = task.consistency(batch).item()
    with torch.no_grad():
        for parameter in task.exports()["backbone"].parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert task.consistency(batch).item() != pytest.approx(before, abs=1e-4)
    task.consistency(batch).backward()
    assert all(p.grad is None for p in task.exports()["backbone"].parameters())
    assert task.backbone.patch_embed_2d.proj.weight.grad.abs().max() > 0
    twin = build(recipe(task), Task)
    twin.load_state_dict(task.state_dict())
    assert torch.equal(twin.consistency(batch), task.consistency(batch))
    assert recipe(build(recipe(twin), Task)) == recipe(twin)  # its views are spelled out now


def quiet(test):
    """Advice of Lightning that does not apply; ``fit`` silences the same."""
    for text in (".*does not have many workers", ".*isinstance.treespec", ".*`max_epochs`"):
        test = pytest.mark.filterwarnings(f"ignore:{text}")(test)
    return test


class _SaveAt(pl.Callback):
    """Keeps what there is after some steps, as a kill would leave it."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: pl.Trainer, *args) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def _train(folders: list[str], out: Path, checkpoint: Path | None = None) -> dict:
    torch.manual_seed(0)
    learner = Learner(SliceConsistency(shared(), *BYOL, hidden_dim=16), lr=1e-3)
    trainer = pl.Trainer(
        max_steps=5,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
        callbacks=[_SaveAt(3, out / "3.ckpt")] if checkpoint is None else [],
    )
    trainer.fit(learner, datamodule=data_of(folders), ckpt_path=checkpoint, weights_only=True)
    assert trainer.global_step == 5
    return learner.task.state_dict()


@quiet
def test_training_resumes_bit_for_bit(folders, tmp_path: Path) -> None:
    whole = _train(folders, tmp_path)
    resumed = _train(folders, tmp_path, tmp_path / "3.ckpt")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_what_the_part_leaves_open_is_chosen_by_the_part() -> None:
    given = {"part": "ssl_med.tasks.BYOL", "settings": {}}
    chosen = SliceConsistency.choose(given, Plan(100, 4, 100))
    assert list(chosen) == ["settings.momentum"]


@quiet
def test_the_example_of_the_docs_runs(folders, tmp_path: Path, monkeypatch, make_batch) -> None:
    page = Path(__file__).parents[1] / "docs" / "tasks" / "one_backbone.md"
    found = re.search(r"<!-- test: one backbone -->\n```python\n(.*?)```", page.read_text(), re.S)
    for name, folder in zip(("images", "volumes"), folders, strict=True):
        (tmp_path / name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    exec(compile(found[1], page.name, "exec"), {})
    for name, space in (("for_images", (16, 16)), ("for_volumes", (16, 16, 16))):
        assert load_backbone(name)(make_batch(space)["image"]).pooled.shape == (4, 96)
