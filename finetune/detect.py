"""Detection: a feature pyramid and a dense one-stage head on any backbone, trained with the focal loss.

RetinaNet (arXiv 1708.02002) with one anchor per cell, anchors chosen by ATSS (arXiv 1912.02424), boxes by GIoU (arXiv
1902.09630).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from finetune.anchors import anchors_of, assign
from finetune.box_geometry import centres, clipped, contain, decode, generalised_iou, without_repeats
from finetune.box_windows import Window, has_the_say, windows_over
from finetune.detection_metrics import judge, summary
from finetune.focal import sigmoid_focal
from finetune.pyramid import DenseHead, FeaturePyramid
from finetune.tuned import Tuned
from finetune.tuning import Preset, Tuning
from ssl_med.backbones import Backbone
from ssl_med.ops import ranks
from ssl_med.transforms import Views
from ssl_med.types import Batch, Losses

_PROPOSALS = 512
"""Boxes of one window that go into the search for repeats."""


class Detect(Tuned):
    """Boxes of lesions or structures with their classes.

    Cells centred on what is not ``valid``, on a box of the class -1 (an unknown lesion, or one whose centre the crop
    does not show), or on voxels of ``mask`` -1 where a batch has one count nowhere.

    Args:
        backbone: pretrained or not.
        classes: number of classes of boxes; there is none for background.
        window: voxels along each axis of the sliding window at prediction; the crop of the training.
        frozen: keep the backbone as it is and train pyramid and head only.
        views: augmentation of the training crops.
        tuning: how the backbone is tuned, see :mod:`finetune.tuning`.
        width: channels of pyramid and head.
        depth: convolutions of each of the head's two towers.
        finest: voxels per cell of the finest level of the pyramid.
        levels: of the pyramid, each twice as coarse as the one before.
        anchor: side of an anchor in cells; boxes of 0.5 to 2 anchors of some level are found best.
        candidates: anchors of each level that are looked at for a box, see :func:`finetune.anchors.assign`.
        overlap: of neighbouring windows at prediction; boxes up to half of it are seen whole by some window.
        repeats: IoU from which two boxes of a class are one; lesions rarely overlap.
        least_score: below it nothing is told.
        most: boxes told of an image.
    """

    metric = "map_10"

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        window: Sequence[int],
        frozen: bool = False,
        views: Views | None = None,
        tuning: Preset | Tuning = "full",
        width: int = 64,
        depth: int = 2,
        finest: int = 4,
        levels: int = 3,
        anchor: float = 4.0,
        candidates: int = 9,
        overlap: float = 0.5,
        repeats: float = 0.2,
        least_score: float = 0.02,
        most: int = 100,
    ) -> None:
        super().__init__(backbone, window, frozen, views, tuning)
        self.classes, self.width, self.depth, self.finest, self.levels = classes, width, depth, finest, levels
        self.anchor, self.candidates, self.overlap = anchor, candidates, overlap
        self.repeats, self.least_score, self.most = repeats, least_score, most
        self.pyramid = FeaturePyramid(backbone, width, finest, levels)
        self.head = DenseHead(backbone.spatial_dims, width, depth, classes)

    def dense(self, image: Tensor, spacing: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """Logits (b, m, classes), moves (b, m, 2 * axes), anchors (m, 2 * axes) and anchors of each level."""
        levels = self.pyramid(self.features(image, spacing))
        logits, moves = zip(*[self.head(level) for level in levels], strict=True)
        grids = [tuple(level.shape[2:]) for level in levels]
        anchors = anchors_of(grids, self.pyramid.strides, self.anchor, image.device)
        return torch.cat(logits, 1), torch.cat(moves, 1), anchors, [part.shape[1] for part in logits]

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Focal loss of the classes and 1 - GIoU of the boxes, both per anchor that answers for a box."""
        view = self.view(batch, progress)
        logits, moves, anchors, sizes = self.dense(view["image"], view.get("spacing"))
        boxes, labels = view["boxes"], view["box_labels"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
        with torch.no_grad():
            box = assign(boxes, labels >= 0, anchors, sizes, self.candidates)
            positive, counted = box >= 0, self._counted(view, anchors)
            count = ranks.mean(positive.sum().float()).clamp_min(1)
        truth = one_hot(_pick(labels, box).clamp_min(0), self.classes) * positive[..., None]
        what = (sigmoid_focal(logits, truth) * (counted | positive)[..., None]).sum() / count
        found = decode(moves, anchors)[positive]
        where = (1 - generalised_iou(found, _pick(boxes, box)[positive])).sum() / count
        return {"loss": what + where, "focal": what, "giou": where}

    def _counted(self, view: Batch, anchors: Tensor) -> Tensor:
        """(b, m): anchors that are background where they answer for no box."""
        image, boxes, labels = view["image"], view["boxes"], view["box_labels"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
        known = torch.ones_like(image[:, 0], dtype=torch.bool)
        if "valid" in view:
            known &= view["valid"][:, 0]
        if "mask" in view:
            known &= view["mask"][:, 0] >= 0
        shown = known[(slice(None), *_voxels(anchors, tuple(image.shape[2:])))]
        return shown & ~(contain(boxes, centres(anchors)) & (labels < 0)[..., None]).any(1)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """Boxes of whole images of any size, the best first: (b, most, 2 * axes + 2).

        A line has lowest corner, highest corner (voxels of the image), score and class; lines that are not needed are
        zeros with the class -1.
        """
        images, spacing, valid = batch["image"], batch.get("spacing"), batch.get("valid")
        found = []
        for i in range(len(images)):
            boxes, scores, classes = self._find(images[i : i + 1], None if spacing is None else spacing[i : i + 1])
            if valid is not None:  # padding behind the image
                shown = valid[i, 0][_voxels(boxes, tuple(images.shape[2:]))]
                boxes, scores, classes = boxes[shown], scores[shown], classes[shown]
            found.append(self._lines(boxes, scores, classes))
        return torch.stack(found)

    def _find(self, image: Tensor, spacing: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates of one image, from all windows."""
        space = tuple(image.shape[2:])
        parts = [self._look(image, spacing, window) for window in windows_over(space, self.window, self.overlap)]
        boxes, scores, classes = (torch.cat(part) for part in zip(*parts, strict=True))
        return clipped(boxes, space), scores, classes

    def _look(self, image: Tensor, spacing: Tensor | None, window: Window) -> tuple[Tensor, Tensor, Tensor]:
        corner, lengths = window
        place = tuple(slice(start, start + length) for start, length in zip(corner, lengths, strict=True))
        logits, moves, anchors, _ = self.dense(image[(..., *place)], spacing)
        scores, order = logits[0].sigmoid().flatten().sort(descending=True, stable=True)
        order = order[:_PROPOSALS][scores[:_PROPOSALS] >= self.least_score]
        anchor, classes = order // self.classes, order % self.classes
        shift = torch.tensor([*corner, *corner], device=anchors.device)
        boxes = clipped(decode(moves[0, anchor], anchors[anchor]), lengths) + shift
        counts = has_the_say(boxes, window, tuple(image.shape[2:]), self.overlap)
        return boxes[counts], scores[: len(order)][counts], classes[counts]

    def _lines(self, boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
        kept = without_repeats(boxes, scores, classes, self.repeats, self.most)
        lines = boxes.new_zeros(self.most, boxes.shape[1] + 2)
        lines[:, -1] = -1
        lines[: len(kept)] = torch.cat([boxes[kept], scores[kept, None], classes[kept, None].to(boxes)], 1)
        return lines

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What each found box is worth, and how many there are, see :func:`finetune.detection_metrics.judge`."""
        boxes, labels = batch["boxes"], batch["box_labels"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
        return judge(prediction, boxes, labels, self.classes)

    def summarise(self, cases: dict[str, Tensor]) -> dict[str, float]:
        """mAP and FROC, see :func:`finetune.detection_metrics.summary`."""
        return summary({name: torch.as_tensor(value).numpy() for name, value in cases.items()})

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Image, reference boxes, and found boxes as bright as they are sure."""
        image = batch["image"]
        boxes, labels = batch["boxes"], batch["box_labels"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
        truth = torch.cat([boxes, (labels >= 0).to(boxes)[..., None]], 2)
        found = self.predict(batch)[..., :-1]
        return {"input": image, "reference": _painted(truth, image), "prediction": _painted(found, image)}


def _pick(rows: Tensor, place: Tensor) -> Tensor:
    """rows[b, place[b, m]] for rows (b, n, ...); -1 picks anything."""
    if not rows.shape[1]:
        return rows.new_zeros(*place.shape, *rows.shape[2:])
    return rows[torch.arange(len(rows), device=rows.device)[:, None], place.clamp_min(0)]


def _voxels(boxes: Tensor, space: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The voxel of an image of ``space`` at the centre of each box, an index for each axis."""
    middle = centres(boxes).long()
    return tuple(middle[:, axis].clamp(0, size - 1) for axis, size in enumerate(space))


def _painted(lines: Tensor, image: Tensor) -> Tensor:
    """(b, 1, \\*space): every voxel as bright as the surest box around it; lines end with the brightness."""
    picture = torch.zeros_like(image[:, :1])
    for row, boxes in zip(picture, lines.tolist(), strict=True):
        for *corners, brightness in sorted(boxes, key=lambda line: line[-1]):
            axes = len(corners) // 2
            place = [slice(round(a), round(b)) for a, b in zip(corners[:axes], corners[axes:], strict=True)]
            if brightness > 0:
                row[(0, *place)] = brightness
    return picture
