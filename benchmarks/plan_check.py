"""``python -m benchmarks.plan_check``: what ``ssl-med plan`` says of FLOPs and memory, beside what a step does.

FLOPs by torch's counter; memory as the storage of all that autograd keeps for the backward pass, under bf16 autocast.
Both are differences between batches of two and of four, so that what does not grow with the batch drops out.
"""

import time

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ssl_med.backbones import ViT
from ssl_med.ops.random import sample_keys
from ssl_med.tasks import BYOL, DINO, MAE, SimCLR, Task
from ssl_med.types import Batch
from ssl_med.verbs.plan import assemble
from ssl_med.verbs.plan_model import Work

WIDTH, DEPTH, DECODER, PATCH = 192, 4, 96, 8
CASES = {"mae": (64, 64, 64), "simclr": (32, 32, 32), "byol": (32, 32, 32), "dino": (64, 64, 64)}


def task_of(name: str, crop: tuple[int, ...]) -> Task:
    """A small task as the plan knows it; heads, which it leaves out, are tiny."""
    torch.manual_seed(0)
    vit = ViT(len(crop), PATCH, embed_dim=WIDTH, depth=DEPTH, heads=3)
    if name == "mae":
        return MAE(vit, decoder_dim=DECODER, decoder_depth=2, decoder_heads=4)
    if name == "dino":
        return DINO(vit, prototypes=64, hidden_dim=64, bottleneck_dim=32)
    return {"simclr": SimCLR, "byol": BYOL}[name](vit, hidden_dim=64, out_dim=32)


def planned(name: str, crop: tuple[int, ...]) -> Work:
    """What the plan says of one sample."""
    return assemble(
        size="vit_tiny", spatial_dims=len(crop), crop=crop, patch=PATCH, channels=1, mask_ratio=0.75, task=name,
        decoder_dim=DECODER, decoder_depth=2, class_token=True, embed_dim=WIDTH, depth=DEPTH,
    ).work()  # fmt: skip


def measured(task: Task, crop: tuple[int, ...]) -> tuple[float, float]:
    """FLOPs and kept bytes of one sample."""
    (flops, kept), (more_flops, more_kept) = (_step(task, _batch(crop, count)) for count in (2, 4))
    return (more_flops - flops) / 2, (more_kept - kept) / 2


def _batch(crop: tuple[int, ...], count: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(count, 1, *crop, generator=generator)
    return {"image": image, "spacing": torch.ones(count, len(crop)), "key": sample_keys(0, torch.arange(count))}


def _step(task: Task, batch: Batch) -> tuple[int, int]:
    weights = {parameter.untyped_storage().data_ptr() for parameter in task.parameters()}
    kept: dict[int, Tensor] = {}  # holds them too: freed memory would be counted again under another tensor

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = task(batch, 0.5)["loss"]
        size = sum(x.untyped_storage().nbytes() for x in kept.values())
        loss.backward()
    return counter.get_total_flops(), size


def main() -> None:
    """Print measured over planned, and the seconds of a step over its FLOPs."""
    for name, crop in CASES.items():
        task, work = task_of(name, crop), planned(name, crop)
        flops, kept = measured(task, crop)
        begun = time.perf_counter()
        task(_batch(crop, 4), 0.5)["loss"].backward()
        rate = 4 * flops / (time.perf_counter() - begun) / 1e9
        ratios = f"FLOPs {flops / work.flops:.3f}  memory {kept / work.activations:.3f}"
        print(f"{name:<8}{'x'.join(map(str, crop)):<12}{ratios}  {rate:.1f} GFLOP/s")


if __name__ == "__main__":
    main()
