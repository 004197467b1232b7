"""Where a saliency map comes from: one interface, exchangeable in the config of any task that asks for a map."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ssl_med.backbones import Backbone, ViT
from ssl_med.backbones.block import Block
from ssl_med.errors import UserError
from ssl_med.ops import saliency as measures
from ssl_med.transforms.base import spread
from ssl_med.types import Batch

_LINEAR = {2: "bilinear", 3: "trilinear"}


class SaliencyProvider(nn.Module, ABC):
    """A batch in, maps (b, 1, \\*space) in [0, 1] out; without gradients, in full precision."""

    def forward(self, batch: Batch, teacher: Backbone | None = None) -> Float[Tensor, "b 1 *space"]:
        """The maps; 0 where an image is padding.

        Padding is filled with the image's mean before anything is measured, so that its border does not stand out.

        Args:
            batch: images as they come, before the views.
            teacher: of the task that asks; only :class:`TeacherAttention` looks at it.
        """
        image = batch["image"].float()
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            valid = batch.get("valid")
            if valid is None:
                return self.measure(image, batch, teacher).clamp(0, 1)
            axes = tuple(range(2, image.ndim))
            mean = (image * valid).sum(axes, keepdim=True) / valid.sum(axes, keepdim=True).clamp(min=1)
            filled = torch.where(valid, image, mean)
            return self.measure(filled, batch, teacher).clamp(0, 1) * valid

    @abstractmethod
    def measure(self, image: Tensor, batch: Batch, teacher: Backbone | None) -> Tensor:
        """The map of images (b, c, \\*space) without padding."""


class FineGrained(SaliencyProvider):
    """Centre against surround at several sizes (Montabone and Soto, 2010), what SSiT uses.

    Args:
        surrounds: half sizes of the surround, in voxels.
        contrast: width of the local contrast that is taken first, as a share of the shortest side; SSiT: 1/30 on
            fundus photographs. None for none.
    """

    def __init__(self, surrounds: Sequence[int] = measures.SURROUNDS, contrast: float | None = None) -> None:
        super().__init__()
        self.surrounds, self.contrast = list(surrounds), contrast

    def measure(self, image: Tensor, batch: Batch, teacher: Backbone | None) -> Tensor:
        """The map; see :func:`ssl_med.ops.saliency.fine_grained`."""
        values = measures.as_bytes(image)
        if self.contrast is not None:
            values = measures.local_contrast(values, self.contrast * min(image.shape[2:]))
        return measures.fine_grained(values, self.surrounds)


class SpectralResidual(SaliencyProvider):
    """What the smoothed spectrum does not explain (Hou and Zhang, CVPR 2007).

    Args:
        size: voxels along each axis of the reduced image.
    """

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.size = size

    def measure(self, image: Tensor, batch: Batch, teacher: Backbone | None) -> Tensor:
        """The map; see :func:`ssl_med.ops.saliency.spectral_residual`."""
        return measures.spectral_residual(measures.grey(image), self.size)


class Gradient(SaliencyProvider):
    """Edges: the length of the gradient.

    Args:
        sigma: of the smoothing before, in voxels.
    """

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        self.sigma = sigma

    def measure(self, image: Tensor, batch: Batch, teacher: Backbone | None) -> Tensor:
        """The map; see :func:`ssl_med.ops.saliency.gradient_magnitude`."""
        return measures.gradient_magnitude(measures.grey(image), self.sigma)


class Entropy(SaliencyProvider):
    """Variety of the grey values around each voxel.

    Args:
        window: odd side of the neighbourhood, in voxels.
        bins: grey levels that are told apart.
    """

    def __init__(self, window: int = 9, bins: int = 16) -> None:
        super().__init__()
        if window % 2 == 0:
            raise UserError(f"Entropy: window must be odd, so that it has a centre, got {window}")
        self.window, self.bins = window, bins

    def measure(self, image: Tensor, batch: Batch, teacher: Backbone | None) -> Tensor:
        """The map; see :func:`ssl_med.ops.saliency.local_entropy`."""
        return measures.local_entropy(measures.as_bytes(image), self.window, self.bins)


class Foreground(SaliencyProvider):
    """1 on what is brighter than the threshold that separates two classes best (Otsu, 1979)."""

    def measure(self, image: Tensor, batch: Batch, teacher: Backbone | None) -> Tensor:
        """The map; see :func:`ssl_med.ops.saliency.foreground`."""
        return measures.foreground(measures.as_bytes(image))


class StoredSaliency(SaliencyProvider):
    """The map that came with the image from the store, where ``ssl-med prepare --saliency`` has put one.

    A stored map was made once, of the whole image; one that is computed for a batch is of the crop.

    Args:
        otherwise: what makes the map of a batch that has none; None refuses such a batch.
    """

    def __init__(self, otherwise: SaliencyProvider | None = None) -> None:
        super().__init__()
        self.otherwise = otherwise

    def measure(self, image: Tensor, batch: Batch, teacher: Backbone | None) -> Tensor:
        """``batch["saliency"]``.

        Raises:
            UserError: there is none, and nothing to make it.
        """
        if "saliency" not in batch:
            if self.otherwise is not None:
                return self.otherwise.measure(image, batch, teacher)
            raise UserError(
                "saliency: StoredSaliency reads maps from the store, this batch has none: prepare the store with "
                "--saliency, or choose a provider that computes it, e.g. ssl_med.tasks.saliency.FineGrained"
            )
        return batch["saliency"].float()


class TeacherAttention(SaliencyProvider):
    """How much the class token of the task's teacher looks at each patch in its last block, mean over the heads.

    A teacher that has not learned yet looks anywhere: the map means something only after a while.
    """

    def measure(self, image: Tensor, batch: Batch, teacher: Backbone | None) -> Tensor:
        """Attention at the patches, spread linearly over the voxels and scaled to 0..1."""
        if not isinstance(teacher, ViT) or not teacher.class_token:
            raise UserError("saliency: TeacherAttention needs a task whose teacher is a ViT with a class token")
        attention = measures.unit(class_attention(teacher, image, batch.get("spacing")))
        size, mode = image.shape[2:], _LINEAR[image.ndim - 2]
        return nn.functional.interpolate(attention, size, mode=mode, align_corners=False)


def class_attention(vit: ViT, image: Float[Tensor, "b c *space"], spacing: Tensor | None = None) -> Tensor:
    """Softmax weights of the class token on the patches in the last block, mean over heads, (b, 1, \\*grid)."""
    layer = cast(Block, vit.blocks[-1]).attn
    layer.seen = seen = []
    try:
        tokens = vit.tokenize(image, spacing)
        vit.encode(tokens)
    finally:
        layer.seen = None
    q, k = seen[0]
    weights = torch.softmax(q[:, :, :1] @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1)
    return weights.mean(1)[:, :, vit.prefix :].reshape(len(q), 1, *tokens.grid)


def fall_back(
    saliency: Float[Tensor, "b 1 *space"], valid: Bool[Tensor, "b 1 *space"] | None = None
) -> tuple[Float[Tensor, "b 1 *space"], Bool[Tensor, " b"]]:
    """A map that is constant, and so says nothing, becomes 1 everywhere; and which ones were.

    Args:
        saliency: maps.
        valid: what is not padding; only there it is looked whether a map is constant.
    """
    axes = tuple(range(1, saliency.ndim))
    here = torch.ones_like(saliency, dtype=torch.bool) if valid is None else valid
    low = saliency.masked_fill(~here, torch.inf).amin(axes)
    high = saliency.masked_fill(~here, -torch.inf).amax(axes)
    constant = ~(high > low)
    return torch.where(spread(constant, saliency), torch.ones_like(saliency), saliency), constant
