"""``ssl-med plan CONFIG --measure``: steps of the config's own task on this device, and what the job takes here.

A few batches are timed, a law is fitted to them (:mod:`ssl_med.verbs.plan_time`), and the law is asked for the batch
and the crop that are wanted. Images are noise in memory: reading is not in these times.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ssl_med.backbones import Backbone
from ssl_med.config import Config, load_config
from ssl_med.errors import UserError
from ssl_med.fit import built_of, fill_open, resolve
from ssl_med.learner import Learner
from ssl_med.run_data import backbone_of
from ssl_med.tasks import Plan
from ssl_med.verbs.plan_model import per_axis, require
from ssl_med.verbs.plan_step import Stepper
from ssl_med.verbs.plan_time import Count, Size, StepTime, fit_step_time, per_sample, worst_error

ENOUGH = 1.0  # seconds of a step from which on larger batches say nothing new about the rate
ROUNDS = 5


class Calibration(NamedTuple):
    """What was found out on this device.

    Attributes:
        law: of the time of a step.
        sample: counts of one sample of ``crop``.
        shared: FLOPs of a step that do not grow with the batch.
        crop: voxels along each axis.
        points: FLOPs and seconds of the steps that were timed, by their size.
        state: bytes of weights, gradients, moments and teachers.
    """

    law: StepTime
    sample: Count
    shared: float
    crop: tuple[int, ...]
    points: dict[Size, tuple[float, float]]
    state: int

    def at(self, size: Size) -> Count:
        """Counts of a step of another size."""
        one = self.sample.at(math.prod(size.crop) / math.prod(self.crop))
        return Count(one.dense * size.batch + self.shared, one.attention * size.batch, one.kept * size.batch)

    def seconds(self, size: Size) -> float:
        """Predicted time of a step."""
        return self.law.seconds(self.at(size).flops)


def calibrate(stepper: Stepper, sizes: Sequence[Size], rounds: int = ROUNDS) -> Calibration:
    """Count and time steps of some sizes.

    Args:
        stepper: of the task.
        sizes: two batches at least of the first one's crop; other crops are used for the time only.
        rounds: steps of each, of which the median is taken.
    """
    counts = {size: stepper.count(size) for size in sizes}
    return fitted(counts, stepper.seconds(sizes, rounds), stepper.state_bytes())


def fitted(counts: Mapping[Size, Count], times: Mapping[Size, float], state: int) -> Calibration:
    """The law from counts and times of the same steps; see :func:`calibrate`."""
    points = {size: (count.flops, times[size]) for size, count in counts.items()}
    crop = next(iter(counts)).crop
    own = sorted(size for size in counts if size.crop == crop)
    few, many = own[0], own[-1]
    sample = per_sample((few.batch, counts[few]), (many.batch, counts[many]))
    shared = max(0.0, counts[few].flops - few.batch * sample.flops)
    return Calibration(fit_step_time(list(points.values())), sample, shared, crop, points, state)


def ladder(seconds_of: Callable[[Size], float], crop: tuple[int, ...], wanted: int) -> list[Size]:
    """Batches to time: 2 and 4, then doubled until the one that is wanted, or until a step takes a second.

    On a GPU small batches take as long as none; on a CPU the second is there at once.
    """
    sizes = [Size(2, crop), Size(4, crop)]
    while 2 * sizes[-1].batch <= wanted and seconds_of(sizes[-1]) < ENOUGH:
        sizes.append(Size(2 * sizes[-1].batch, crop))
    return [sizes[0], *sizes[1:][-2:]]


class Wanted(NamedTuple):
    """What is asked of the measurement.

    Attributes:
        crop: voxels along each axis, one number for all, or None for the config's.
        batch: samples of a step; None for the config's.
        measure_crop: crop of the steps that are timed; None for the same.
        images: in the data set.
    """

    crop: Any = None
    batch: int | None = None
    measure_crop: Any = None
    images: int = 1000


def measure(config: str, wanted: Wanted) -> tuple[dict[str, float], list[str]]:
    """Time the task of a config on this device.

    Returns:
        Numbers under names that carry their units, and sentences that say under which conditions they hold.

    Raises:
        UserError: a config that does not fit, of several stores, or too little memory for two samples.
    """
    learner, resolved, wanted = learner_of(load_config(config, "pretrain"), wanted)
    backbone, trainer = backbone_of(learner.task), resolved["trainer"]
    device, dtype = device_of(trainer), dtype_of(trainer["precision"])
    size, tried = sizes_of(backbone, resolved, wanted)
    stepper = Stepper(learner, backbone.in_channels, device, dtype)
    try:
        sizes = ladder(lambda one: stepper.seconds([one], 1)[one], tried, size.batch)
        found = calibrate(stepper, sizes)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"--measure: steps with crop {tried} do not fit into {device}; give a --measure_crop"
        ) from error
    parts = trainer.get("accumulate_grad_batches") or 1
    return costs(found, size, parts, wanted.images, trainer["max_steps"]), conditions(
        found, device, trainer["precision"]
    )


def learner_of(config: Config, wanted: Wanted) -> tuple[Learner, Config, Wanted]:
    """The learner that a run of this config would have, with the settings that a run chooses from the data."""
    data = config.get("data") or {}
    require("stores" not in data, "plan --measure takes a config of one store; this one has data.stores")
    batch = wanted.batch or data.get("batch_size")
    if isinstance(batch, int):
        config = {**config, "data": {**data, "batch_size": batch}}
    resolved, parser = resolve(config, Path("store"))
    batch = resolved["data"]["batch_size"]
    steps = resolved["trainer"]["max_steps"]
    fill_open(resolved["task"], Plan(wanted.images, batch, steps))
    task = built_of(parser, resolved).task
    settings = {**resolved["learner"], "betas": tuple(resolved["learner"]["betas"])}
    return Learner(task, **settings), resolved, wanted._replace(batch=batch)


def sizes_of(backbone: Backbone, resolved: Config, wanted: Wanted) -> tuple[Size, tuple[int, ...]]:
    """The step that is asked for, and the crop of the steps that are timed."""
    rank, crop = backbone.spatial_dims, wanted.crop or resolved["data"].get("crop")
    require(crop is not None, "the config has no data.crop: give --crop")
    require(wanted.batch is not None and wanted.batch > 0, f"batch must be above 0, got {wanted.batch}")
    size = Size(wanted.batch or 0, per_axis("crop", crop, rank))
    return size, per_axis("measure_crop", wanted.measure_crop or crop, rank)


def device_of(trainer: Config) -> torch.device:
    """The GPU, if there is one and the config does not ask for the processor."""
    return torch.device("cuda" if torch.cuda.is_available() and trainer.get("accelerator") != "cpu" else "cpu")


def dtype_of(precision: Any) -> torch.dtype | None:
    """What autocast computes in, for Lightning's word for a precision."""
    return {"bf16": torch.bfloat16, "16": torch.float16}.get(str(precision).removesuffix("-mixed"))


def costs(found: Calibration, size: Size, parts: int, images: int, steps: int) -> dict[str, float]:
    """Time of a step of so many parts (accumulated gradients), of an epoch and of the job, and memory."""
    count, samples = found.at(size), size.batch * parts
    seconds = found.law.seconds(count.flops * parts)
    return {
        "measured_batch": samples,
        "measured_flops_per_sample": count.flops / size.batch,
        "measured_flops_per_second": 1 / found.law.per_flop,
        "fixed_seconds": found.law.fixed,
        "step_seconds": seconds,
        "epoch_minutes": seconds * images / samples / 60,
        "job_hours": seconds * steps / 3600,
        "measured_state_bytes": found.state,
        "measured_activation_bytes_per_sample": count.kept / size.batch,
        "measured_memory_bytes": found.state + count.kept,
    }


def conditions(found: Calibration, device: torch.device, precision: Any) -> list[str]:
    """Under which conditions the numbers hold."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    timed = ", ".join(f"{batch} x {'x'.join(map(str, crop))}" for batch, crop in found.points)
    error = worst_error(found.law, list(found.points.values()))
    return [
        f"measured on {name}, precision {precision}, with images of noise: reading is not in the time",
        f"step = fixed + FLOPs / rate, fitted to steps of {timed}, median of {ROUNDS} each; off by {error:.1%} there",
        "another crop than the timed one: layers grow with its voxels, attention with their square",
        "an epoch shows every image once (--volumes); the job is trainer.max_steps",
        "memory: weights, gradients, moments and what autograd keeps, without temporary buffers",
    ]
