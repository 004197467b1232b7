"""SSiT: what each branch sees, the parts of the loss, maps that move with the views, controls, two processes."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from miniature import golden, many, signs_of, train
from torch.nn import functional
from two_processes import leave

from ssl_med.backbones import ViT
from ssl_med.errors import UserError
from ssl_med.ops.patches import patchify
from ssl_med.tasks import SSiT
from ssl_med.tasks.saliency import Foreground, Gradient, StoredSaliency, TeacherAttention
from ssl_med.transforms import GaussianNoise, PairedViews, RandomResizedCrop

SPACES = {"2d": (16, 24), "3d": (8, 8, 12)}


@pytest.fixture
def tiny_ssit(tiny_vit: Callable) -> Callable:
    def make(spatial_dims: int = 2, **changes: object) -> SSiT:
        vit = tiny_vit(spatial_dims)
        torch.manual_seed(0)
        return SSiT(vit, **{"hidden_dim": 32, "out_dim": 16, **changes})

    return make


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return SPACES[request.param]


@pytest.mark.parametrize(("drop", "kept"), [("saliency", 147), ("random", 147), ("none", 196)])
def test_tokens_of_each_branch(tiny_ssit: Callable, make_batch: Callable, drop: str, kept: int) -> None:
    task, seen = tiny_ssit(drop=drop), {"query": [], "key": []}
    for name, vit in (("query", task.backbone), ("key", task.key_backbone)):
        vit.blocks[0].register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0].shape[1]))
    task(make_batch((56, 56), 2), 0.0)
    assert seen == {"query": [197, 197], "key": [kept + 1, kept + 1]}


@pytest.mark.parametrize("score", ["max", "mean"])
def test_no_kept_patch_is_less_salient_than_a_dropped_one(
    tiny_ssit: Callable, make_batch: Callable, space, score: str
) -> None:
    task = tiny_ssit(len(space), score=score)
    view = {**make_batch(space), "saliency": torch.rand(4, 1, *space, generator=torch.Generator().manual_seed(0))}
    kept = task.kept(view)
    count = math.prod(space) // 4 ** len(space)
    assert kept.shape == (4, int(0.75 * count))
    patches = patchify(view["saliency"], task.backbone.patch).numpy()
    scores = patches.max(-1) if score == "max" else patches.mean(-1)
    for row in range(4):
        dropped = np.setdiff1d(np.arange(count), kept[row].numpy())
        assert len(dropped) == count - int(0.75 * count)
        assert scores[row, kept[row].numpy()].min() >= scores[row, dropped].max() - 1e-6


def test_equal_patches_are_dropped_at_random_and_padding_first(tiny_ssit: Callable, make_batch: Callable) -> None:
    task, batch = tiny_ssit(), make_batch((16, 16), 32)
    kept = task.kept({**batch, "saliency": torch.ones(32, 1, 16, 16)})
    assert len(torch.unique(kept)) == 16  # every place is kept somewhere and so no place is always dropped
    valid = torch.ones(32, 1, 16, 16, dtype=torch.bool)
    valid[..., 12:] = False
    for drop in ("saliency", "random"):
        task.drop = drop
        kept = task.kept({**batch, "saliency": torch.zeros(32, 1, 16, 16), "valid": valid})
        assert not (kept % 4 == 3).any()


def test_the_parts_of_the_loss_at_the_start(tiny_vit: Callable, make_batch: Callable) -> None:
    torch.manual_seed(0)
    task = SSiT(tiny_vit(2, embed_dim=96, heads=4), hidden_dim=64, out_dim=64)
    losses = {name: float(value.detach()) for name, value in task(make_batch((16, 16), 32), 0.0).items()}
    assert losses["contrast"] == pytest.approx(2 * 2 * 0.2 * math.log(32), rel=0.2)
    assert losses["segmentation"] == pytest.approx(2 * math.log(2), rel=0.15)
    assert losses["loss"] == pytest.approx(losses["contrast"] + 10 * losses["segmentation"], rel=1e-6)


def test_the_head_is_a_convolution_and_a_pixel_shuffle(tiny_ssit: Callable, make_batch: Callable) -> None:
    task, view = tiny_ssit(), make_batch((16, 24))
    logits = task.glance(view).logits
    encoded = task.backbone.encode(task.backbone.tokenize(view["image"]))[:, 1:]
    grid = encoded.transpose(1, 2).reshape(4, 24, 4, 6)
    weight, bias = task.segment.weight[:, :, None, None], task.segment.bias
    expected = functional.pixel_shuffle(functional.conv2d(grid, weight, bias), 4)
    torch.testing.assert_close(logits, expected)


@pytest.mark.usefixtures("double")
def test_segmentation_error_by_its_formula(tiny_ssit: Callable, make_batch: Callable, space) -> None:
    task, view = tiny_ssit(len(space), threshold=0.3), make_batch(space)
    view["saliency"] = torch.rand(4, 1, *space, generator=torch.Generator().manual_seed(1))
    view["valid"] = torch.rand(4, 1, *space, generator=torch.Generator().manual_seed(2)) > 0.3
    glance = task.glance(view)
    p = glance.logits.detach().double().sigmoid().numpy()
    hit = view["saliency"].numpy() > 0.3
    losses = -np.where(hit, np.log(p), np.log(1 - p))
    counted = view["valid"].numpy().copy()
    counted[1] = False
    ours = task.error(glance, view, torch.tensor([False, True, False, False]))
    assert float(ours.detach()) == pytest.approx(losses[counted].mean(), rel=1e-9)


def test_constant_maps_are_counted_and_not_segmented(tiny_ssit: Callable, make_batch: Callable) -> None:
    task, batch = tiny_ssit(saliency=StoredSaliency()), make_batch((16, 16))
    saliency = torch.rand(4, 1, 16, 16)
    saliency[2:] = 0.4
    losses = task({**batch, "saliency": saliency}, 0.0)
    assert float(losses["degenerate_maps"]) == 2
    nothing = task({**batch, "saliency": torch.zeros(4, 1, 16, 16)}, 0.0)
    assert float(nothing["segmentation"].detach()) == 0
    assert torch.isfinite(nothing["loss"])


def test_signs_hold_the_segmentation_beside_its_chance(tiny_ssit: Callable, make_batch: Callable, space) -> None:
    task, batch = tiny_ssit(len(space)).eval(), make_batch(space)
    with torch.no_grad():
        signs, losses = task.vital_signs(batch), task(batch, 0.0)
        assert torch.equal(signs["segmentation"], losses["segmentation"])
        assert float(signs["segmentation_chance"]) == pytest.approx(2 * math.log(2))
        for value in task.segment.parameters():
            value.zero_()
        blank = {name: float(value) for name, value in task.vital_signs(batch).items()}
    assert blank["segmentation"] == pytest.approx(blank["segmentation_chance"])
    late = {**blank, "feature_spread": 1.0, "contrast": 0.5 * blank["contrast_chance"], "progress": 0.6}
    assert "saliency is not predicted: the segmentation is 1.39" in task.verdict(late)
    assert task.verdict({**late, "progress": 0.4}) == task.verdict({**late, "segmentation": 0.9}) == ""
    control = tiny_ssit(len(space), segmentation_weight=0.0).eval()
    assert "segmentation" not in control.vital_signs(batch)
    assert control.verdict({**late, "segmentation": 9.0}) == ""


def test_the_map_moves_with_its_view(tiny_ssit: Callable, make_batch: Callable) -> None:
    task, batch = tiny_ssit(saliency=Foreground()), make_batch((32, 32))
    batch["image"] = batch["mask"].float()
    equipped = task.equip(batch)
    for view in task.views(equipped):
        pairs = torch.stack([view["image"].flatten(), view["saliency"].flatten()])
        assert torch.corrcoef(pairs)[0, 1] > 0.6  # blur and noise touch the image only


def test_no_gradient_to_the_key_branch(tiny_ssit: Callable, make_batch: Callable, space) -> None:
    task = tiny_ssit(len(space))
    task(make_batch(space), 0.0)["loss"].backward()
    assert all(p.grad is None for p in [*task.key_backbone.parameters(), *task.key_projector.parameters()])
    assert all(p.grad is not None for p in task.backbone.parameters())


def test_schedules_and_controls(tiny_ssit: Callable, make_batch: Callable) -> None:
    task = tiny_ssit()
    assert [task.momentum_at(p) for p in (0, 0.5, 1)] == pytest.approx([0.99, 0.995, 1.0], abs=1e-9)
    assert [task.weight_at(p) for p in (0, 1)] == [10.0, 10.0]
    fading = tiny_ssit(segmentation_decay=True)
    assert [fading.weight_at(p) for p in (0, 0.25, 0.5, 1)] == pytest.approx(
        [10, 5 * (1 + math.sqrt(0.5)), 5, 0], abs=1e-9
    )
    bare = tiny_ssit(segmentation_weight=0, drop="none")
    losses = bare(make_batch((16, 16)), 0.0)
    assert bare.segment is None
    assert "segmentation" not in losses
    assert torch.equal(losses["loss"], losses["contrast"])
    for wrong in ({"segmentation_weight": -1.0}, {"temperature": -0.1}):
        with pytest.raises(UserError):
            tiny_ssit(**wrong)
    with pytest.raises(ValueError, match="mask_ratio"):
        tiny_ssit(drop_ratio=1.0)


def test_attention_of_its_own_teacher_guides_it(tiny_ssit: Callable, make_batch: Callable) -> None:
    task, batch = tiny_ssit(saliency=TeacherAttention()), make_batch((16, 16))
    before = task.equip(batch)["saliency"]
    with torch.no_grad():
        task.key_backbone.blocks[-1].attn.qkv.weight.mul_(5)
    assert not torch.equal(task.equip(batch)["saliency"], before)
    assert torch.isfinite(task(batch, 0.0)["loss"])


@pytest.mark.parametrize("size", [(16, 16), (8, 8, 8)])
def test_a_miniature_training_learns_and_raises_no_alarm(tiny_ssit: Callable, size: tuple[int, ...]) -> None:
    views = PairedViews([RandomResizedCrop(scale=(0.8, 1.0)), GaussianNoise()])
    task = tiny_ssit(len(size), momentum=0.9, saliency=Gradient(), views=views)
    batches = many(size, 25)
    assert task.verdict(signs_of(task, batches[0])) == ""
    train(task, batches, 1e-2)
    assert float(task(batches[0], 1.0)["segmentation"].detach()) < 1.2  # chance is 2 ln 2 = 1.39
    signs = signs_of(task, batches[0])
    assert signs["contrast"] < signs["contrast_chance"]
    assert task.verdict(signs) == ""


def test_injected_collapse_raises_the_alarm(tiny_ssit: Callable) -> None:
    batches = many((16, 16), 60)
    task = tiny_ssit(momentum=0.0)
    train(task, batches, 3.0)  # some hundred times the rate of the miniature training
    assert "lower learner.lr" in task.verdict(signs_of(task, batches[0]))


@pytest.mark.parametrize("size", [(16, 16), (8, 8, 8)])
def test_golden_losses(tiny_ssit: Callable, size: tuple[int, ...]) -> None:
    losses = train(tiny_ssit(len(size)), many(size, 3), 1e-3)
    assert losses == pytest.approx(golden(f"ssit_{len(size)}d"), rel=1e-3)


def _task() -> SSiT:
    torch.manual_seed(0)
    return SSiT(ViT(2, 4, embed_dim=24, depth=2, heads=2), saliency=StoredSaliency(), hidden_dim=32, out_dim=16)


def _work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    whole = torch.load(Path(folder) / "x.pt", weights_only=True)
    task = _task()
    losses = task({name: value.chunk(world)[rank] for name, value in whole.items()}, 0.0)
    losses["loss"].backward()
    gradient = task.segment.weight.grad.clone()
    dist.all_reduce(gradient)
    found = {name: losses[name].detach() for name in ("loss", "contrast", "segmentation")}
    torch.save({**found, "gradient": gradient / world}, Path(folder) / f"{rank}.pt")
    leave()


def test_two_processes_equal_one(make_batch: Callable, tmp_path: Path) -> None:
    batch = make_batch((16, 16), 8)
    batch = {name: batch[name] for name in ("image", "key", "spacing")}
    batch["saliency"] = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    batch["saliency"][0] = 0.5  # the processes do not have equally many maps
    torch.save(batch, tmp_path / "x.pt")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(_work, (2, str(tmp_path)), nprocs=2)
    task = _task()
    losses = task(batch, 0.0)
    losses["loss"].backward()
    for rank in range(2):
        part = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name in ("loss", "contrast", "segmentation"):
            torch.testing.assert_close(part[name], losses[name].detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(part["gradient"], task.segment.weight.grad, atol=1e-5, rtol=1e-3)
