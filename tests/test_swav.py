"""SwAV: codes and loss against lightly's, prototypes of length 1, a frozen beginning, and one process against two."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightly.loss import SwaVLoss
from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn
from two_processes import leave

from ssl_med.backbones import UNetEncoder, ViT
from ssl_med.errors import UserError
from ssl_med.ops.random import sample_keys
from ssl_med.tasks import Plan, SwAV
from ssl_med.tasks.swav import swav_views
from ssl_med.transforms import Flip, PairedViews

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())


def small(axes: int = 2, **changes) -> SwAV:
    torch.manual_seed(0)
    vit = ViT(axes, 4, embed_dim=24, depth=2, heads=2, taps=2)
    return SwAV(vit, **{"prototypes": 6, "hidden_dim": 16, "out_dim": 8, **changes})


@pytest.mark.usefixtures("double")
def test_codes_are_lightlys() -> None:
    scores = torch.nn.functional.normalize(torch.randn(40, 12, generator=torch.Generator().manual_seed(0)), dim=1)
    task = small(prototypes=12)
    torch.testing.assert_close(task.codes(scores, 0.05), lightly_sinkhorn(scores, 3, 0.05), atol=1e-9, rtol=1e-9)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("axes", [2, 3])
def test_loss_and_its_gradient_are_lightlys(make_batch, axes: int) -> None:
    task, batch = small(axes), make_batch((24, 24) if axes == 2 else (16, 16, 16))
    loss = task(batch, 0.5)["loss"]
    (ours,) = torch.autograd.grad(loss, task.clusters)
    task = small(axes)  # the running moments of batch norm have moved
    scores = list(task.score(task.views(batch)))
    assert len(scores) == 8
    theirs = SwaVLoss()(scores[:2], scores[2:])
    (gradient,) = torch.autograd.grad(theirs, task.clusters)
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-9)
    torch.testing.assert_close(ours, gradient, atol=1e-9, rtol=1e-9)


def test_scores_are_cosines_and_prototypes_keep_their_length(make_batch) -> None:
    task, batch = small(), make_batch((24, 24))
    optimiser = torch.optim.SGD(task.parameters(), lr=1.0)
    task(batch, 0.5)["loss"].backward()
    optimiser.step()
    assert (task.clusters.norm(dim=1) - 1).abs().max() > 1e-3
    task.after_step(0.5)
    torch.testing.assert_close(task.clusters.norm(dim=1), torch.ones(6))
    assert task.score(task.views(batch)).abs().max() <= 1 + 1e-5


def test_prototypes_stay_at_the_beginning(make_batch) -> None:
    task, batch = small(freeze=0.1), make_batch((24, 24))
    task(batch, 0.05)["loss"].backward()
    assert task.clusters.grad.abs().max() == 0
    assert task.head[0].weight.grad.abs().max() > 0
    task(batch, 0.1)["loss"].backward()
    assert task.clusters.grad.abs().max() > 0


def test_views_are_the_papers_in_2d_and_3dinos_in_3d() -> None:
    flat = swav_views(UNetEncoder(2, 1, (4, 8), blocks=1)).laws(2)
    assert [law.scale for law in flat] == [(0.14, 1.0), (0.05, 0.14)]
    assert [law.scale for law in swav_views(UNetEncoder(3, 1, (4, 8), blocks=1)).laws(3)] == [(0.48, 1.0), (0.16, 0.48)]


def test_any_views_will_do_but_one(make_batch) -> None:
    batch = make_batch((16, 16))
    assert small(views=PairedViews([Flip()]))(batch, 0.5)["loss"].isfinite()
    task = small(views=PairedViews([Flip()]))
    with pytest.raises(UserError, match="two global views or more, got 1"):
        task.score(task.views(batch)[:1])
    with pytest.raises(UserError, match="prototypes must be 2 or more"):
        small(prototypes=1)
    with pytest.raises(UserError, match="must be above 0"):
        small(epsilon=0.0)


def test_prototypes_fit_the_data() -> None:
    chosen = [
        SwAV.choose({}, Plan(images, batch, 1000))["prototypes"].value
        for images, batch in [(20, 8), (400, 64), (10_000, 256), (1_300_000, 4096)]
    ]
    assert chosen == [8, 50, 256, 3000]
    parts = SwAV.choose({}, Plan(10_000, 256, 1000, forward_size=32))["prototypes"]  # codes share out one forward pass
    assert parts.value == 32
    assert "32 images of a forward pass" in parts.reason
    assert SwAV.choose({}, Plan(1000, 50, 400))["freeze"].value == 0.05


@torch.no_grad()
def test_collapse_is_seen(make_batch) -> None:
    task, batch = small().eval(), make_batch((24, 24), count=16)
    living = {name: float(value) for name, value in task.vital_signs(batch).items()}
    assert living["ln_prototypes"] == pytest.approx(1.7918, abs=1e-4)
    task.head[-1].weight.zero_()
    dead = {name: float(value) for name, value in task.vital_signs(batch).items()}
    assert dead["information"] < 1e-5
    assert "ln K = 1.79" in task.verdict(dead)
    assert task.verdict({**living, "information": 0.5}) == ""


def _batch(rows: slice) -> dict:
    image = torch.randn(8, 1, 24, 24, generator=torch.Generator().manual_seed(1))
    return {"image": image[rows], "key": sample_keys(0, torch.arange(8))[rows]}


def _work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    task = small()
    loss = task(_batch(slice(4 * rank, 4 * rank + 4)), 0.5)["loss"]
    loss.backward()
    gradient = {name: p.grad.clone() for name, p in task.named_parameters()}
    loss = loss.detach()
    for value in [loss, *gradient.values()]:
        dist.all_reduce(value)
        value /= 2
    torch.save({"loss": loss, "gradient": gradient}, Path(folder) / f"{rank}.pt")
    leave()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(_work, (str(tmp_path),), nprocs=2)
    task = small()
    loss = task(_batch(slice(0, 8)), 0.5)["loss"]
    loss.backward()
    part = torch.load(tmp_path / "0.pt", weights_only=True)
    torch.testing.assert_close(part["loss"], loss.detach(), atol=1e-5, rtol=1e-4)
    for name, gradient in part["gradient"].items():
        torch.testing.assert_close(gradient, task.get_parameter(name).grad, atol=2e-5, rtol=2e-3)


@pytest.mark.parametrize(("label", "space"), [("2d", (24, 24)), ("3d", (16, 16, 16))])
def test_golden_losses(make_batch, label: str, space) -> None:
    """Three steps give the numbers in golden.json. After a change that means to move them: run this test, copy them."""
    task, batch, losses = small(len(space)), make_batch(space), []
    optimiser = torch.optim.AdamW(task.parameters(), lr=3e-3)
    for number in range(3):
        optimiser.zero_grad()
        loss = task(batch, number / 3)["loss"]
        loss.backward()
        optimiser.step()
        task.after_step(number / 3)
        losses.append(loss.item())
    assert losses == pytest.approx(GOLDEN[f"swav_{label}"], rel=1e-3)
