"""What ``ssl-med plan`` prints: one number a line with its unit, then what the numbers rest on."""

from collections.abc import Mapping, Sequence

from ssl_med.presets import GPU_HOURS_PER_STOP, RESERVE

GB = 1e9
CROP_READ_RATE = 0.74e9  # decoded bytes/s of one core reading 96^3 crops from blosc2 (zstd 5)
CONVERSION_RATE = 21e6 / 0.39  # raw bytes/s of one core: .nii.gz in (0.12 s for 21 MB), blosc2 zstd 5 out (0.27 s)
Rows = Mapping[str, tuple[str, float, str]]
"""Name of a number -> its label, what it is divided by, words behind it."""

ON_PAPER: Rows = {
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

MEASURED: Rows = {
    "measured_batch": ("batch", 1, "samples"),
    "measured_flops_per_sample": ("training step", 1e9, "GFLOP per sample, counted"),
    "measured_flops_per_second": ("rate", 1e9, "GFLOP/s of forward and backward"),
    "fixed_seconds": ("fixed time of a step", 1e-3, "ms"),
    "step_seconds": ("step", 1e-3, "ms"),
    "epoch_minutes": ("epoch", 1, "minutes"),
    "job_hours": ("job", 1, "hours"),
    "measured_state_bytes": ("weights, gradients, optimiser", GB, "GB"),
    "measured_activation_bytes_per_sample": ("activations", GB, "GB per sample, counted"),
    "measured_memory_bytes": ("memory at this batch", GB, "GB"),
}


def table(answer: Mapping[str, float], rows: Rows) -> str:
    """The answer as text, one number a line."""
    lines = []
    for name, (label, unit, words) in rows.items():
        value = answer[name] / unit
        number = f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"
        lines.append(f"{label:<32}{number:>12}  {words}".rstrip())
    return "\n".join(lines)


def listed(title: str, sentences: Sequence[str]) -> str:
    """Sentences below a table, one a line."""
    return "".join(f"\n{line}" for line in (f"{title}:", *(f"  - {sentence}" for sentence in sentences)))


def assumed(numbers: Mapping[str, float]) -> list[str]:
    """What the figures on paper rest on, in words.

    Args:
        numbers: arguments of :func:`ssl_med.verbs.plan.plan`.
    """
    templates = (
        "{utilisation:.0%} of {tflops:g} TFLOP/s (bf16) reached on any number of GPUs; heads of contrastive tasks free",
        "{samples:,.0f} samples; {bytes_per_voxel:g} bytes a voxel, stored {compression:g}:1, {crops_per_read} a read",
        "AdamW in fp32, activations in bf16; of {memory_gb:g} GB a share stays free: " + f"{RESERVE:.0%}",
        f"a core decodes {CROP_READ_RATE / GB:g} GB/s and converts {CONVERSION_RATE / 1e6:.0f} MB/s of raw voxels",
        "checkpoints are written at {write_gb_s:g} GB/s; a stop comes every " + f"{GPU_HOURS_PER_STOP:,} GPU-hours",
    )
    return [template.format_map(numbers) for template in templates]
