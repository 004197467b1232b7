"""Losses of joint embeddings against lightly's, one process against two, and the tasks around them."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, VICRegLoss
from lightly.loss.lejepa_loss import SIGReg
from two_processes import leave

from ssl_med.ops.joint import barlow_twins, cosine_distance, sigreg, vicreg
from ssl_med.ops.random import sample_keys
from ssl_med.tasks import BYOL, BarlowTwins, LeJEPA, Plan, SimCLR, VICReg
from ssl_med.tasks.byol import teacher_memory
from ssl_med.transforms import ColourJitter, Flip, GaussianBlur, GaussianNoise, Grayscale, RandomResizedCrop


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 6, generator=generator)
    return x, x + 0.5 * torch.randn(12, 6, generator=generator)


@pytest.mark.usefixtures("double")
def test_vicreg_is_lightlys(pair) -> None:
    parts = vicreg(*pair)
    loss = 25 * parts["invariance"] + 25 * parts["variance"] + parts["covariance"]
    torch.testing.assert_close(loss, VICRegLoss()(*pair), atol=1e-9, rtol=1e-9)


def test_vicreg_sees_a_constant_embedding() -> None:
    same = torch.ones(8, 4)
    parts = vicreg(same, same)
    assert parts["invariance"] == 0
    assert parts["covariance"] == 0
    assert parts["variance"] == pytest.approx(0.99, abs=1e-6)  # 1 - sqrt(1e-4)


@pytest.mark.usefixtures("double")
def test_barlow_twins_is_lightlys(pair) -> None:
    parts = barlow_twins(*pair)
    expected = BarlowTwinsLoss(lambda_param=0.3)(*pair)
    torch.testing.assert_close(parts["invariance"] + 0.3 * parts["redundancy"], expected, atol=1e-9, rtol=1e-9)


@pytest.mark.usefixtures("double")
def test_cosine_distance_is_lightlys(pair) -> None:
    torch.testing.assert_close(cosine_distance(*pair), 2 + 2 * NegativeCosineSimilarity()(*pair), atol=1e-9, rtol=1e-9)
    assert cosine_distance(pair[0], -pair[0]).item() == pytest.approx(4.0)


@pytest.mark.usefixtures("double")
def test_sigreg_is_lightlys(pair, monkeypatch) -> None:
    views, theirs = torch.stack(pair), SIGReg(num_vectors=32)
    directions = torch.nn.functional.normalize(torch.randn(6, 32), dim=0)
    monkeypatch.setattr(theirs, "_generate_unit_vectors", lambda *_: directions)
    torch.testing.assert_close(sigreg(views, directions), theirs(views), atol=1e-7, rtol=1e-7)


def test_sigreg_knows_a_gaussian() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(8, 64, generator=generator), dim=0)
    normal = torch.randn(1, 4096, 8, generator=generator)
    # under the hypothesis the statistic's mean is the integral of (1 - exp(-t^2)) exp(-t^2 / 2) over [-3, 3]
    t = torch.linspace(-3, 3, 100_001, dtype=torch.float64)
    expected = torch.trapezoid((1 - torch.exp(-t.square())) * torch.exp(-t.square() / 2), t).item()
    assert sigreg(normal, directions).item() == pytest.approx(expected, rel=0.25)
    assert sigreg(0.1 * normal, directions) > 100 * expected
    assert sigreg(torch.zeros_like(normal), directions) > 100 * expected


def _work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    state = torch.load(Path(folder) / "in.pt", weights_only=True)
    x, y = (state[name].chunk(2)[rank].clone().requires_grad_(True) for name in "xy")
    loss = _all_losses(x, y, state["directions"])
    loss.backward()
    torch.save({"loss": loss.detach(), "x": x.grad / 2, "y": y.grad / 2}, Path(folder) / f"{rank}.pt")
    leave()


def _all_losses(x: torch.Tensor, y: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    parts = [*vicreg(x, y).values(), *barlow_twins(x, y).values(), cosine_distance(x, y)]
    return torch.stack([*parts, sigreg(torch.stack([x, y]), directions)]).sum()


def test_two_processes_equal_one(pair, tmp_path: Path) -> None:
    x, y = (part.clone().requires_grad_(True) for part in pair)
    directions = torch.nn.functional.normalize(torch.randn(6, 16), dim=0)
    torch.save({"x": pair[0], "y": pair[1], "directions": directions}, tmp_path / "in.pt")
    loss = _all_losses(x, y, directions)
    loss.backward()
    mp.spawn(_work, (str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for part in parts:
        torch.testing.assert_close(part["loss"], loss.detach(), atol=1e-5, rtol=1e-6)
    for name, whole in (("x", x), ("y", y)):
        torch.testing.assert_close(torch.cat([p[name] for p in parts]), whole.grad, atol=1e-5, rtol=1e-5)


def test_the_losses_are_the_same_under_autocast(pair) -> None:
    directions, found = torch.nn.functional.normalize(torch.randn(6, 16), dim=0), []
    for enabled in (False, True):
        x, y = (part.clone().requires_grad_(True) for part in pair)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = _all_losses(x, y, directions)
        loss.backward()
        found.append((loss.detach(), x.grad, y.grad))
    for full, mixed in zip(*found, strict=True):
        assert torch.equal(full, mixed)


def test_the_teacher_of_byol_starts_equal_and_follows(tiny_vit, make_batch) -> None:
    task, batch = BYOL(tiny_vit(2), hidden_dim=16, out_dim=8, momentum=0.5), make_batch((16, 16))
    backbone, teacher = task.backbone.norm.weight, task.teacher_backbone.norm.weight
    assert torch.equal(backbone, teacher)
    task(batch, 0.0)["loss"].backward()
    assert all(p.grad is None for p in [*task.teacher_backbone.parameters(), *task.teacher_head.parameters()])
    with torch.no_grad():
        backbone.add_(1.0)
    task.after_step(0.0)
    torch.testing.assert_close(backbone - teacher, torch.full_like(teacher, 0.5))
    task.after_step(1.0)  # momentum 1: the teacher stands still
    torch.testing.assert_close(backbone - teacher, torch.full_like(teacher, 0.5))


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.usefixtures("double")
def test_the_momentum_of_byol_at_five_points(tiny_vit, progress: float) -> None:
    """1 - (1 - m) (cos(pi p) + 1) / 2 of the paper, read off how far the teacher is left behind."""
    task = BYOL(tiny_vit(2), hidden_dim=16, out_dim=8, momentum=0.9)
    with torch.no_grad():
        task.backbone.norm.weight.add_(1.0)
        task.head[0].weight.add_(1.0)
    task.after_step(progress)
    momentum = 1 - (1 - 0.9) * (math.cos(math.pi * progress) + 1) / 2
    for student, teacher in ((task.backbone.norm, task.teacher_backbone.norm), (task.head[0], task.teacher_head[0])):
        torch.testing.assert_close(
            student.weight - teacher.weight, torch.full_like(teacher.weight, momentum), atol=1e-9, rtol=0
        )


@pytest.mark.parametrize(("steps", "momentum"), [(100, 0.9), (1000, 0.98), (5000, 0.996), (10**6, 0.996)])
def test_the_teacher_remembers_a_twentieth_of_a_short_training(steps: int, momentum: float) -> None:
    choice = teacher_memory(Plan(1000, 32, steps), 0.996)
    assert choice.value == pytest.approx(momentum, abs=1e-6)
    assert choice.reason


@pytest.mark.parametrize(("spatial_dims", "channels"), [(2, 1), (2, 2), (3, 1), (3, 3)])
def test_default_views_keep_hounsfield_units(tiny_vit, spatial_dims: int, channels: int) -> None:
    views = VICReg(tiny_vit(spatial_dims, in_channels=channels)).views
    for steps in (views.transforms, views.second):
        assert [type(step) for step in steps] == [RandomResizedCrop, Flip, GaussianBlur, GaussianNoise]


def test_default_views_of_rgb_pictures_change_colours(tiny_vit) -> None:
    kinds = [type(step) for step in VICReg(tiny_vit(2, in_channels=3)).views.transforms]
    assert kinds == [RandomResizedCrop, Flip, ColourJitter, Grayscale, GaussianBlur]


def test_simclr_at_the_beginning_is_near_chance(tiny_vit, make_batch) -> None:
    torch.manual_seed(0)
    task = SimCLR(tiny_vit(2), temperature=10.0)  # so flat that the similarities do not matter
    losses = task(make_batch((16, 16), 8), 0.0)
    assert losses["loss"].item() == pytest.approx(math.log(15), rel=0.03)
    assert losses["loss_over_chance"].item() == pytest.approx(1.0, rel=0.03)
    assert SimCLR.choose({}, Plan(100, 64, 10))["temperature"].value == 0.5
    assert SimCLR.choose({}, Plan(100, 4096, 10))["temperature"].value == 0.1
    parts = SimCLR.choose({}, Plan(100, 4096, 10, forward_size=64))["temperature"]  # only 64 are contrasted at once
    assert parts.value == 0.5
    assert parts.reason.startswith("64 images")


@pytest.mark.parametrize("cls", [VICReg, BarlowTwins])
def test_the_loss_is_the_weighted_sum_of_its_parts(cls, tiny_vit, make_batch) -> None:
    losses = cls(tiny_vit(2), out_dim=8)(make_batch((16, 16), 8), 0.0)
    if cls is VICReg:
        expected = 25 * losses["invariance"] + 25 * losses["variance"] + losses["covariance"]
    else:
        expected = 0.025 * (losses["invariance"] + 5e-3 * losses["redundancy"])
    torch.testing.assert_close(losses["loss"], expected)


def test_lejepa_looks_along_new_directions_each_step(tiny_vit, make_batch) -> None:
    task, batch = LeJEPA(tiny_vit(2), hidden_dim=16, out_dim=8, directions=4), make_batch((16, 16), 8)
    first, again = task(batch, 0.0)["gaussian"], task(batch, 0.0)["gaussian"]
    assert torch.equal(first, again)
    found = [task._directions({**batch, "key": sample_keys(seed, torch.arange(8))}, 8) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])  # the run's seed counts
    later = sample_keys(0, torch.arange(8, 16))
    assert not torch.equal(found[0], task._directions({**batch, "key": later}, 8))
    torch.testing.assert_close(found[0].norm(dim=0), torch.ones(4))


def test_a_constant_embedding_is_called_collapsed(tiny_vit, make_batch) -> None:
    task, batch = SimCLR(tiny_vit(2), hidden_dim=16, out_dim=8).eval(), make_batch((16, 16), 8)

    def verdict() -> str:
        with torch.no_grad():
            return task.verdict({name: float(value) for name, value in task.vital_signs(batch).items()})

    with torch.no_grad():
        for parameter in task.head.parameters():  # far apart at the start
            parameter.mul_(5.0)
    assert verdict() == ""
    with torch.no_grad():
        task.head[-1].weight.mul_(1e-4)
        task.head[-1].bias.fill_(1.0)
    assert "nearly the same for all images" in verdict()


def test_an_embedding_of_few_dimensions_is_called_collapsed(tiny_vit, make_batch) -> None:
    task = SimCLR(tiny_vit(2), hidden_dim=16, out_dim=64).eval()
    with torch.no_grad():
        sound = {name: float(value) for name, value in task.vital_signs(make_batch((16, 16), 32)).items()}
    assert "few dimensions (effective rank 3.1 of 32)" in task.verdict({**sound, "embedding_rank": 3.1})
    assert task.verdict({**sound, "embedding_rank": 3.3}) == ""
    with torch.no_grad():
        task.vital_signs(make_batch((16, 16), 8))  # eight images cannot have a high one
    assert task.verdict({**sound, "embedding_rank": 1.2}) == ""
