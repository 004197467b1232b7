"""Where the box of a region comes from: a label, the saliency of the image, or a detector; one interface."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_med.errors import UserError
from ssl_med.ops.constants import constant
from ssl_med.ops.random import Draws
from ssl_med.ops.regions import Boxes, boxes_of, choose, components, coordinates
from ssl_med.tasks.saliency import FineGrained, SaliencyProvider, StoredSaliency, fall_back
from ssl_med.types import Batch

_MAX = {2: functional.max_pool2d, 3: functional.max_pool3d}


class BoxProvider(nn.Module, ABC):
    """A batch in, one box per image out, drawn among those that the image has.

    Args:
        border: a box nearer than this to the image's border, in voxels, is not used (the paper: 5).
        least: shortest side of a box, in voxels.
    """

    def __init__(self, border: int = 0, least: int = 2) -> None:
        super().__init__()
        self.border, self.least = border, least

    @abstractmethod
    def forward(self, batch: Batch, longest: tuple[int, ...], draws: Draws) -> Boxes:
        """One box per image, no longer than ``longest`` along any axis."""

    def usable(self, lower: Tensor, upper: Tensor, space: tuple[int, ...], longest: tuple[int, ...]) -> Tensor:
        """Which boxes (..., axes) have a good size and distance from the border."""
        lengths, limit = (constant(values, lower.device) for values in (space, longest))
        side = upper - lower
        sized = (side >= self.least) & (side <= limit)
        return (sized & (lower >= self.border) & (upper <= lengths - self.border)).all(-1)

    def of_regions(self, mask: Tensor, longest: tuple[int, ...], draws: Draws) -> Boxes:
        """The box of one connected region of a mask (b, 1, \\*space)."""
        space = tuple(mask.shape[2:])
        names = components(mask)
        lower, upper, own = boxes_of(names, space)
        allowed = own & self.usable(lower, upper, space, longest)
        return choose(lower, upper, allowed, draws.uniform(names.shape[1]))


class LabelBoxes(BoxProvider):
    """Boxes of the connected regions of a label mask.

    Args:
        labels: values that count; all above 0 by default.
        border, least: see :class:`BoxProvider`.
    """

    def __init__(self, labels: Sequence[int] | None = None, border: int = 0, least: int = 2) -> None:
        super().__init__(border, least)
        self.labels = None if labels is None else list(labels)

    def forward(self, batch: Batch, longest: tuple[int, ...], draws: Draws) -> Boxes:
        """One box per image.

        Raises:
            UserError: the batch has no mask.
        """
        if "mask" not in batch:
            raise UserError(
                "boxes: LabelBoxes need masks, this batch has none: set data.targets to mask, or use SaliencyBoxes"
            )
        mask = batch["mask"]
        if self.labels is None:
            return self.of_regions(mask > 0, longest, draws)
        return self.of_regions(torch.isin(mask, constant(self.labels, mask.device)), longest, draws)


class SaliencyBoxes(BoxProvider):
    """Boxes where the image stands out, so that nobody has to annotate anything.

    Args:
        saliency: where the map comes from; by default the store's, and fine-grained where it has none.
        method: ``regions``: boxes of the connected regions above the threshold; ``peaks``: boxes of one size around
            the maxima above the threshold.
        threshold: share of the way from the map's minimum to its maximum.
        side: of the box around a peak, as a share of the longest side that is allowed.
        border, least: see :class:`BoxProvider`.
    """

    def __init__(
        self,
        saliency: SaliencyProvider | None = None,
        method: Literal["regions", "peaks"] = "regions",
        threshold: float = 0.5,
        side: float = 0.5,
        border: int = 0,
        least: int = 2,
    ) -> None:
        super().__init__(border, least)
        if not 0 < side <= 1 or not 0 <= threshold < 1:
            raise UserError(f"SaliencyBoxes: side must be in (0, 1], threshold in [0, 1); got {side} and {threshold}")
        self.saliency = saliency if saliency is not None else StoredSaliency(FineGrained())
        self.method: Literal["regions", "peaks"] = method
        self.threshold, self.side = threshold, side

    def forward(self, batch: Batch, longest: tuple[int, ...], draws: Draws) -> Boxes:
        """One box per image; none where the map is constant."""
        saliency, constant = fall_back(self.saliency(batch), batch.get("valid"))
        axes = tuple(range(1, saliency.ndim))
        low, high = saliency.amin(axes, keepdim=True), saliency.amax(axes, keepdim=True)
        above = saliency > low + self.threshold * (high - low)
        if self.method == "regions":
            boxes = self.of_regions(above, longest, draws)
        else:
            boxes = self._of_peaks(saliency * above, longest, draws)
        return boxes._replace(found=boxes.found & ~constant)

    def _of_peaks(self, saliency: Tensor, longest: tuple[int, ...], draws: Draws) -> Boxes:
        """A box around one of the maxima of a map, moved inside the image."""
        space = tuple(saliency.shape[2:])
        sides = [max(1, round(self.side * length)) for length in longest]
        window = [side // 2 * 2 + 1 for side in sides]
        highest = _MAX[len(space)](saliency, window, stride=1, padding=[side // 2 for side in window])
        peaks = ((saliency == highest) & (saliency > 0)).flatten(1)
        side, lengths = (constant(values, saliency.device) for values in (sides, space))
        lower = coordinates(space, saliency.device) - side // 2
        lower = torch.minimum(lower.clamp(min=self.border), lengths - side - self.border)[None].expand(
            len(peaks), -1, -1
        )
        allowed = peaks & self.usable(lower, lower + side, space, longest)
        return choose(lower, lower + side, allowed, draws.uniform(peaks.shape[1]))


class DetectorBoxes(BoxProvider):
    """Boxes of a trained detector, as the paper has them (Faster R-CNN on lesions).

    Args:
        detector: any module with torchvision's promise for detectors: a list of images (c, y, x) in, for each a dict
            with ``boxes`` (n, 4) as x1, y1, x2, y2 and ``scores`` (n) out; for volumes ``boxes`` are (n, 6), the first
            corner (x, y, z) and then the last. It is not trained here.
        score: least score of a box (the paper: 0.8).
        border, least: see :class:`BoxProvider`.
    """

    def __init__(self, detector: nn.Module, score: float = 0.8, border: int = 0, least: int = 2) -> None:
        super().__init__(border, least)
        self.detector, self.score = detector.requires_grad_(False), score

    def train(self, mode: bool = True) -> "DetectorBoxes":
        """The detector always predicts."""
        super().train(mode)
        self.detector.eval()
        return self

    @torch.no_grad()
    def forward(self, batch: Batch, longest: tuple[int, ...], draws: Draws) -> Boxes:
        """One box per image."""
        image = batch["image"]
        space = tuple(image.shape[2:])
        self.detector.eval()
        found = self.detector(list(image.float()))
        count = max(1, *[len(one["boxes"]) for one in found])
        corners = torch.zeros(len(image), count, 2 * len(space), device=image.device)
        scores = torch.full((len(image), count), -1.0, device=image.device)
        for row, one in enumerate(found):
            corners[row, : len(one["boxes"])] = one["boxes"].float()
            scores[row, : len(one["boxes"])] = one["scores"].float()
        first, last = corners.chunk(2, -1)
        lower, upper = first.flip(-1).floor().long(), last.flip(-1).ceil().long()
        allowed = (scores > self.score) & self.usable(lower, upper, space, longest)
        return choose(lower, upper, allowed, draws.uniform(count))
