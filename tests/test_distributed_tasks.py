"""Every task on 2 and on 4 processes is the task on one: losses, weights, teachers, centres and queues, step by step.

Here with copies, every task on 2 processes and some on 4, and in shards on 2, one of a kind; ``python -m
benchmarks.worlds`` compares all of them on 2 and 4 processes, with copies and in shards.
"""

from pathlib import Path

import pytest
from double import in_double
from trainings import ALL, average, trained, worst
from worlds import together

from ssl_med.ops import ranks

pytestmark = [
    pytest.mark.filterwarnings("ignore:Grad strides do not match"),  # kernels of one voxel, channels last: speed only
]
ON_FOUR = ["DINO-UNetEncoder-3d", "MAE-ViT-2d", "VICReg-ViT-2d"]
IN_SHARDS = ["SwAV-UNetEncoder-3d", "IJEPA-ViT-2d", "LeJEPA-ViT-2d", "VoCo-UNetEncoder-3d", "Segment-UNetEncoder-3d"]


@pytest.fixture(autouse=True)
def double_precision():
    with in_double():
        yield


def train_all(names: list[str], rank: int, world: int, strategy: str = "ddp") -> dict[str, dict]:
    return {name: trained(name, rank, world, strategy) for name in names}


CASES = {"2 processes": (2, list(ALL), "ddp"), "4 processes": (4, ON_FOUR, "ddp"), "2 shards": (2, IN_SHARDS, "fsdp")}


@pytest.mark.parametrize(("world", "names", "strategy"), CASES.values(), ids=CASES)
def test_processes_equal_one(world: int, names: list[str], strategy: str, tmp_path: Path) -> None:
    parts = together(world, tmp_path, lambda rank: train_all(names, rank, world, strategy))
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
