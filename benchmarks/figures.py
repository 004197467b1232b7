"""What each task makes of an image, for its page: ``python -m benchmarks.figures [STORE] --out docs/tasks/figures``.

Without a store the images are made up: a body of soft ellipses with texture and a small bright lesion, so that the
pictures of the documentation belong to nobody and can be drawn anywhere. Networks are tiny and untrained; what they
would answer is left out, and only what they are shown remains: views, masks, corruptions, crops, boxes.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ssl_med import tasks
from ssl_med.backbones import Backbone, SharedViT, UNetEncoder, ViT
from ssl_med.data.module import StoreData
from ssl_med.ops.random import sample_keys
from ssl_med.reporting.panel import panel_png
from ssl_med.tasks.boxes import SaliencyBoxes
from ssl_med.tasks.saliency import FineGrained
from ssl_med.tasks.slice_consistency import SliceConsistency
from ssl_med.transforms import MultiCrop
from ssl_med.transforms.corruption import Corruption, IntensityCurve, LocalShuffle, Painting
from ssl_med.transforms.position_crops import PositionCrops
from ssl_med.types import Batch

ANSWERS = {"reconstruction", "error", "restored", "predicted", "predicted saliency", "similarity"}
"""Pictures of what a network says: they mean nothing before it is trained."""

SMALL_CROPS = 3
"""Local views that are shown beside the global ones."""

LEVELS = 32
"""Of grey, or of each colour, in a figure, so that it stays small."""

NEAR = (6, 12, 24)
"""Surrounds of saliency for images of 96 pixels."""


def vit(spatial_dims: int) -> ViT:
    return ViT(spatial_dims, 8, embed_dim=24, depth=2, heads=2, taps=2)


def unet(spatial_dims: int) -> UNetEncoder:
    return UNetEncoder(spatial_dims, 1, (4, 8), blocks=1)


def shared(spatial_dims: int) -> SharedViT:
    return SharedViT(8, 8, embed_dim=24, depth=2, heads=2)


@dataclass(frozen=True)
class Part:
    """One task and what of it is drawn.

    Attributes:
        task: class of the task.
        settings: what makes it small, and what the page is about.
        backbone: of the number of axes.
        shown: names of its pictures -> titles; all but the answers where empty.
    """

    task: Callable[..., tasks.PretextTask]
    settings: dict[str, Any] = field(default_factory=dict)
    backbone: Callable[[int], Backbone] = vit
    shown: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """The parts of one picture, side by side.

    Attributes:
        parts: of which the first shows the image.
        space: size of the images.
        images: number of images, one row each; a volume takes three.
    """

    parts: tuple[Part, ...]
    space: tuple[int, ...] = (96, 96)
    images: int = 2


def hiding(mask: str, **shown: str) -> Part:
    saliency = {"saliency": FineGrained(NEAR)} if mask == "saliency" else {}
    small = {"mask": mask, "decoder_dim": 24, "decoder_depth": 1, "decoder_heads": 2, **saliency}
    return Part(tasks.MAE, small, shown={**shown, "masked": f"MAE, {mask}"})


MASKS = (
    hiding("uniform", input="input"),
    *(hiding(mask) for mask in ("block", "tube", "saliency", "foreground")),
    Part(tasks.SimMIM, {"mask_block": 16}, shown={"masked": "SimMIM"}),
    Part(tasks.MaskedConv, {"mask_block": 16, "widths": [4, 8]}, unet, {"masked": "MaskedConv"}),
)


def corrupted(title: str, change: Corruption | None = None, **shown: str) -> Part:
    settings = {"widths": [4, 8]} if change is None else {"widths": [4, 8], "corruptions": [change]}
    return Part(tasks.ModelsGenesis, settings, unet, {**shown, "corrupted": title})


CORRUPTIONS = (
    corrupted("shuffled", LocalShuffle(1.0), target="target"),
    corrupted("rising curve", IntensityCurve(1.0, inverted=0.0, unit=(0.0, 1.0))),
    corrupted("falling curve", IntensityCurve(1.0, inverted=1.0, unit=(0.0, 1.0))),
    corrupted("painted inwards", Painting(1.0, inward=1.0, unit=(0.0, 1.0))),
    corrupted("painted outwards", Painting(1.0, inward=0.0, unit=(0.0, 1.0))),
    corrupted("all, as drawn"),
)
HEAD: dict[str, Any] = {"hidden_dim": 16, "out_dim": 8}
CROPS = MultiCrop(multiple=8, style="grey")
SWAPPED = MultiCrop(6, 8, global_scale=(0.14, 1.0), local_scale=(0.05, 0.14), style="grey")
DINO: dict[str, Any] = {"prototypes": 32, "hidden_dim": 24, "momentum": 0.9, "views": CROPS}
PARTS = {
    "mae": {
        "class_path": "ssl_med.tasks.MAE",
        "init_args": {"decoder_dim": 24, "decoder_depth": 1, "decoder_heads": 2},
    },
    "contrast": {"class_path": "ssl_med.tasks.SimCLR", "init_args": {**HEAD, "temperature": 0.5}},
}
MIXED = {
    "mae: input": "input",
    "mae: masked": "MAE",
    "contrast: first view": "SimCLR, first view",
    "contrast: second view": "second view",
}
CUT = {"part": "ssl_med.tasks.BYOL", "settings": HEAD}
FIGURES = {
    "mae": Figure(MASKS),
    "models_genesis": Figure(CORRUPTIONS, images=1),
    "dino": Figure((Part(tasks.DINO, DINO),)),
    "dino_3d": Figure((Part(tasks.DINO, DINO),), (48, 48, 48), 1),
    "moco_v3": Figure((Part(tasks.MoCoV3, {**HEAD, "temperature": 0.2, "momentum": 0.99}),)),
    "ssit": Figure((Part(tasks.SSiT, {**HEAD, "momentum": 0.99, "saliency": FineGrained(NEAR)}),), images=1),
    "region": Figure((Part(tasks.RegionContrast, {"boxes": SaliencyBoxes(least=4)}),)),
    "two_views": Figure((Part(tasks.VICReg, {"out_dim": 16}),)),
    "swav": Figure((Part(tasks.SwAV, {**HEAD, "prototypes": 8, "views": SWAPPED}),)),
    "ijepa": Figure((Part(tasks.IJEPA, {"predictor_dim": 24, "predictor_depth": 1, "momentum": 0.99}),)),
    "voco": Figure((Part(tasks.VoCo, {"crops": PositionCrops(grid=4, multiple=8), **HEAD}),)),
    "volume_fusion": Figure((Part(tasks.VolumeFusion, {"widths": [4, 8]}, unet),)),
    "swin_triple": Figure((Part(tasks.SwinTriple, {"out_dim": 16, "widths": [4, 8]}, unet),)),
    "hybrid": Figure((Part(tasks.Hybrid, {"parts": PARTS}, shown=MIXED),)),
    "one_backbone": Figure((Part(SliceConsistency, CUT, shared),), (48, 96, 96)),
}
"""Name of the file -> what it shows; ``two_views`` serves the pages of all tasks that have these views by default."""


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path, nargs="?", help="images for the figures; made up where it is left out")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=list(FIGURES), default=list(FIGURES), help="which figures")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(words)
    for name in asked.tasks:
        figure = FIGURES[name]
        torch.manual_seed(asked.seed)
        batch = batch_of(asked.store, figure, asked.seed) if asked.store else made_up(figure, asked.seed)
        path = draw(figure, batch, asked.out / f"{name}.png")
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def draw(figure: Figure, batch: Batch, path: Path) -> Path:
    """Write the PNG of a figure, in few colours."""
    shown: dict[str, Tensor] = {}
    for part in figure.parts:
        task = part.task(part.backbone(batch["image"].ndim - 2), **part.settings).eval()
        found = pictures_of(task, batch)
        names = part.shown or {name: name for name in found if name not in ANSWERS}
        shown |= {title: found[name] for name, title in names.items()}
    panel_png({title: picture.float().numpy() for title, picture in shown.items()}, path)
    with Image.open(path) as image:
        values = np.asarray(image.convert("RGB")).astype(np.float32) / 255
    levels = (values * (LEVELS - 1)).round() / (LEVELS - 1)
    Image.fromarray((levels * 255).astype(np.uint8)).quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


@torch.no_grad()
def pictures_of(task: tasks.PretextTask, batch: Batch) -> dict[str, Tensor]:
    """A task's pictures, with what they leave out for want of room in a report: small crops, and slices of a volume."""
    if isinstance(task, SliceConsistency):
        slices = task.cut(batch).unbind(1)
        middle = batch["image"][:, :, batch["image"].shape[2] // 2]
        return {"volume, middle": middle, **{f"slice {n}": one for n, one in enumerate(slices, 1)}}
    shown = task.pictures(batch)
    views = getattr(task, "views", None)
    if isinstance(views, MultiCrop):
        small = views(batch)[2 : 2 + SMALL_CROPS]
        shown |= {f"small crop {number}": view["image"] for number, view in enumerate(small, 1)}
    return shown


def made_up(figure: Figure, seed: int) -> Batch:
    """Images in [0, 1] that nobody took; their lesions stand where a store would have its saliency maps."""
    generator = torch.Generator().manual_seed(seed)
    made = [phantom(figure.space, generator) for _ in range(figure.images)]
    images, lesions = (torch.stack(some)[:, None] for some in zip(*made, strict=True))
    spacing, keys = torch.ones(figure.images, len(figure.space)), sample_keys(seed, torch.arange(figure.images))
    return {"image": images, "saliency": lesions, "spacing": spacing, "key": keys}


def batch_of(store: Path, figure: Figure, seed: int) -> Batch:
    """The first batch of a store, each image stretched to [0, 1], with a time axis or none as it has them."""
    data = StoreData(str(store), crop=list(figure.space), batch_size=figure.images, seed=seed)
    batch: Batch = next(iter(data.loader()))
    flat = batch["image"].flatten(1)
    low, high = (edge.reshape(-1, *[1] * (batch["image"].ndim - 1)) for edge in (flat.amin(1), flat.amax(1)))
    return {**batch, "image": (batch["image"] - low) / (high - low).clamp(min=1e-6)}


def phantom(space: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A body with two dark and several small organs, texture, and one bright lesion; and the lesion alone.

    Args:
        space: size; values are in [0, 1], air is 0.
        generator: of everything that is drawn.
    """
    axes = len(space)
    place = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, n) for n in space], indexing="ij"))

    def soft(centre: Tensor, radii: Tensor) -> Tensor:
        middle, reach = (x.reshape(-1, *[1] * axes) for x in (centre, radii))
        return torch.sigmoid(25 * (1 - ((place - middle) / reach).square().sum(0).sqrt()) * radii.min())

    def drawn(low: float, high: float, count: int = axes) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    body = soft(drawn(-0.05, 0.05), drawn(0.78, 0.9))
    image = 0.5 * body
    for side in (-1, 1):
        centre = torch.zeros(axes)
        centre[-1] = 0.4 * side
        image = image - 0.33 * soft(centre + drawn(-0.06, 0.06), drawn(0.24, 0.38))
    for level in drawn(-0.15, 0.3, 6).tolist():
        image = image + level * soft(drawn(-0.5, 0.5), drawn(0.06, 0.2)) * body
    noise = torch.randn(space, generator=generator).numpy()
    texture = torch.from_numpy(gaussian_filter(noise, 1.2))
    image = image + 0.05 * texture / texture.std() * body
    lesion = soft(drawn(-0.45, 0.45), drawn(0.06, 0.08))
    return (image + 0.45 * lesion).clamp(0, 1), lesion


if __name__ == "__main__":
    main()
