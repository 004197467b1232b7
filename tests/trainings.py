"""A few steps of any task, on one process or as one of several: losses, and the state behind them.

In double precision, where a law that holds is seen to 1e-13 and a sum over the wrong rows is not: in single precision
batch norm over eight images makes 1e-3 of a rounding error within three steps.
"""

from collections.abc import Callable
from functools import partial

import torch
from contracts.test_tasks import SMALL, SPACES, cases, make_task
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from worlds import image_batch, share

from ssl_med import sharding
from ssl_med.backbones import Backbone, MonaiBackbone, TimmBackbone, UNetEncoder, ViT
from ssl_med.ops.norm import over_all_processes
from ssl_med.tasks import DINO, PretextTask, SimCLR, SSiT, SupervisedTask, Task
from ssl_med.tasks.saliency import TeacherAttention

STEPS = 3
Case = tuple[Callable[[], Task], tuple[int, ...]]
"""What makes a task, and the size of its images."""


def _vit(**settings: object) -> ViT:
    return ViT(2, 4, embed_dim=24, depth=2, heads=2, taps=2, **settings)


def _simclr(backbone: Backbone) -> SimCLR:
    return SimCLR(backbone, **SMALL["SimCLR"])


PLAIN: dict[str, Case] = {
    case.id: (partial(make_task, *case.values), case.values[2])
    for case in [*cases(PretextTask), *cases(SupervisedTask)]
}
"""Every task in 2D and in 3D, as it stands."""
IBOT = {**SMALL["DINO"], "ibot": 1.0, "ibot_head": True, "centring": "sinkhorn", "koleo": 0.1}
MORE: dict[str, Case] = {
    "DINO with iBOT, Sinkhorn and KoLeo": (lambda: DINO(_vit(), **IBOT), SPACES["2d"]),
    "DINO in one packed pass": (lambda: DINO(_vit(), packed=True, **SMALL["DINO"]), SPACES["2d"]),
    "SSiT seen by its teacher": (lambda: SSiT(_vit(), saliency=TeacherAttention(), **SMALL["SSiT"]), SPACES["2d"]),
    "SimCLR with batch norm": (
        lambda: SimCLR(UNetEncoder(3, 1, (4, 8), norm="batch"), **SMALL["SimCLR"]),
        SPACES["3d"],
    ),
    "SimCLR on timm's ConvNeXt": (lambda: SimCLR(TimmBackbone("test_convnext", 1), **SMALL["SimCLR"]), (32, 32)),
    "SimCLR on timm's ResNet": (lambda: SimCLR(TimmBackbone("test_resnet", 1), **SMALL["SimCLR"]), (32, 32)),
    "SimCLR on MONAI's SegResNet": (lambda: SimCLR(MonaiBackbone("SegResNet", 2, 1, 8), **SMALL["SimCLR"]), (32, 32)),
}
"""Settings that compute something else over the batch, and backbones of others."""
ALL = PLAIN | MORE


def task_of(case: str) -> Task:
    """The task of a case, with the same weights at each call."""
    torch.manual_seed(0)
    return ALL[case][0]().double()


def trained(case: str, rank: int = 0, world: int = 1, strategy: str = "ddp") -> dict:
    """Losses of some steps and the state behind them; not Adam, which makes large steps of rounding errors."""
    task, space = task_of(case), ALL[case][1]
    if world > 1:
        over_all_processes(task)  # as the learner does
    if world > 1 and strategy == "fsdp":
        sharding.shard(task, init_device_mesh("cpu", (world,)))
    called = DistributedDataParallel(task) if world > 1 and strategy == "ddp" else task
    optimiser = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    losses = []
    for step in range(STEPS):
        optimiser.zero_grad()
        parts = called(share(image_batch(space, seed=step, dtype=torch.float64), rank, world), step / STEPS)
        parts["loss"].backward()
        optimiser.step()
        task.after_step((step + 1) / STEPS)
        losses.append({part: value.detach() for part, value in parts.items()})
    return {"losses": losses, "state": whole_state(task)}


def whole_state(task: Task) -> dict[str, torch.Tensor]:
    """Weights and buffers, put together where they are in shards."""
    return {name: v.full_tensor() if isinstance(v, DTensor) else v for name, v in task.state_dict().items()}


def average(parts: list[dict], name: str) -> list[dict]:
    """Losses of all processes together: what a process says is of its own rows, or of all."""
    steps = zip(*[part[name]["losses"] for part in parts], strict=True)
    return [{key: torch.stack([losses[key] for losses in step]).mean(0) for key in step[0]} for step in steps]


def worst(found, expected) -> float:
    """Largest difference, relative to numbers above 1."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        return max((worst(found[name], expected[name]) for name in expected), default=0.0)
    if isinstance(expected, list):
        return max(worst(a, b) for a, b in zip(found, expected, strict=True))
    return float(((found.double() - expected.double()).abs() / expected.double().abs().clamp(min=1)).max())
