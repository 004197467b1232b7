"""I-JEPA (Assran et al., CVPR 2023, arXiv 2301.08243) in 2D, 3D and 3D + time, written from the paper.

From one part of an image the student predicts what its moving average, the teacher, sees in other parts: features, not
voxels. There are no changes of grey values to choose, and nothing is compared between images. Defaults are the paper's.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import layer_norm, smooth_l1_loss

from ssl_med.backbones.block import Block, init_as_vit
from ssl_med.backbones.vit import ViT
from ssl_med.errors import UserError
from ssl_med.ops import ranks
from ssl_med.ops.ema import follow, teacher_of
from ssl_med.ops.patches import grid_of, patch_centres, patchify, take, unpatchify
from ssl_med.ops.positions import sincos
from ssl_med.ops.random import Draws
from ssl_med.ops.target_blocks import Blocks, Range, draw_blocks
from ssl_med.schedules import linear
from ssl_med.tasks.base import Choice, Plan, PretextTask
from ssl_med.transforms import RandomResizedCrop, SingleView, Views
from ssl_med.transforms.base import draws_of
from ssl_med.types import Batch, Losses

MOMENTUM = 0.996
COLLAPSED = 0.05
"""Spread of the targets over images up to which the teacher says the same of all of them; they have unit variance."""


class Predictor(nn.Module):
    """A narrow ViT: what the student saw, and a mask token at every place asked for, to features at these places.

    Args:
        embed_dim: width of student and teacher.
        dim: width of the predictor.
        depth: blocks.
        heads: attention heads.
    """

    def __init__(self, embed_dim: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed_dim, self.dim, self.depth, self.heads = embed_dim, dim, depth, heads
        self.embed = nn.Linear(embed_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.project = nn.Linear(dim, embed_dim)
        self.apply(init_as_vit)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, seen: Float[Tensor, "b v d"], blocks: Blocks) -> Float[Tensor, "b m t d"]:
        """Each target block is predicted by itself: the m blocks of an image are m rows.

        Args:
            seen: student's features of the context patches.
            blocks: where these are, and the targets.
        """
        images, count, width = blocks.targets.shape
        context = self.embed(seen)
        context = context + self._positions(blocks.context, blocks.grid).to(context.dtype)
        asked = self.mask_token + self._positions(blocks.targets.flatten(0, 1), blocks.grid)
        x = torch.cat([context.repeat_interleave(count, 0), asked.to(context.dtype)], 1)
        for block in self.blocks:
            x = block(x)
        return self.project(self.norm(x[:, -width:])).unflatten(0, (images, count))

    def _positions(self, index: Int[Tensor, "b n"], grid: tuple[int, ...]) -> Float[Tensor, "b n d"]:
        return sincos(patch_centres(grid, index.device), self.dim)[index]


class IJEPA(PretextTask):
    """Predict the teacher's features of blocks of an image from the rest. The teacher is probed and exported.

    Args:
        backbone: a ViT; the paper's have no class token (``class_token: false``).
        views: changes of the image; the paper crops (30 to 100 % of the image) and does nothing else.
        targets: number of target blocks of an image.
        target_scale: range of the share of the patches in a target block.
        target_aspect: range of the ratio of its sides.
        context_scale: range of the share of the patches in the context block, which is as wide as the image in
            proportion; patches of the targets are taken out of it.
        predictor_dim: width of the predictor.
        predictor_depth: blocks of the predictor: 6 for a ViT-B, 12 for a ViT-L or larger.
        predictor_heads: attention heads of the predictor; those of the backbone if None.
        momentum: of the teacher at the start, to 1 on a straight line; chosen from the number of steps if left open,
            0.996 (the paper's) where that is not known.
        context_least: patches that the context has at least, if so many are in no target; a twentieth of the patches in
            grids of less than 20 times as many.

    Raises:
        UserError: a range that is empty or not in (0, 1].
    """

    def __init__(
        self,
        backbone: ViT,
        views: Views | None = None,
        targets: int = 4,
        target_scale: Range = (0.15, 0.2),
        target_aspect: Range = (0.75, 1.5),
        context_scale: Range = (0.85, 1.0),
        predictor_dim: int = 384,
        predictor_depth: int = 6,
        predictor_heads: int | None = None,
        momentum: float | None = None,
        context_least: int = 10,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.views = views if views is not None else SingleView([RandomResizedCrop(scale=(0.3, 1.0))])
        self.targets, self.target_scale, self.target_aspect = targets, target_scale, target_aspect
        self.context_scale, self.context_least = context_scale, context_least
        self.predictor_dim, self.predictor_depth = predictor_dim, predictor_depth
        self.predictor_heads = backbone.heads if predictor_heads is None else predictor_heads
        self.momentum = MOMENTUM if momentum is None else momentum
        self._check()
        self.predictor = Predictor(backbone.embed_dim, predictor_dim, predictor_depth, self.predictor_heads)
        self.teacher = teacher_of(backbone)

    def _check(self) -> None:
        for name in ("target_scale", "context_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise UserError(f"IJEPA: {name} must be (low, high) with 0 < low <= high <= 1, got {(low, high)}")
        if not 0 < self.target_aspect[0] <= self.target_aspect[1]:
            raise UserError(f"IJEPA: target_aspect must be (low, high) with 0 < low <= high, got {self.target_aspect}")
        if self.targets < 1 or not 0 <= self.momentum <= 1:
            raise UserError(f"IJEPA: targets {self.targets} must be 1 or more, momentum {self.momentum} in [0, 1]")
        if self.predictor_dim % self.predictor_heads:
            raise UserError(
                f"IJEPA: predictor_dim {self.predictor_dim} does not divide by its {self.predictor_heads} heads"
            )

    @classmethod
    def choose(cls, settings: Mapping[str, Any], plan: Plan) -> dict[str, Choice]:
        """A teacher that looks back over at most a twentieth of the training."""
        momentum = min(MOMENTUM, max(0.9, round(1 - 20 / max(plan.steps, 20), 4)))
        why = f"the teacher remembers {1 / (1 - momentum):.0f} of {plan.steps} steps; the paper's {MOMENTUM} at most"
        return {"momentum": Choice(momentum, why)}

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Draw blocks; the student sees the context, the teacher all; predict the teacher's features; compare."""
        view = self.views(batch)[0]
        padding = self._padding(view)
        blocks = self.draw(view, padding)
        tokens = self.backbone.tokenize(view["image"], view.get("spacing"))
        encoded = self.backbone.encode(tokens.keep(blocks.context))
        predicted = self.predictor(encoded[:, self.backbone.prefix :], blocks)
        return {"loss": self._compare(predicted, self.teach(view), blocks, padding)}

    def draw(self, view: Batch, padding: Bool[Tensor, "b n"] | None = None) -> Blocks:
        """Blocks of each image: sizes from the first key of the whole batch, places from the key of the sample."""
        grid = grid_of(tuple(view["image"].shape[2:]), self._patch(view))
        target, context = (self.target_scale, self.target_aspect), (self.context_scale, (1.0, 1.0))
        places = draws_of(view).child(0)
        least = min(self.context_least, round(math.prod(grid) / 20))
        return draw_blocks(self._sizes(view), places, grid, self.targets, target, context, padding, least)

    def _sizes(self, view: Batch) -> Draws:
        """The same row on every process, whatever its samples."""
        return Draws(ranks.gather(draws_of(view).keys[:1])[:1]).child(1)

    def _patch(self, view: Batch) -> tuple[int, ...]:
        return self.backbone.embedding(view["image"].ndim - 2).patch

    def _padding(self, view: Batch) -> Bool[Tensor, "b n"] | None:
        """Patches that are padding through and through: they are neither seen nor asked for."""
        if "valid" not in view:
            return None
        return patchify(view["valid"].float(), self._patch(view)).amax(-1) == 0

    @torch.no_grad()
    def teach(self, view: Batch) -> Float[Tensor, "b n d"]:
        """The teacher's features of all patches of the whole image, each with mean 0 and variance 1."""
        self.teacher.eval()  # no stochastic depth
        encoded = self.teacher.encode(self.teacher.tokenize(view["image"], view.get("spacing")))
        patches = encoded[:, self.teacher.prefix :].float()
        return layer_norm(patches, patches.shape[-1:])

    def _compare(self, predicted: Tensor, taught: Tensor, blocks: Blocks, padding: Tensor | None) -> Tensor:
        """Smooth L1 distance, averaged over the target patches of all processes."""
        index = blocks.targets.flatten(1)
        distance = smooth_l1_loss(predicted.float().flatten(1, 2), take(taught, index), reduction="none").mean(-1)
        if padding is None:
            return ranks.mean(distance.mean())
        weight = (~padding.gather(1, index)).float()
        sums = ranks.total(torch.stack([(distance * weight).sum(), weight.sum()]))
        return sums[0] / sums[1].clamp(min=1)

    def after_step(self, progress: float) -> None:
        """The teacher follows."""
        follow(self.teacher, self.backbone, linear(progress, self.momentum, 1.0))

    def vital_signs(self, batch: Batch) -> dict[str, Tensor]:
        """How much the targets differ between images at the same place, and the loss of who knows only the place."""
        taught = self.teach(self.views(batch)[0])
        mean = taught.mean(0, keepdim=True)
        blind = smooth_l1_loss(mean.expand_as(taught), taught)
        return {"target_spread": taught.std(0, correction=0).mean(), "blind_loss": blind}

    def verdict(self, signs: Mapping[str, float]) -> str:
        """Collapsed or not."""
        if signs["target_spread"] > COLLAPSED:
            return ""
        return (
            "the teacher says nearly the same of all images (spread of the targets "
            f"{signs['target_spread']:.4f}, 1 at most; who knows the place alone would reach a loss of "
            f"{signs['blind_loss']:.4f}): lower learner.lr, lengthen the warm-up or raise momentum"
        )

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The image, what the student sees of it, and the blocks it is asked for."""
        view = self.views(batch)[0]
        blocks = self.draw(view, self._padding(view))
        image, patch = view["image"].float(), self._patch(view)
        patches = patchify(image, patch)
        shown = {"input": image}
        for name, index in (("context", blocks.context), ("targets", blocks.targets.flatten(1))):
            inside = torch.zeros_like(patches[..., 0], dtype=torch.bool).scatter(1, index, True)
            dark = torch.where(inside[..., None], patches, image.amin())
            shown[name] = unpatchify(dark, patch, blocks.grid)
        return shown

    def exports(self) -> dict[str, nn.Module]:
        """The teacher's backbone, which the paper evaluates."""
        return {"backbone": self.teacher}

    def layers(self) -> list[list[nn.Parameter]]:
        """The backbone's; the predictor counts as last."""
        return self.backbone.layers()
