"""A pretraining on 8 to 1024 GPUs on paper: compute, all-reduce of the gradients, reading, days."""

from collections.abc import Sequence
from typing import NamedTuple

from ssl_med.presets import GPU_HOURS_PER_STOP
from ssl_med.verbs.plan_model import Job

GPUS = (8, 64, 256, 1024)
GRADIENT_BYTES = 4  # fp32


class Cluster(NamedTuple):
    """What is assumed of the machines and of the run.

    Attributes:
        rate: FLOP/s that one GPU reaches.
        link: bytes/s through the network of each GPU.
        gpus_per_node: GPUs of one machine.
        batch: samples per GPU and step.
        samples: that the run sees.
        read: bytes that are read from storage for one sample.
    """

    rate: float
    link: float
    gpus_per_node: int
    batch: int
    samples: float
    read: float

    def assumed(self) -> list[str]:
        """These in words, with what else the table takes for granted."""
        return [
            f"{self.batch} samples per GPU and step at any number of GPUs, so the global batch grows with them",
            f"gradients in fp32, a ring through {self.link / 1e9:g} GB/s per GPU, not hidden behind the backward pass",
            f"{self.gpus_per_node} GPUs a node; what is read is compressed, and read from storage each time (no cache)",
            f"{self.samples:,.0f} samples in all; days without stops and checkpoints",
        ]


class Scale(NamedTuple):
    """One line of the table: what so many GPUs do."""

    gpus: int
    global_batch: int
    compute_seconds: float
    reduce_bytes: float
    reduce_seconds: float
    steps_per_second: float
    node_bytes_per_second: float
    bytes_per_second: float
    days: float
    days_between_stops: float


def scale_to(job: Job, gpus: int, cluster: Cluster) -> Scale:
    """The run on a number of GPUs.

    The all-reduce is a ring (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69(2), 2009): every GPU sends and gets
    2 (p - 1) / p times the gradients. It is not hidden behind the backward pass, so a step is compute plus all-reduce.
    """
    compute = cluster.batch * job.work().flops / cluster.rate
    volume = 2 * (gpus - 1) / gpus * GRADIENT_BYTES * job.model.parameters()
    step = compute + volume / cluster.link
    batch = cluster.batch * gpus
    reading = batch * cluster.read / step
    return Scale(
        gpus=gpus,
        global_batch=batch,
        compute_seconds=compute,
        reduce_bytes=volume,
        reduce_seconds=volume / cluster.link,
        steps_per_second=1 / step,
        node_bytes_per_second=reading * min(1.0, cluster.gpus_per_node / gpus),
        bytes_per_second=reading,
        days=cluster.samples / batch * step / 86400,
        days_between_stops=GPU_HOURS_PER_STOP / gpus / 24,
    )


_HEAD = ("GPUs", "batch", "compute ms", "reduce MB", "ms", "steps/s", "GB/s a node", "GB/s", "days", "a stop every")


def scale_table(lines: Sequence[Scale]) -> str:
    """The lines as text, in columns."""
    cells = [_HEAD, *(_cells(line) for line in lines)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(_HEAD))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def _cells(line: Scale) -> tuple[str, ...]:
    numbers = (
        line.compute_seconds * 1e3, line.reduce_bytes / 1e6, line.reduce_seconds * 1e3, line.steps_per_second,
        line.node_bytes_per_second / 1e9, line.bytes_per_second / 1e9, line.days,
    )  # fmt: skip
    texts = (f"{x:,.0f}" if x >= 1000 else f"{x:.3g}" for x in numbers)
    return (str(line.gpus), f"{line.global_batch:,}", *texts, f"{line.days_between_stops:.3g} days")
