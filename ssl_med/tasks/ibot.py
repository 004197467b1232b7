"""Masked patches for self-distillation (iBOT, arXiv 2111.07832, as in DINOv2, arXiv 2304.07193): a part of DINO."""

import math
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ssl_med.backbones import Tokens, ViT
from ssl_med.ops.block_masking import hidden_first
from ssl_med.ops.centring import centring_of
from ssl_med.ops.distillation import patch_distillation, teacher_signs
from ssl_med.ops.patches import grid_of, take
from ssl_med.transforms.base import draws_of
from ssl_med.types import Batch


class Hidden(NamedTuple):
    """Patches hidden from the student, in one of the two global views of every image.

    Attributes:
        mask: (2b, n) True where hidden; first views of all images, then second ones.
        row: (b,) the row of ``mask`` in which each image has hidden patches.
        patches: (b, h) those patches, with room for the highest ratio.
        weight: (b, h) 1 for those that are really hidden.
    """

    mask: Bool[Tensor, "v n"]
    row: Int[Tensor, " b"]
    patches: Int[Tensor, "b h"]
    weight: Float[Tensor, "b h"]

    def of(self, patches: Float[Tensor, "v n d"]) -> Float[Tensor, "b h d"]:
        """The hidden ones of the patch features of all views."""
        return take(patches[self.row], self.patches)


class PatchAnswers(NamedTuple):
    """What teacher and student say of the hidden patches.

    Attributes:
        loss: mean over all views, where those without hidden patches count 0 as published.
        per_patch: mean over the hidden patches of each image, then over images.
        targets: (b, h, k) probabilities of the teacher.
    """

    loss: Float[Tensor, ""]
    per_patch: Float[Tensor, ""]
    targets: Float[Tensor, "b h k"]

    def signs(self, hidden: Hidden) -> dict[str, Tensor]:
        """Loss per patch, and what :func:`teacher_signs` says of the teacher's answers, under ``ibot_``."""
        signs = teacher_signs(self.targets[hidden.weight > 0])
        named = {f"ibot_{name}": value for name, value in signs.items() if name != "ln_prototypes"}
        return {"ibot_per_patch": self.per_patch, **named}


class MaskedPatches(nn.Module):
    """Hides patches from the student and compares what it says of them with what the teacher, who sees them, says.

    Args:
        embed_dim: width of the tokens.
        prototypes: outputs of the head.
        ratio: range of the share of hidden patches.
        blocks: hide blocks, or single patches.
        centring: ``centre`` or ``sinkhorn``.
        centre_momentum: share of the old centre that stays.
    """

    def __init__(
        self,
        embed_dim: int,
        prototypes: int,
        ratio: tuple[float, float],
        blocks: bool,
        centring: Literal["centre", "sinkhorn"],
        centre_momentum: float,
    ) -> None:
        super().__init__()
        self.ratio, self.blocks = ratio, blocks
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, embed_dim))
        self.centring = centring_of(centring, prototypes, centre_momentum)

    def hide(self, views: Batch, images: int, patch: tuple[int, ...]) -> Hidden:
        """Draw what is hidden: half of the 2b views, one of each image, has hidden patches.

        Args:
            views: the joined global views.
            images: b.
            patch: voxels per patch.
        """
        grid = grid_of(tuple(views["image"].shape[2:]), patch)
        draws = draws_of(views).child(0)
        order, real, _ = hidden_first(draws, grid, self.ratio, self.blocks)
        which = draws.child(2).integers(2)[:images]  # the first view's stream decides for both
        row = torch.arange(images, device=order.device) + images * which
        order, real = order[row], real[row]
        mask = torch.zeros(len(views["image"]), math.prod(grid), dtype=torch.bool, device=order.device)
        mask[row] = mask[row].scatter(1, order, real)
        return Hidden(mask, row, order, real.float())

    def blank(self, backbone: ViT, tokens: Tokens, image: Tensor, hidden: Hidden) -> Tokens:
        """Put the mask token in place of the embeddings of hidden patches; their positions stay."""
        change = self.mask_token.to(tokens.value.dtype) - backbone.embedding(image.ndim - 2)(image)
        return tokens._replace(value=tokens.value + hidden.mask[..., None] * change)

    def compare(
        self,
        student: Float[Tensor, "b h k"],
        teacher: Float[Tensor, "b h k"],
        hidden: Hidden,
        temperatures: tuple[float, float],
    ) -> PatchAnswers:
        """Cross-entropy of the student's answers against the teacher's.

        Args:
            student: logits at the hidden patches.
            teacher: likewise.
            hidden: what is hidden.
            temperatures: of student and teacher.
        """
        rows, weight = teacher.flatten(0, 1), hidden.weight.flatten()
        targets = self.centring(rows, temperatures[1], weight).view_as(teacher)
        value = patch_distillation(cast(Tensor, targets), student, hidden.weight, temperatures[0])
        if self.training:
            self.centring.collect(rows, weight)
        return PatchAnswers(value * len(hidden.row) / len(hidden.mask), value, cast(Tensor, targets))
