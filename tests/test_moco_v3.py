"""MoCo v3: the paper's loss, schedule and heads, a key branch without gradients, alarms, two processes against one."""

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
from two_processes import leave

from ssl_med.backbones import UNetEncoder, ViT
from ssl_med.errors import UserError
from ssl_med.tasks import MoCoV3, Plan
from ssl_med.tasks.momentum_contrast import contrast
from ssl_med.transforms import ColourJitter, GaussianNoise, PairedViews, Solarize


@pytest.fixture
def tiny_moco(tiny_vit: Callable) -> Callable:
    def make(spatial_dims: int = 2, **changes: object) -> MoCoV3:
        vit = tiny_vit(spatial_dims)
        torch.manual_seed(0)
        return MoCoV3(vit, **{"hidden_dim": 32, "out_dim": 16, **changes})

    return make


@pytest.mark.usefixtures("double")
def test_contrast_is_the_papers_formula() -> None:
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    cosine = (q / np.linalg.norm(q, axis=1, keepdims=True)) @ (k / np.linalg.norm(k, axis=1, keepdims=True)).T
    logits = cosine / 0.2
    expected = 2 * 0.2 * np.mean(np.log(np.exp(logits).sum(1)) - logits.diagonal())
    ours = contrast(torch.tensor(q), torch.tensor(k), 0.2)
    assert float(ours) == pytest.approx(expected, rel=1e-9)


def test_loss_at_the_start_is_near_chance(tiny_moco: Callable, make_batch: Callable) -> None:
    loss = tiny_moco(out_dim=64)(make_batch((16, 16), 32), 0.0)["loss"]
    assert float(loss.detach()) == pytest.approx(2 * 2 * 0.2 * math.log(32), rel=0.2)


def test_momentum_at_five_points(tiny_moco: Callable) -> None:
    task = tiny_moco()
    expected = [1 - 0.5 * (1 + math.cos(math.pi * p)) * (1 - 0.99) for p in (0, 0.25, 0.5, 0.75, 1)]
    assert [task.momentum_at(p) for p in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx(expected, abs=1e-9)
    assert [task.momentum_at(p) for p in (0, 0.5, 1)] == pytest.approx([0.99, 0.995, 1.0], abs=1e-9)


def test_key_branch_follows_and_gets_no_gradient(tiny_moco: Callable, make_batch: Callable) -> None:
    task = tiny_moco(momentum=0.9)
    keys = [*task.key_backbone.parameters(), *task.key_projector.parameters()]
    queries = [*task.backbone.parameters(), *task.projector.parameters()]
    assert all(torch.equal(k, q) for k, q in zip(keys, queries, strict=True))
    before = [k.clone() for k in keys]
    train(task, [make_batch((16, 16))], 1e-2)
    assert all(k.grad is None and not k.requires_grad for k in keys)
    share = task.momentum_at(1.0)
    assert share == 1.0
    task.after_step(0.0)
    for key, old, new in zip(keys, before, queries, strict=True):
        torch.testing.assert_close(key, 0.9 * old + 0.1 * new.detach())


def test_the_teacher_has_no_stochastic_depth(tiny_vit: Callable) -> None:
    task = MoCoV3(tiny_vit(drop_path=0.5), hidden_dim=8, out_dim=4)
    tokens = task.key_backbone.tokenize(torch.rand(2, 1, 8, 8))
    assert torch.equal(task.key_backbone.encode(tokens), task.key_backbone.encode(tokens))


def test_the_patch_projection_can_stay_random(tiny_moco: Callable, make_batch: Callable) -> None:
    task = tiny_moco(freeze_patch_embedding=True)
    before = task.backbone.patch_embed.proj.weight.clone()
    train(task, [make_batch((16, 16))] * 2, 1e-2)
    assert torch.equal(task.backbone.patch_embed.proj.weight, before)
    with pytest.raises(UserError, match="no patch projection"):
        MoCoV3(UNetEncoder(2, 1, (4, 8), 1), freeze_patch_embedding=True)


def test_class_token_or_mean(tiny_moco: Callable, make_batch: Callable) -> None:
    view = make_batch((8, 8))
    task = tiny_moco()
    encoded = task.backbone.encode(task.backbone.tokenize(view["image"]))
    torch.testing.assert_close(task.represent(task.backbone, view), encoded[:, 0])
    mean = tiny_moco(pooling="mean")
    torch.testing.assert_close(mean.represent(mean.backbone, view), encoded[:, 1:].mean(1))


def test_colour_changes_only_for_colour(tiny_vit: Callable) -> None:
    kinds = {type(step) for step in MoCoV3(tiny_vit(in_channels=3), hidden_dim=8).views.second}
    assert {ColourJitter, Solarize} <= kinds
    kinds = {type(step) for step in MoCoV3(tiny_vit(in_channels=1), hidden_dim=8).views.second}
    assert not {ColourJitter, Solarize} & kinds
    kinds = {type(step) for step in MoCoV3(tiny_vit(3, in_channels=3), hidden_dim=8).views.second}
    assert GaussianNoise in kinds  # a volume in three windows has no colours
    assert not {ColourJitter, Solarize} & kinds


def test_settings_are_chosen_with_reasons() -> None:
    long = MoCoV3.choose({}, Plan(1_300_000, 4096, 100_000))
    assert (long["momentum"].value, long["hidden_dim"].value) == (0.99, 4096)
    short = MoCoV3.choose({}, Plan(300, 32, 1000))
    assert (short["momentum"].value, short["hidden_dim"].value) == (0.95, 1024)
    assert "1000" in short["momentum"].reason
    assert "300" in short["hidden_dim"].reason


@pytest.mark.parametrize("changes", [{"temperature": 0.0}, {"momentum": 1.5}])
def test_impossible_settings_are_refused(tiny_moco: Callable, changes: dict) -> None:
    with pytest.raises(UserError):
        tiny_moco(**changes)


@pytest.mark.parametrize(("space", "name"), [((16, 16), "ViT"), ((8, 8, 8), "ViT"), ((16, 16), "UNetEncoder")])
def test_a_miniature_training_learns_and_raises_no_alarm(space: tuple[int, ...], name: str) -> None:
    torch.manual_seed(0)
    vit = ViT(len(space), 4, embed_dim=24, depth=2, heads=2)
    backbone = vit if name == "ViT" else UNetEncoder(len(space), 1, (4, 8), 1)
    views = PairedViews([GaussianNoise()])
    task = MoCoV3(backbone, views, momentum=0.9, hidden_dim=32, out_dim=16)
    batches = many(space, 25)
    assert task.verdict(signs_of(task, batches[0])) == ""
    losses = train(task, batches, 3e-3)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    signs = signs_of(task, batches[0])
    assert signs["contrast"] < signs["contrast_chance"]
    assert signs["query_key_gap"] > 0.05
    assert task.verdict(signs) == ""


def test_injected_collapse_raises_the_alarm(tiny_moco: Callable) -> None:
    batches = many((16, 16), 20)
    task = tiny_moco(momentum=0.0)
    train(task, batches, 0.3)  # a hundred times the rate of the miniature training
    assert "lower learner.lr" in task.verdict(signs_of(task, batches[0]))
    with torch.no_grad():
        task.predictor[0].weight.fill_(torch.nan)
    assert "not a number" in task.verdict(signs_of(task, batches[0]))


def test_heads_that_are_looked_at_normalise_by_the_batch_and_remember_nothing(tiny_moco: Callable) -> None:
    task, x = tiny_moco(), torch.randn(6, 24)
    before = [b.clone() for b in task.projector.buffers()]
    looked = task.eval().through(task.projector, x)
    assert all(torch.equal(a, b) for a, b in zip(before, task.projector.buffers(), strict=True))
    torch.testing.assert_close(looked, task.train().through(task.projector, x))


def test_vital_signs_wait_for_no_other_process(
    tiny_moco: Callable, make_batch: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssl_med.ops import ranks

    def refuse() -> int:
        raise AssertionError("only the first process looks: a collective call would wait for ever")

    task = tiny_moco().eval()
    monkeypatch.setattr(ranks, "world_size", refuse)
    task.vital_signs(make_batch((16, 16)))


@pytest.mark.parametrize("size", [(16, 16), (8, 8, 8)])
def test_golden_losses(tiny_moco: Callable, size: tuple[int, ...]) -> None:
    losses = train(tiny_moco(len(size)), many(size, 3), 1e-3)
    assert losses == pytest.approx(golden(f"moco_v3_{len(size)}d"), rel=1e-3)


def _task() -> MoCoV3:
    torch.manual_seed(0)
    return MoCoV3(ViT(2, 4, embed_dim=24, depth=2, heads=2), hidden_dim=32, out_dim=16)


def _work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    whole = torch.load(Path(folder) / "x.pt", weights_only=True)
    task = _task()
    loss = task({name: value.chunk(world)[rank] for name, value in whole.items()}, 0.0)["loss"]
    loss.backward()
    gradients = [p.grad.clone() for p in task.parameters() if p.requires_grad]
    for gradient in gradients:
        dist.all_reduce(gradient)
    torch.save({"loss": loss.detach(), "gradients": [g / world for g in gradients]}, Path(folder) / f"{rank}.pt")
    leave()


def test_two_processes_equal_one(make_batch: Callable, tmp_path: Path) -> None:
    batch = make_batch((16, 16), 8)
    batch = {name: batch[name] for name in ("image", "key", "spacing")}
    torch.save(batch, tmp_path / "x.pt")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(_work, (2, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    task = _task()
    loss = task(batch, 0.0)["loss"]
    loss.backward()
    gradients = [p.grad for p in task.parameters() if p.requires_grad]
    for part in parts:
        torch.testing.assert_close(part["loss"], loss.detach(), atol=1e-5, rtol=1e-5)
        for ours, theirs in zip(part["gradients"], gradients, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-2)
