"""``ssl-med plan``: what a pretraining run will cost in memory, time, bandwidth and disk, before any GPU is booked.

A model on paper: it knows matrix products and bytes, not kernels, so its one guess is ``utilisation``, the share of the
accelerator's peak that a step reaches; projection heads of contrastive tasks are not counted. GB are 1e9 bytes. With
``measure`` a few steps are timed on this device as well (:mod:`ssl_med.verbs.plan_measure`).
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any

from ssl_med.config import find_config
from ssl_med.errors import UserError
from ssl_med.plain_yaml import read_yaml
from ssl_med.presets import (
    PRESETS,
    Stack,
    batch_that_fits,
    checkpoint_bytes,
    checkpoint_interval,
    state_bytes,
)
from ssl_med.recipe import walk
from ssl_med.verbs.plan_model import TASKS, Job, Model, Work, per_axis, require
from ssl_med.verbs.plan_print import (
    CONVERSION_RATE,
    CROP_READ_RATE,
    GB,
    MEASURED,
    ON_PAPER,
    assumed,
    listed,
    table,
)
from ssl_med.verbs.plan_scale import GPUS, Cluster, scale_table, scale_to

BATCH = 64  # of one GPU, without a config


def plan(
    config: str | None = None,
    *,
    size: str = "vit_base",
    spatial_dims: int = 3,
    crop: tuple[int, ...] | int = 96,
    patch: tuple[int, ...] | int = 16,
    channels: int = 1,
    mask_ratio: float = 0.75,
    task: str = "mae",
    decoder_dim: int = 512,
    decoder_depth: int = 8,
    class_token: bool = True,
    memory_gb: float = 80,
    gpus: int = 1,
    tflops: float = 989,
    utilisation: float = 0.3,
    volumes: int = 1000,
    volume_shape: tuple[int, ...] = (256, 256, 200),
    samples: float = 1e6,
    bytes_per_voxel: float = 2,
    compression: float = 2.4,
    crops_per_read: int = 1,
    write_gb_s: float = 1,
    batch: int | None = None,
    scale: bool = False,
    link_gb_s: float = 50,
    gpus_per_node: int = 8,
    measure: bool = False,
    measure_crop: tuple[int, ...] | int | None = None,
) -> dict[str, Any]:
    """Estimate the cost of a pretraining run and print it.

    Args:
        config: a config (short name or path) that names the ViT, the task and the crop; arguments that differ from
            their default win over it.
        size: preset of the encoder: vit_tiny, vit_small, vit_base, vit_large, vit_huge or vit_giant.
        spatial_dims: 2, 3, or 4 for volumes over time.
        crop: voxels of a crop along each axis in memory order, or one number for all.
        patch: voxels of a patch along each axis, or one number for all.
        channels: channels of the image.
        mask_ratio: share of the patches that mae hides; other tasks hide none.
        task: mae; simclr (2 crops); byol (2 crops, teacher); dino (2 crops and 8 of half the edge, teacher).
        decoder_dim: width of mae's decoder.
        decoder_depth: blocks of mae's decoder.
        class_token: the encoder has a class token.
        memory_gb: memory of one accelerator.
        gpus: accelerators that share the batch (data parallel).
        tflops: peak of one accelerator in bf16; 989 is an H100 SXM.
        utilisation: share of the peak that is reached; a guess until measured.
        volumes: images in the data set.
        volume_shape: voxels of one of them.
        samples: samples the run sees.
        bytes_per_voxel: in the store; 2 for int16.
        compression: raw over stored bytes; 2.4 was measured on CT with blosc2, zstd 5.
        crops_per_read: crops drawn from one decoded region.
        write_gb_s: rate at which a checkpoint is written.
        batch: samples per GPU and step; the config's, or 64 without one.
        scale: print a table for 8 to 1024 GPUs too.
        link_gb_s: rate of the network of each GPU, for that table; 50 is a port of 400 Gbit/s for each.
        gpus_per_node: GPUs of one machine, for that table.
        measure: time steps of the config's task on this device instead, and say what a step, an epoch and the job take
            here, of any task; what changes the model must stand in the config.
        measure_crop: crop of the steps that are timed, where the wanted one is too large for this device.

    Returns:
        The printed numbers under names that carry their units.

    Raises:
        UserError: a number out of range, an unknown name, or a crop that is not divisible by the patch.
    """
    drawn: dict[str, Any] = {
        "size": size, "spatial_dims": spatial_dims, "crop": crop, "patch": patch, "channels": channels,
        "mask_ratio": mask_ratio, "task": task, "decoder_dim": decoder_dim, "decoder_depth": decoder_depth,
        "class_token": class_token,
    }  # fmt: skip
    positive = {
        "memory_gb": memory_gb, "gpus": gpus, "tflops": tflops, "utilisation": utilisation, "volumes": volumes,
        "smallest axis of volume_shape": min(volume_shape), "samples": samples, "bytes_per_voxel": bytes_per_voxel,
        "compression": compression, "crops_per_read": crops_per_read, "write_gb_s": write_gb_s,
        "batch": 1 if batch is None else batch, "link_gb_s": link_gb_s, "gpus_per_node": gpus_per_node,
    }  # fmt: skip
    for name, value in positive.items():
        require(value > 0, f"{name} must be above 0, got {value}")
    defaults = inspect.signature(plan).parameters
    changed = {name: value for name, value in drawn.items() if value != defaults[name].default}
    if measure:
        require(not scale, "scale is a table on paper and measure is about this device: ask for one at a time")
        return _measured(config, changed, batch, measure_crop, volumes)
    require(measure_crop is None, "measure_crop says what measure shall time: give measure too")
    found = {} if config is None else read_config(config)
    own = found.pop("batch", BATCH)
    job = assemble(**(drawn | found | changed))
    work, rate = job.work(), tflops * 1e12 * utilisation
    speed, read = rate / work.flops, job.region() * bytes_per_voxel / crops_per_read
    answer = {
        **model_costs(job, work),
        **memory_costs(job, work, memory_gb * GB),
        "samples_per_second_per_gpu": speed,
        "hours": samples / (speed * gpus) / 3600,
        **reading_costs(speed * read, gpus, compression),
        **store_costs(volumes * math.prod(volume_shape) * job.model.channels * bytes_per_voxel, compression),
        **saving_costs(job, gpus, write_gb_s * GB),
    }
    print(table(answer, ON_PAPER) + listed("assumed", assumed(positive)))
    if scale:
        cluster = Cluster(rate, link_gb_s * GB, gpus_per_node, batch or own, samples, read / compression)
        answer["scale"] = [scale_to(job, number, cluster) for number in GPUS]
        print("\n" + scale_table(answer["scale"]) + listed("assumed beside this", cluster.assumed()))
    return answer


def _measured(
    config: str | None, changed: Mapping[str, Any], batch: int | None, measure_crop: Any, volumes: int
) -> dict[str, Any]:
    """What ``measure`` asks for, printed; torch is imported here only."""
    other = [name for name in changed if name != "crop"]
    require(config is not None, "measure times the task of a config: name one, such as mae_3d")
    require(not other, f"measure builds the task that the config says; change {', '.join(other)} there")
    from ssl_med.verbs.plan_measure import Wanted, measure

    answer, conditions = measure(str(config), Wanted(changed.get("crop"), batch, measure_crop, volumes))
    print(table(answer, MEASURED) + listed("how", conditions))
    return answer


def read_config(config: str) -> dict[str, Any]:
    """The numbers of a config that a cost depends on, under the names of :func:`plan`'s arguments.

    Raises:
        UserError: there is no such config, or it names no ViT or no task of :data:`TASKS`.
    """
    tree, _ = read_yaml(find_config(config, "pretrain"))
    parts = {class_path.rpartition(".")[2]: init_args for _, class_path, init_args in walk(tree, "config")}
    task, vit = next((name for name in parts if name.lower() in TASKS), ""), parts.get("ViT")
    if vit is None or not task:
        named = ", ".join(parts) or "no class"
        raise UserError(f"config {config!r} names {named}; plan knows the tasks {', '.join(TASKS)} on a ViT")
    found = {"task": task.lower(), "size": f"vit_{vit.get('size', 'small')}", "channels": vit.get("in_channels")}
    found |= {name: vit.get(name) for name in _OF_VIT} | {name: parts[task].get(name) for name in _OF_TASK}
    found |= {"crop": (tree.get("data") or {}).get("crop"), "batch": (tree.get("data") or {}).get("batch_size")}
    return {name: value for name, value in found.items() if value is not None}


_OF_VIT = ("spatial_dims", "patch", "class_token", "embed_dim", "depth", "mlp_ratio")
_OF_TASK = ("mask_ratio", "decoder_dim", "decoder_depth")


def assemble(
    *, size: str, spatial_dims: int, crop: Any, patch: Any, channels: int, mask_ratio: float, task: str,
    decoder_dim: int, decoder_depth: int, class_token: bool, embed_dim: int | None = None, depth: int | None = None,
    mlp_ratio: float | None = None,
) -> Job:  # fmt: skip
    """Check the arguments that describe the model and its task, and put them together.

    Raises:
        UserError: see :func:`plan`.
    """
    require(size in PRESETS, f"size {size!r} is unknown; choose one of {', '.join(PRESETS)}")
    require(task in TASKS, f"task {task!r} is unknown; choose one of {', '.join(TASKS)}")
    require(spatial_dims in (2, 3, 4), f"spatial_dims must be 2, 3 or 4, got {spatial_dims}")
    require(0 <= mask_ratio < 1, f"mask_ratio must be at least 0 and below 1, got {mask_ratio}")
    require(min(channels, decoder_dim, decoder_depth) > 0, "channels, decoder_dim and decoder_depth must be above 0")
    preset, views = PRESETS[size], TASKS[task]
    encoder = Stack(embed_dim or preset["embed_dim"], depth or preset["depth"], mlp_ratio or preset["mlp_ratio"])
    decoder = Stack(decoder_dim, decoder_depth) if views.masked else None
    model = Model(encoder, decoder, per_axis("patch", patch, spatial_dims), channels, class_token)
    return Job(model, views, per_axis("crop", crop, spatial_dims), mask_ratio)


def model_costs(job: Job, work: Work) -> dict[str, Any]:
    """Sizes of the model and of one sample."""
    encoder, decoder = job.model.encoder_parameters(), job.model.decoder_parameters()
    tokens, visible = job.counts(1.0)
    sizes = {"parameters_encoder": encoder, "parameters_decoder": decoder, "tokens": tokens, "visible_tokens": visible}
    return {**sizes, "flops_per_sample": work.flops}


def memory_costs(job: Job, work: Work, memory: float) -> dict[str, Any]:
    """What one accelerator holds, and the batch that fits."""
    state = state_bytes(job.model.parameters(), bool(job.views.teacher))
    return {
        "state_bytes": state,
        "activation_bytes_per_sample": work.activations,
        "activation_bytes_per_sample_checkpointed": work.checkpointed,
        "batch": batch_that_fits(memory, state, work.activations),
        "batch_checkpointed": batch_that_fits(memory, state, work.checkpointed),
    }


def reading_costs(per_gpu: float, gpus: int, compression: float) -> dict[str, Any]:
    """What the storage and the readers must deliver; ``per_gpu`` is in decoded bytes/s."""
    return {
        "storage_decoded_gb_s": per_gpu * gpus / GB,
        "storage_compressed_gb_s": per_gpu * gpus / compression / GB,
        "reader_cores_per_gpu": per_gpu / CROP_READ_RATE,
    }


def store_costs(raw: float, compression: float) -> dict[str, Any]:
    """What the data set takes on disk, and the work of converting it once; ``raw`` is in bytes."""
    return {"store_gb": raw / compression / GB, "conversion_core_hours": raw / CONVERSION_RATE / 3600}


def saving_costs(job: Job, gpus: int, write_rate: float) -> dict[str, Any]:
    """Size of a checkpoint and how often to write one."""
    size = checkpoint_bytes(job.model.parameters(), bool(job.views.teacher))
    minutes = checkpoint_interval(size / write_rate, gpus) / 60
    return {"checkpoint_gb": size / GB, "checkpoint_interval_minutes": minutes}
