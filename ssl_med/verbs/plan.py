"""``ssl-med plan``: what a pretraining run will cost in memory, time, bandwidth and disk, before any GPU is booked.

A model on paper: it knows matrix products and bytes, not kernels, so its one guess is ``utilisation``, the share of the
accelerator's peak that a step reaches; projection heads of contrastive tasks are not counted. GB are 1e9 bytes.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import yaml

from ssl_med.config import find_config
from ssl_med.errors import UserError
from ssl_med.presets import (
    PRESETS,
    Stack,
    batch_that_fits,
    checkpoint_bytes,
    checkpoint_interval,
    state_bytes,
)
from ssl_med.recipe import walk
from ssl_med.verbs.plan_model import TASKS, Job, Model, Work, require

GB = 1e9
CROP_READ_RATE = 0.74e9  # decoded bytes/s of one core reading 96^3 crops from blosc2 (zstd 5)
CONVERSION_RATE = 21e6 / 0.39  # raw bytes/s of one core: .nii.gz in (0.12 s for 21 MB), blosc2 zstd 5 out (0.27 s)


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
    numbers = {
        "memory_gb": memory_gb, "gpus": gpus, "tflops": tflops, "utilisation": utilisation, "volumes": volumes,
        "smallest axis of volume_shape": min(volume_shape), "samples": samples, "bytes_per_voxel": bytes_per_voxel,
        "compression": compression, "crops_per_read": crops_per_read, "write_gb_s": write_gb_s,
    }  # fmt: skip
    for name, value in numbers.items():
        require(value > 0, f"{name} must be above 0, got {value}")
    if config is not None:
        defaults = inspect.signature(plan).parameters
        changed = {name: value for name, value in drawn.items() if value != defaults[name].default}
        drawn |= read_config(config) | changed
    job = assemble(**drawn)
    work = job.work()
    rate = tflops * 1e12 * utilisation / work.flops
    read = job.region() * bytes_per_voxel / crops_per_read
    answer = {
        **model_costs(job, work),
        **memory_costs(job, work, memory_gb * GB),
        "samples_per_second_per_gpu": rate,
        "hours": samples / (rate * gpus) / 3600,
        **reading_costs(rate * read, gpus, compression),
        **store_costs(volumes * math.prod(volume_shape) * job.model.channels * bytes_per_voxel, compression),
        **saving_costs(job, gpus, write_gb_s * GB),
    }
    print(table(answer))
    return answer


def read_config(config: str) -> dict[str, Any]:
    """The numbers of a config that a cost depends on, under the names of :func:`plan`'s arguments.

    Raises:
        UserError: there is no such config, or it names no ViT or no task of :data:`TASKS`.
    """
    tree = yaml.safe_load(find_config(config, "pretrain").read_text())
    parts = {class_path.rpartition(".")[2]: init_args for _, class_path, init_args in walk(tree, "config")}
    task, vit = next((name for name in parts if name.lower() in TASKS), ""), parts.get("ViT")
    if vit is None or not task:
        named = ", ".join(parts) or "no class"
        raise UserError(f"config {config!r} names {named}; plan knows the tasks {', '.join(TASKS)} on a ViT")
    found = {"task": task.lower(), "size": f"vit_{vit.get('size', 'small')}", "channels": vit.get("in_channels")}
    found |= {name: vit.get(name) for name in _OF_VIT} | {name: parts[task].get(name) for name in _OF_TASK}
    found["crop"] = (tree.get("data") or {}).get("crop")
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
    model = Model(encoder, decoder, _per_axis("patch", patch, spatial_dims), channels, class_token)
    return Job(model, views, _per_axis("crop", crop, spatial_dims), mask_ratio)


def _per_axis(name: str, value: Any, rank: int) -> tuple[int, ...]:
    sizes = (value,) * rank if isinstance(value, int) else tuple(value)
    require(len(sizes) == rank, f"{name} {sizes} needs one number for each of spatial_dims={rank} axes, or one for all")
    require(min(sizes) > 0, f"{name} must be above 0 along every axis, got {sizes}")
    return sizes


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


_ROWS = {
    "parameters_encoder": ("encoder", 1e6, "million parameters"),
    "parameters_decoder": ("decoder", 1e6, "million parameters"),
    "tokens": ("tokens of a crop", 1, ""),
    "visible_tokens": ("of them encoded", 1, ""),
    "flops_per_sample": ("training step", 1e9, "GFLOP per sample"),
    "state_bytes": ("weights, gradients, optimiser", GB, "GB per GPU"),
    "activation_bytes_per_sample": ("activations", GB, "GB per sample"),
    "activation_bytes_per_sample_checkpointed": ("  with full checkpointing", GB, "GB per sample"),
    "batch": ("batch that fits", 1, "samples per GPU (0: the state or one sample is too large)"),
    "batch_checkpointed": ("  with full checkpointing", 1, "samples per GPU"),
    "samples_per_second_per_gpu": ("speed", 1, "samples/s per GPU"),
    "hours": ("run", 1, "hours"),
    "storage_decoded_gb_s": ("voxels to deliver", 1, "GB/s, all GPUs"),
    "storage_compressed_gb_s": ("  read from storage", 1, "GB/s, all GPUs"),
    "reader_cores_per_gpu": ("cores that decode", 1, "per GPU"),
    "store_gb": ("store", 1, "GB"),
    "conversion_core_hours": ("conversion from .nii.gz", 1, "core-hours, once"),
    "checkpoint_gb": ("checkpoint", 1, "GB"),
    "checkpoint_interval_minutes": ("  best interval", 1, "minutes (Young's rule)"),
}


def table(answer: Mapping[str, float]) -> str:
    """The answer as text, one number a line."""
    lines = []
    for name, (label, unit, words) in _ROWS.items():
        value = answer[name] / unit
        number = f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"
        lines.append(f"{label:<32}{number:>12}  {words}".rstrip())
    return "\n".join(lines)
