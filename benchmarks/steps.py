"""One training step of ours beside the same step of others: ``python -m benchmarks.steps [--work dino mae ...]``.

Each step is forward, backward, clipping where the method has it, optimiser and teacher, on views that are ready. Every
side does the same work in float32, and in bf16 autocast too where the processor multiplies bf16. Steps are taken in
turns in one process. The limit is what one large matrix product (for the U-Net its widest convolution) reaches here.
"""

import argparse
import copy
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import interleaved, machine, table
from ssl_med.backbones import UNetEncoder, ViT
from ssl_med.fit import best_precision
from ssl_med.optim import adamw
from ssl_med.tasks import DINO, MAE, ModelsGenesis, PretextTask
from ssl_med.transforms import Views
from ssl_med.types import Batch

Step = Callable[[], object]
Steps = dict[str, Callable[[bool], Step]]
"""Name of a side -> what builds its step; True asks for bf16 autocast."""


class Ready(Views):
    """Views that were made before: the step is timed, not the views."""

    def __init__(self, images: list[Tensor]) -> None:
        super().__init__()
        self.images = images

    def forward(self, batch: Batch) -> list[Batch]:
        return [{"image": image, "key": torch.arange(len(image))} for image in self.images]


def stepper(parameters: list[nn.Parameter], loss_of: Callable[[], Tensor], bf16: bool, **more: Any) -> Step:
    """AdamW on a loss; ``before_step`` and ``after_step`` of ``more`` run around it."""
    optimizer = more.get("optimizer") or torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.05)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of()
        loss.backward()
        more.get("before_step", lambda: None)()
        optimizer.step()
        more.get("after_step", lambda: None)()
        assert torch.isfinite(loss)

    return step


def of_task(task: PretextTask, batch: int, bf16: bool, clip: float | None = None) -> Step:
    """A task of ours with the optimiser that the Learner takes."""
    parameters = [p for p in task.parameters() if p.requires_grad]
    optimizer = adamw([{"params": parameters}], 1e-4, (0.9, 0.95))
    image: Batch = {"image": torch.zeros(batch, 1, 1, 1)}
    more: dict[str, Any] = {"optimizer": optimizer, "after_step": lambda: task.after_step(0.5)}
    if clip is not None:
        more["before_step"] = lambda: torch.nn.utils.clip_grad_norm_(parameters, clip)
    return stepper(parameters, lambda: task(image, 0.5)["loss"], bf16, **more)


def dino(batch: int) -> Steps:
    """DINO, ViT-S/16, 2 views of 224 and 6 of 96, 65,536 prototypes."""
    views = [torch.randn(batch, 3, 224, 224) for _ in range(2)] + [torch.randn(batch, 3, 96, 96) for _ in range(6)]

    def ours(bf16: bool) -> Step:
        backbone = ViT(2, patch=16, in_channels=3, size="small", class_token=True, positions="learned", grid=(14, 14))
        return of_task(DINO(backbone, Ready(views), koleo=0.0), batch, bf16, 3.0)

    def lightly(bf16: bool) -> Step:
        from lightly.loss import DINOLoss
        from lightly.models.modules import DINOProjectionHead
        from lightly.models.utils import update_momentum

        backbone = timm.create_model("vit_small_patch16_224", dynamic_img_size=True, num_classes=0)
        head, above = (DINOProjectionHead(384, 2048, 256, 65536, freeze_last_layer=1) for _ in range(2))
        above.load_state_dict(head.state_dict())
        teachers = [part.requires_grad_(False) for part in (copy.deepcopy(backbone), above)]
        criterion = DINOLoss(output_dim=65536, warmup_teacher_temp_epochs=5)
        parameters = [*backbone.parameters(), *head.parameters()]

        def loss_of() -> Tensor:
            for student, teacher in zip((backbone, head), teachers, strict=True):
                update_momentum(student, teacher, m=0.996)
            with torch.no_grad():
                taught = [teachers[1](teachers[0](view).flatten(1)) for view in views[:2]]
            return criterion(taught, [head(backbone(view).flatten(1)) for view in views], epoch=1)

        def clip() -> None:
            torch.nn.utils.clip_grad_norm_(parameters, 3.0)

        return stepper(parameters, loss_of, bf16, before_step=clip)

    return {"ssl_med": ours, "lightly's recipe": lightly}


def mae(batch: int) -> Steps:
    """MAE, ViT-B/16 at 224, three quarters hidden, decoder 512 x 8."""
    image = torch.randn(batch, 3, 224, 224)

    def ours(bf16: bool) -> Step:
        backbone = ViT(2, patch=16, in_channels=3, size="base", class_token=True)
        return of_task(MAE(backbone, Ready([image])), batch, bf16)

    def lightly(bf16: bool) -> Step:
        from lightly.models import utils
        from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM

        vit = timm.create_model("vit_base_patch16_224", num_classes=0)
        encoder = MaskedVisionTransformerTIMM(vit=vit)
        length = encoder.sequence_length
        decoder = MAEDecoderTIMM(
            num_patches=length - 1,
            patch_size=16,
            embed_dim=768,
            decoder_embed_dim=512,
            decoder_depth=8,
            decoder_num_heads=16,
        )

        def loss_of() -> Tensor:
            keep, hidden = utils.random_token_mask(size=(batch, length), mask_ratio=0.75)
            seen = decoder.embed(encoder.encode(images=image, idx_keep=keep))
            tokens = utils.repeat_token(decoder.mask_token, (batch, length))
            decoded = decoder.decode(utils.set_at_index(tokens, keep, seen.type_as(tokens)))
            guess = decoder.predict(utils.get_at_index(decoded, hidden))
            return F.mse_loss(guess, utils.get_at_index(utils.patchify(image, 16), hidden - 1))

        return stepper([*encoder.parameters(), *decoder.parameters()], loss_of, bf16)

    def transformers(bf16: bool) -> Step:
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        model = ViTMAEForPreTraining(ViTMAEConfig(attn_implementation="sdpa"))
        return stepper(list(model.parameters()), lambda: model(image).loss, bf16)

    return {"ssl_med": ours, "lightly + timm": lightly, "transformers ViTMAE": transformers}


def mae_3d(batch: int) -> Steps:
    """MAE, ViT-B, 96^3 voxels in patches of 16^3, three quarters hidden, decoder 384 x 8."""
    image = torch.rand(batch, 1, 96, 96, 96)

    def ours(bf16: bool) -> Step:
        task = MAE(ViT(3, patch=16, size="base", class_token=True), Ready([image]), decoder_dim=384, decoder_heads=12)
        return of_task(task, batch, bf16)

    def monai(bf16: bool) -> Step:
        from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT

        size: Any = {"img_size": (96,) * 3, "patch_size": (16,) * 3, "hidden_size": 768, "mlp_dim": 3072}
        decoder: Any = {"decoder_hidden_size": 384, "decoder_mlp_dim": 1536, "decoder_num_layers": 8}
        model = MaskedAutoEncoderViT(
            1, num_layers=12, num_heads=12, masking_ratio=0.75, decoder_num_heads=12, **size, **decoder
        )
        target = image.reshape(batch, 6, 16, 6, 16, 6, 16).permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, 216, 4096)

        def loss_of() -> Tensor:
            guess, hidden = model(image)
            return (((guess.float() - target) ** 2).mean(-1) * hidden).sum() / hidden.sum()

        return stepper(list(model.parameters()), loss_of, bf16)

    return {"ssl_med": ours, "MONAI MaskedAutoEncoderViT": monai}


def genesis(batch: int) -> Steps:
    """Restoring 32 x 64 x 64 voxels with a residual U-Net: our task beside the same network in a plain loop."""
    image = torch.rand(batch, 1, 32, 64, 64)

    def network() -> ModelsGenesis:
        return ModelsGenesis(UNetEncoder(3, widths=(32, 64, 128, 256)), Ready([image]), corruptions=[])

    def ours(bf16: bool) -> Step:
        task = network().to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]
        return of_task(task, batch, bf16)

    def plain(bf16: bool) -> Step:
        task = network()

        def loss_of() -> Tensor:
            return F.mse_loss(task.head(task.decoder(task.backbone(image), image)).float().sigmoid(), image)

        return stepper(list(task.parameters()), loss_of, bf16)

    return {"ssl_med": ours, "the same network, plain loop": plain}


WORK: dict[str, tuple[Callable[[int], Steps], int]] = {
    "dino": (dino, 4),
    "mae": (mae, 8),
    "mae_3d": (mae_3d, 4),
    "genesis": (genesis, 2),
}


def limit(kind: str, bf16: bool) -> tuple[float, Step]:
    """Floating-point operations of the limit's measure, and the measure itself."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    if kind == "genesis":
        inside, weight = torch.randn(2, 64, 32, 64, 64).to(dtype), torch.randn(64, 64, 3, 3, 3).to(dtype)
        inside, weight = (x.to(memory_format=torch.channels_last_3d) for x in (inside, weight))
        return 2.0 * 2 * 32 * 64 * 64 * 64 * 64 * 27, lambda: F.conv3d(inside, weight, padding=1)
    rows, weights = torch.randn(1024, 768).to(dtype), torch.randn(3072, 768).to(dtype)
    return 2.0 * 1024 * 768 * 3072 * 20, lambda: [F.linear(rows, weights) is None for _ in range(20)]


def flops_of(step: Step) -> float:
    """Floating-point operations of one step, by torch's counter."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def report(name: str, rounds: int, batch: int | None, bf16: bool) -> str:
    build, usual = WORK[name]
    batch = batch or usual
    steps = {side: make(bf16) for side, make in build(batch).items()}
    work = {side: flops_of(step) for side, step in steps.items()}
    most, at_best = limit(name, bf16)
    found = interleaved({**steps, "limit": at_best}, rounds)
    rate = most / found["limit"][0]
    ours, lines = found["ssl_med"][0], []
    for side, step in steps.items():
        median, low, high = found[side]
        share = work[side] / median / rate
        lines.append([side, median, f"{low:.0f} to {high:.0f}", median / ours, work[side] / 1e9, share])
        del step
    kind = "bf16 autocast" if bf16 else "float32"
    head = ["side", "CPU ms a step, median", "spread", "times ssl_med", "GFLOP", "share of the limit"]
    doc = (build.__doc__ or "").strip()
    return f"### {name}, batch {batch}, {kind}\n\n{doc}\nLimit: {rate / 1e6:.0f} GFLOP/s.\n\n{table(head, lines)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", nargs="+", choices=list(WORK), default=list(WORK))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{machine()}; torch {torch.__version__}, one thread\n")
    precisions = [False, True] if best_precision() == "bf16-mixed" else [False]
    for name in arguments.work:
        for bf16 in precisions:
            print(report(name, arguments.rounds, arguments.batch, bf16), flush=True)


if __name__ == "__main__":
    main()
