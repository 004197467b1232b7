"""Every task on 2 and on 4 processes is the task on one: losses, weights, teachers, centres and queues, step by step.

In double precision, where a law that holds is seen to 1e-13 and a sum over the wrong rows is not: in single precision
batch norm over eight images makes 1e-3 of a rounding error within three steps.
"""

from pathlib import Path

import pytest
import torch
from contracts.test_tasks import cases, make_task
from torch.nn.parallel import DistributedDataParallel
from worlds import image_batch, share, together

from ssl_med.ops import ranks
from ssl_med.tasks import PretextTask, SupervisedTask, Task

STEPS = 3
pytestmark = [
    pytest.mark.filterwarnings("ignore:Grad strides do not match"),  # kernels of one voxel, channels last: speed only
]
ALL = {case.id: case.values for case in [*cases(PretextTask), *cases(SupervisedTask)]}
ON_FOUR = ["DINO-UNetEncoder-3d", "MAE-ViT-2d", "VICReg-ViT-2d"]


def trained(case: str, rank: int = 0, world: int = 1) -> dict:
    """Losses of some steps and the state behind them; not Adam, which makes large steps of rounding errors."""
    cls, name, space = ALL[case]
    task: Task = make_task(cls, name, space).double()
    called = DistributedDataParallel(task) if world > 1 else task
    optimiser = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    losses = []
    for step in range(STEPS):
        optimiser.zero_grad()
        parts = called(share(image_batch(space, seed=step, dtype=torch.float64), rank, world), step / STEPS)
        parts["loss"].backward()
        optimiser.step()
        task.after_step((step + 1) / STEPS)
        losses.append({part: value.detach() for part, value in parts.items()})
    return {"losses": losses, "state": task.state_dict()}


@pytest.fixture(autouse=True)
def double_precision(monkeypatch):
    """What the tasks do in full precision, ``x.float()``, is done in double."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def train_all(names: list[str], rank: int, world: int) -> dict[str, dict]:
    return {name: trained(name, rank, world) for name in names}


def worst(found, expected) -> float:
    """Largest difference, relative to numbers above 1."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        return max((worst(found[name], expected[name]) for name in expected), default=0.0)
    if isinstance(expected, list):
        return max(worst(a, b) for a, b in zip(found, expected, strict=True))
    return float(((found.double() - expected.double()).abs() / expected.double().abs().clamp(min=1)).max())


def average(parts: list[dict], name: str) -> list[dict]:
    """Losses of all processes together: what a process says is of its own rows, or of all."""
    steps = zip(*[part[name]["losses"] for part in parts], strict=True)
    return [{key: torch.stack([losses[key] for losses in step]).mean(0) for key in step[0]} for step in steps]


@pytest.mark.parametrize(("world", "names"), [(2, list(ALL)), (4, ON_FOUR)], ids=["2 processes", "4 processes"])
def test_processes_equal_one(world: int, names: list[str], tmp_path: Path) -> None:
    parts = together(world, tmp_path, lambda rank: train_all(names, rank, world))
    expected = train_all(names, 0, 1)
    apart = {name: worst(average(parts, name), expected[name]["losses"]) for name in names}
    apart |= {
        f"{name}, rank {i}": worst(p[name]["state"], expected[name]["state"])
        for name in names
        for i, p in enumerate(parts)
    }
    assert {name: far for name, far in apart.items() if far > 1e-10} == {}


def test_the_comparison_sees_what_is_not_shared(tmp_path: Path) -> None:
    """Without the rows of the other process, contrast is another loss."""
    name = "SimCLR-ViT-2d"

    def by_itself(rank: int) -> dict[str, dict]:
        with ranks.alone():
            return train_all([name], rank, 2)

    parts = together(2, tmp_path, by_itself)
    assert worst(average(parts, name), trained(name)["losses"]) > 1e-3
