"""EMA teachers, heads, norms and per-tensor clipping, against their formulas written anew."""

import numpy as np
import pytest
import torch
from lightly.models.modules import heads
from torch import nn

from ssl_med.ops.ema import follow, teacher_of
from ssl_med.ops.norm import BatchNorm
from ssl_med.optim import clip_each
from ssl_med.tasks import BYOL, DINO, BarlowTwins, MoCoV3, SwAV, VICReg
from ssl_med.tasks.heads import MLPHead, PrototypeHead


def test_teacher_begins_equal_and_takes_no_gradient() -> None:
    student = nn.Linear(3, 2)
    teacher = teacher_of(student)
    x = torch.randn(4, 3)
    assert torch.equal(teacher(x), student(x))
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_teacher_drops_nothing(tiny_vit) -> None:
    student = tiny_vit(2, drop_path=0.5).train()
    teacher, image = teacher_of(student), torch.randn(4, 1, 16, 16)
    assert torch.equal(teacher(image).pooled, teacher(image).pooled)
    assert not torch.equal(student(image).pooled, student(image).pooled)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_follow_is_a_moving_average(momentum: float) -> None:
    student = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    student.register_buffer("table", torch.zeros(3))
    teacher = teacher_of(student)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn_like(p))
    before = [p.clone() for p in teacher.parameters()]
    student(torch.randn(8, 3))
    teacher(torch.randn(8, 3))
    student.table.add_(1.0)
    statistics = {name: value.clone() for name, value in teacher[1].named_buffers()}
    follow(teacher, student, momentum)
    for held, old, new in zip(teacher.parameters(), before, student.parameters(), strict=True):
        torch.testing.assert_close(held, momentum * old + (1 - momentum) * new.detach())
    assert torch.equal(teacher.table, student.table)
    for name, value in statistics.items():  # the teacher's own
        assert torch.equal(getattr(teacher[1], name), value)
    assert not torch.equal(teacher[1].running_mean, student[1].running_mean)


def test_batch_norm_is_torchs_on_one_process() -> None:
    ours, theirs, x = BatchNorm(4), nn.BatchNorm1d(4), torch.randn(6, 4)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    ours, theirs, x = BatchNorm(4), nn.BatchNorm3d(4), torch.randn(3, 4, 2, 3, 2)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_mlp_head_has_norm_where_the_papers_have_it() -> None:
    kinds = [type(m).__name__ for m in MLPHead([4, 8, 8, 2], last_norm=True)]
    assert kinds == ["Linear", "BatchNorm", "ReLU", "Linear", "BatchNorm", "ReLU", "Linear", "BatchNorm"]
    head = MLPHead([4, 8, 2], norm="none", activation="gelu")
    assert [type(m).__name__ for m in head] == ["Linear", "GELU", "Linear"]
    assert all(m.bias is not None for m in head if isinstance(m, nn.Linear))


def test_prototype_head_gives_cosines() -> None:
    head = PrototypeHead(6, 10, hidden_dim=8, bottleneck_dim=4)
    x = torch.randn(5, 6)
    z = head.mlp(x).detach().numpy()
    w = head.prototypes.detach().numpy()
    cosines = (z / np.linalg.norm(z, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T
    np.testing.assert_allclose(head(x).detach().numpy(), cosines, atol=1e-6)
    head(x, frozen=True).sum().backward()
    assert head.prototypes.grad is None


def test_lengths_of_prototypes_can_be_learned_and_are_frozen_with_them() -> None:
    torch.manual_seed(0)
    head, fixed = (PrototypeHead(6, 10, 8, 4, norm_last_layer=norm) for norm in (False, True))
    assert "lengths" not in fixed.state_dict()
    fixed.load_state_dict(head.state_dict(), strict=False)
    x = torch.randn(5, 6)
    torch.testing.assert_close(head(x), fixed(x))  # they begin at 1
    with torch.no_grad():
        head.lengths.copy_(torch.arange(1.0, 11.0))
    torch.testing.assert_close(head(x), fixed(x) * torch.arange(1.0, 11.0))
    head(x, frozen=True).sum().backward()
    assert [part.grad for part in head.last()] == [None, None]
    head(x).sum().backward()
    torch.testing.assert_close(head.lengths.grad, fixed(x).sum(0).detach())


def linears(head: nn.Module) -> list[nn.Linear]:
    return [module for module in head.modules() if isinstance(module, nn.Linear)]


def with_weights_of(theirs: nn.Module, ours: nn.Module) -> nn.Module:
    """Lightly's head with our weights; where ours has no bias, theirs is 0, as in the paper's code."""
    for there, here in zip(linears(theirs), linears(ours), strict=True):
        there.weight.data.copy_(here.weight)
        if there.bias is not None:
            there.bias.data.copy_(torch.zeros_like(there.bias) if here.bias is None else here.bias)
    return theirs


HEADS = {
    "BYOL": (lambda vit: BYOL(vit, None, 16, 8).head, lambda: heads.BYOLProjectionHead(24, 16, 8)),
    "BYOL's predictor": (lambda vit: BYOL(vit, None, 16, 8).predictor, lambda: heads.BYOLPredictionHead(8, 16, 8)),
    "Barlow Twins": (
        lambda vit: BarlowTwins(vit, out_dim=16).head,
        lambda: heads.BarlowTwinsProjectionHead(24, 16, 16),
    ),
    "VICReg": (lambda vit: VICReg(vit, out_dim=16).head, lambda: heads.BarlowTwinsProjectionHead(24, 16, 16)),
    "SwAV": (lambda vit: SwAV(vit, hidden_dim=16, out_dim=8).head, lambda: heads.SwaVProjectionHead(24, 16, 8)),
    "MoCo v3": (
        lambda vit: MoCoV3(vit, hidden_dim=16, out_dim=8).projector,
        lambda: heads.MoCoProjectionHead(24, 16, 8, 3, True),
    ),
    "MoCo v3's predictor": (
        lambda vit: MoCoV3(vit, hidden_dim=16, out_dim=8).predictor,
        lambda: heads.MoCoProjectionHead(8, 16, 8, 2, True),
    ),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("ours", "theirs"), HEADS.values(), ids=HEADS)
def test_heads_of_the_tasks_are_lightlys(tiny_vit, ours, theirs) -> None:
    ours = ours(tiny_vit(2))
    theirs, x = with_weights_of(theirs(), ours), torch.randn(9, linears(ours)[0].in_features)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), atol=1e-12, rtol=1e-12)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_the_head_of_dino_is_lightlys(tiny_vit, norm: bool) -> None:
    ours = DINO(tiny_vit(2), prototypes=10, hidden_dim=16, bottleneck_dim=4, norm_last_layer=norm).head
    theirs = heads.DINOProjectionHead(24, 16, 4, 10, norm_last_layer=norm)
    for there, here in zip(linears(theirs.layers), linears(ours.mlp), strict=True):
        there.load_state_dict(here.state_dict())
    theirs.last_layer.weight_v.data.copy_(ours.prototypes)
    assert theirs.last_layer.weight_g.requires_grad is (ours.lengths is not None)
    if ours.lengths is not None:
        ours.lengths.data.uniform_(0.5, 2.0)
        theirs.last_layer.weight_g.data.copy_(ours.lengths[:, None])
    x = torch.randn(9, 24)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-12, rtol=1e-12)


def test_clip_each_clips_every_tensor_alone() -> None:
    small, large, unused = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    small.grad, large.grad = torch.tensor([0.3, 0.4]), torch.tensor([30.0, 40.0])
    norm = clip_each([small, large, unused], 3.0)
    torch.testing.assert_close(norm, torch.tensor((0.5**2 + 50.0**2) ** 0.5))
    torch.testing.assert_close(small.grad, torch.tensor([0.3, 0.4]))
    torch.testing.assert_close(large.grad, torch.tensor([1.8, 2.4]), atol=1e-5, rtol=0)
