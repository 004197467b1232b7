"""Swin UNETR's three tasks at once: rotation, contrast and restoration (Tang et al., CVPR 2022, arXiv 2111.14791).

Two copies of each image are turned by quarter turns and lose boxes to noise and to another image. The pooled feature
names the turn and finds the other copy; the decoder restores the image.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ssl_med.backbones import Backbone
from ssl_med.backbones.unet import CONV
from ssl_med.decoders import PyramidDecoder
from ssl_med.ops.collapse import feature_spread
from ssl_med.ops.contrast import nt_xent
from ssl_med.ops.coverage import covered_boxes
from ssl_med.ops.neighbours import check_neighbours, neighbour
from ssl_med.ops.quarter_turns import turn_images, turning_plane
from ssl_med.ops.random import Draws
from ssl_med.ops.ranks import mean, total, world_size
from ssl_med.ops.unit import UnitRange, check_unit, value_range
from ssl_med.tasks.base import PretextTask
from ssl_med.transforms import SingleView, Views
from ssl_med.transforms.base import check_range, draws_of
from ssl_med.types import Batch, Losses

_WARM = 0.25
"""Share of the training after which a network that is worse than a constant is worth a word."""


class Copy(NamedTuple):
    """A corrupted copy of each image.

    Attributes:
        corrupted: what the network sees.
        clean: the turned image that it shall restore.
        turns: quarter turns, the class of the rotation.
        counted: voxels that are not padding.
        noise, swapped: voxels that were filled with noise, or come from another image.
    """

    corrupted: Float[Tensor, "b c *space"]
    clean: Float[Tensor, "b c *space"]
    turns: Int[Tensor, " b"]
    counted: Bool[Tensor, "b 1 *space"]
    noise: Bool[Tensor, "b 1 *space"]
    swapped: Bool[Tensor, "b 1 *space"]


class SwinTriple(PretextTask):
    """Rotation, contrast and restoration on corrupted copies; encoder and decoder are exported.

    Both heads read the pooled feature. Negatives come from all processes, and so does the content that is swapped in:
    the first copy takes it from the next image of the global batch, the second from the one before.

    Args:
        backbone: any with feature maps.
        views: changes of the image before it is copied; none by default, as published.
        plane: spatial axes of the turn, 0 = the first; by default the last two axes, see
            :func:`~ssl_med.ops.quarter_turns.turning_plane`. Images whose plane is not square, in voxels and in mm, get
            half turns only.
        cover: largest share of the image that is filled with noise, and again that is swapped.
        side: shortest and longest side of a box as a share of the axis.
        unit: the range of the noise, see :data:`~ssl_med.ops.unit.UnitRange`.
        out_dim: width of the embedding that is contrasted.
        temperature: of the contrast.
        weights: of rotation, contrast and restoration in the loss.
        widths: channels of the decoder, fine to coarse.
    """

    def __init__(
        self,
        backbone: Backbone,
        views: Views | None = None,
        plane: tuple[int, int] | None = None,
        cover: float = 0.3,
        side: tuple[float, float] = (0.05, 0.25),
        unit: UnitRange = "auto",
        out_dim: int = 512,
        temperature: float = 0.5,
        weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
        widths: Sequence[int] = (32, 64, 128, 256),
    ) -> None:
        super().__init__()
        check_range("SwinTriple: cover", (0.0, cover), 0.0, 1.0)
        check_range("SwinTriple: side", side, 0.0, 1.0)
        check_unit("SwinTriple: unit", unit)
        self.backbone, self.plane, self.cover, self.side = backbone, plane, cover, side
        self.unit: UnitRange = unit
        self.out_dim, self.temperature, self.weights, self.widths = out_dim, temperature, weights, list(widths)
        self.views = views if views is not None else SingleView([])
        self.decoder = PyramidDecoder.for_backbone(backbone, widths)
        self.restore = CONV[backbone.spatial_dims](self.decoder.out_channels, backbone.in_channels, 1)
        self.rotation = nn.Linear(backbone.embed_dim, 4)
        self.contrast = nn.Linear(backbone.embed_dim, out_dim)
        self._progress = 0.0

    def forward(self, batch: Batch, progress: float) -> Losses:
        """All three losses, and beside them chance and what copying the input would score.

        Raises:
            UserError: in training, a global batch of one image: nothing to swap in, and nothing to tell it from.
        """
        if self.training:
            check_neighbours("SwinTriple", len(batch["image"]))
        view = self.views(batch)[0]
        copies = self.copies(view)
        pooled, restored = self.read(copies, view.get("spacing"))
        turns = torch.cat([copy.turns for copy in copies])
        logits = self.rotation(pooled).float()
        first, second = self.contrast(pooled).chunk(2)
        rotation, contrast = mean(cross_entropy(logits, turns)), nt_xent(first, second, self.temperature)
        errors = self.errors(copies, restored)
        parts = zip(self.weights, (rotation, contrast, errors["restoration"]), strict=True)
        return {
            "loss": torch.stack([weight * part for weight, part in parts]).sum(),
            "rotation": rotation,
            "contrast": contrast,
            **errors,
            "rotation_accuracy": mean((logits.argmax(1) == turns).float().mean()),
            "contrast_over_chance": contrast / math.log(max(2 * len(first) * world_size() - 1, 2)),
            **self.removed(copies, view),
        }

    def copies(self, view: Batch) -> list[Copy]:
        """Two corrupted copies of each image, drawn independently."""
        draws = draws_of(view)
        return [self.corrupt(view, draws.child(0), 1), self.corrupt(view, draws.child(1), -1)]

    def corrupt(self, view: Batch, draws: Draws, step: Literal[1, -1]) -> Copy:
        """Turn, fill boxes with noise, then fill boxes with what the neighbour's turned image has there."""
        turns, plane = self.draw_turns(view, draws.child(0)), self.plane_of(view)
        clean = turn_images(view["image"].float(), turns, plane)
        counted = torch.ones_like(clean[:, :1], dtype=torch.bool)
        if "valid" in view:
            counted = turn_images(view["valid"], turns, plane)
        space = tuple(clean.shape[2:])
        noise, swapped = (
            covered_boxes(draws.child(number), space, self.cover, (self.side[0], self.side[1])) for number in (1, 2)
        )
        filled = torch.where(noise, self.draw_noise(clean, draws.child(3), counted), clean)
        return Copy(torch.where(swapped, neighbour(clean, step), filled), clean, turns, counted, noise, swapped)

    def plane_of(self, view: Batch) -> tuple[int, int]:
        """The spatial axes of the turn."""
        if self.plane is not None:
            return self.plane[0], self.plane[1]
        return turning_plane(tuple(view["image"].shape[2:]))

    def square(self, view: Batch) -> Bool[Tensor, " b"]:
        """Images that can be turned by 90 degrees: as many voxels, of the same size, along both axes of the plane."""
        image, (a, b) = view["image"], self.plane_of(view)
        same = torch.full((len(image),), image.shape[2 + a] == image.shape[2 + b], device=image.device)
        spacing = view.get("spacing")
        return same if spacing is None else same & torch.isclose(spacing[:, a], spacing[:, b], rtol=0.01, atol=0.0)

    def draw_turns(self, view: Batch, draws: Draws) -> Int[Tensor, " b"]:
        """Quarter turns 0 to 3, or 0 and 2 where the plane is not square."""
        turns = draws.integers(4)
        return torch.where(self.square(view), turns, turns // 2 * 2)

    def draw_noise(self, image: Tensor, draws: Draws, counted: Tensor) -> Tensor:
        """Gaussian noise whose smallest and largest number are the ends of the image's range."""
        noise = draws.normal(*image.shape[1:])
        axes = tuple(range(1, image.ndim))
        least, largest = noise.amin(axes, keepdim=True), noise.amax(axes, keepdim=True)
        low, span = (
            part.reshape(*part.shape, *[1] * (image.ndim - 2)) for part in value_range(image, self.unit, counted)
        )
        return low + span * (noise - least) / (largest - least)

    def read(self, copies: list[Copy], spacing: Tensor | None) -> tuple[Tensor, Tensor]:
        """Pooled features (2b, d) and restored images of both copies, in one pass."""
        seen = torch.cat([copy.corrupted for copy in copies])
        features = self.backbone(seen, None if spacing is None else spacing.repeat(len(copies), 1))
        return features.pooled, self.restore(self.decoder(features, seen)).float()

    def errors(self, copies: list[Copy], restored: Tensor) -> dict[str, Tensor]:
        """Mean absolute errors of the restored images, the corrupted ones and one constant, where no padding is."""
        clean, seen = (torch.cat(parts) for parts in zip(*((c.clean, c.corrupted) for c in copies), strict=True))
        counted = torch.cat([copy.counted for copy in copies])
        count = (total(counted.sum().float()) * clean.shape[1]).clamp(min=1)
        guesses = {"restoration": restored, "identity_l1": seen, "constant_l1": total((clean * counted).sum()) / count}
        return {name: total(((guess - clean).abs() * counted).sum()) / count for name, guess in guesses.items()}

    def removed(self, copies: list[Copy], view: Batch) -> dict[str, Tensor]:
        """Share of the voxels that were replaced, and of the saliency that stood on them if the batch has a map."""
        replaced = torch.cat([copy.noise | copy.swapped for copy in copies]).float()
        shares = {"replaced_voxels": mean(replaced.mean())}
        if "saliency" in view:
            plane, map_ = self.plane_of(view), view["saliency"].float()
            weight = torch.cat([turn_images(map_, copy.turns, plane) for copy in copies])
            shares["replaced_saliency"] = total((replaced * weight).sum()) / total(weight.sum()).clamp(min=1e-12)
        return shares

    def after_step(self, progress: float) -> None:
        """Remembers how far the training is, for :meth:`verdict`."""
        self._progress = progress

    @torch.no_grad()
    def vital_signs(self, batch: Batch) -> dict[str, Tensor]:
        """Spread of the embedding, cross-entropy of the rotation beside chance, restoration beside a constant."""
        view = self.views(batch)[0]
        copies = self.copies(view)
        pooled, restored = self.read(copies, view.get("spacing"))
        errors = self.errors(copies, restored)
        turns = torch.cat([copy.turns for copy in copies])
        return {
            "embedding_spread": feature_spread(self.contrast(pooled)),
            "rotation_cross_entropy": cross_entropy(self.rotation(pooled).float(), turns),
            "rotation_chance": math.log(2) * (1 + self.square(view).float().mean()),
            "restoration_l1": errors["restoration"],
            "constant_l1": errors["constant_l1"],
        }

    def verdict(self, signs: Mapping[str, float]) -> str:
        """A sentence if the embedding has collapsed, or if turns or images are not found after the warm-up."""
        if signs["embedding_spread"] < 0.05:
            return (
                f"the embedding is nearly the same for all images (spread {signs['embedding_spread']:.4f}, 1 would be "
                "isotropic): lower the learning rate, lengthen the warm-up or enlarge the batch"
            )
        if self._progress < _WARM:
            return ""
        if signs["rotation_cross_entropy"] > 1.5 * signs["rotation_chance"]:
            return (
                f"the turns are not seen: cross-entropy {signs['rotation_cross_entropy']:.3f}, chance has "
                f"{signs['rotation_chance']:.3f}; the images may look the same from all sides: set the first of "
                "task.weights to 0"
            )
        if signs["restoration_l1"] >= signs["constant_l1"]:
            return (
                f"the restored images are no better than a constant grey (mean absolute error "
                f"{signs['restoration_l1']:.4f} against {signs['constant_l1']:.4f}): train longer, or change lr"
            )
        return ""

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The turned image, both corrupted copies, and the restored first one."""
        view = self.views(batch)[0]
        copies = self.copies(view)
        _, restored = self.read(copies, view.get("spacing"))
        first, second = copies
        return {
            "target": first.clean,
            "first copy": first.corrupted,
            "second copy": second.corrupted,
            "restored": restored.chunk(2)[0],
        }

    def exports(self) -> dict[str, nn.Module]:
        """Encoder and decoder: a segmentation can start from both."""
        return {"backbone": self.backbone, "decoder": self.decoder}

    def layers(self) -> list[list[nn.Parameter]]:
        """The backbone's; decoder and heads count as last."""
        return self.backbone.layers()
