"""Multi-crop views (SwAV, arXiv 2006.09882; DINO, arXiv 2104.14294): few large crops and many small ones of an image.

In 3D the crops are drawn in the plane of the slices and across it apart, with the values of 3DINO (arXiv 2501.11755).
"""

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ssl_med.errors import UserError
from ssl_med.ops.constants import constant
from ssl_med.ops.random import Draws, fold
from ssl_med.transforms.base import VIEW_STREAM, Compose, SpatialTransform, Transform, check_range, draws_of
from ssl_med.transforms.boxes import Boxes, BoxLaw, axis_order, draw_boxes, draw_turns, read_boxes, through_plane
from ssl_med.transforms.choice import OneOf
from ssl_med.transforms.intensity import Gamma, GaussianBlur, GaussianNoise
from ssl_med.transforms.intensity_colour import ColourJitter, Grayscale, Solarize
from ssl_med.transforms.intensity_scan import GibbsNoise, HistogramShift, Sharpen
from ssl_med.transforms.spatial import NEAREST
from ssl_med.transforms.views import Views
from ssl_med.types import Batch

Style = Literal["auto", "ct", "grey", "colour", "none"]
Range = tuple[float, float]
DINO_2D = (BoxLaw((0.4, 1.0), (3 / 4, 4 / 3), (1.0, 1.0)), BoxLaw((0.05, 0.4), (3 / 4, 4 / 3), (1.0, 1.0)))
"""Shares and ratios of global and local crops of images, as published; crops are read linearly, there bicubically."""
DINO_3D = (BoxLaw((0.48, 1.0), (0.9, 1 / 0.9), (0.5, 1.0)), BoxLaw((0.16, 0.48), (0.9, 1 / 0.9), (0.2, 0.5)))
"""Global and local crops of volumes, 3DINO's."""


class MultiCrop(Views):
    """Two global and several local crops of every image, resampled on the device in one pass for each size.

    The views come as a list: global ones first, all of one size, then local ones, all of a smaller size. A local view
    may lie anywhere in the image. Grey values are changed by a style:

    - ``colour``: DINO's jitter, greyscale, blur and solarisation.
    - ``ct``: noise and blur or sharpening, which leave the mean Hounsfield unit of a tissue as it is.
    - ``grey``: for scales without a unit (MR, ultrasound, X-ray): gamma, noise or histogram shift; blur or sharpening;
      Gibbs ringing on the second global view. The parts are 3DINO's; noise reaches 0.1 (there 0.002) and gamma is drawn
      on a logarithmic scale.
    - ``none``: nothing.
    - ``auto``: ``colour`` for 2D images with three channels, ``ct`` for all others, because nothing in a batch says of
      which modality it is. Three windows of a CT slice look like colours: set ``ct`` for them.

    Args:
        local_count: number of local views.
        multiple: sizes of views are multiples of this along each axis: a ViT's patch, the coarsest stride of a CNN.
        global_share: side of a global view as a share of the batch's crop.
        local_share: side of a local view as a share of the batch's crop (DINO: 96 / 224; 3DINO: 48 / 96).
        global_scale: range of the share of the area that a global view shows, in 3D of the in-plane area. By default
            (0.4, 1) in 2D, (0.48, 1) in 3D.
        local_scale: likewise for local views; (0.05, 0.4) in 2D, (0.16, 0.48) in 3D.
        global_through: range of the share of the slices in a global view, 3D only; (0.5, 1).
        local_through: likewise for local views; (0.2, 0.5).
        through_axis: axis across the slices, or of time: 0 for images over time. By default it is found from the
            spacing, see :func:`~ssl_med.transforms.boxes.through_plane`.
        flip: probability of mirroring along each axis; by default 0.5 along the last axis in 2D, 0.3 along each in 3D.
            Mind that the last axis of a RAS volume is left-right.
        turn: probability of a turn by 90, 180 or 270 degrees in each plane whose two axes have equally many voxels in
            the view; by default 0 in 2D and 0.3 in 3D.
        style: changes of grey values.
        first: changes of grey values of the first global view in place of the style's.
        second: likewise for the second global view.
        local: likewise for the local views.

    Raises:
        UserError: a range out of order; a crop too small for local views smaller than the global ones; more axes than
            three.
    """

    global_count = 2

    def __init__(
        self,
        local_count: int = 8,
        multiple: int | list[int] = 16,
        global_share: float = 1.0,
        local_share: float = 3 / 7,
        global_scale: Range | None = None,
        local_scale: Range | None = None,
        global_through: Range | None = None,
        local_through: Range | None = None,
        through_axis: int | None = None,
        flip: list[float] | None = None,
        turn: float | None = None,
        style: Style = "auto",
        first: list[Transform] | None = None,
        second: list[Transform] | None = None,
        local: list[Transform] | None = None,
    ) -> None:
        super().__init__()
        self.local_count, self.multiple = local_count, multiple
        self.global_share, self.local_share = global_share, local_share
        self.global_scale, self.local_scale = global_scale, local_scale
        self.global_through, self.local_through = global_through, local_through
        self.through_axis, self.flip, self.turn, self.style = through_axis, flip, turn, style
        self.first, self.second, self.local = (None if t is None else nn.ModuleList(t) for t in (first, second, local))
        self._styles = nn.ModuleDict(
            {name: nn.ModuleList(Compose(list(c)) for c in make()) for name, make in STYLES.items()}
        )
        self._check()

    def _check(self) -> None:
        if self.local_count < 0:
            raise UserError(f"MultiCrop: local_count must be 0 or more, got {self.local_count}")
        for name in ("global_share", "local_share"):
            check_range(f"MultiCrop: {name}", (getattr(self, name),) * 2, 1e-3, 1.0)
        for name in ("global_scale", "local_scale", "global_through", "local_through"):
            if getattr(self, name) is not None:
                check_range(f"MultiCrop: {name}", getattr(self, name), 1e-4, 1.0)
        chances = [*(self.flip or []), self.turn or 0.0]
        check_range("MultiCrop: flip and turn", (min(chances), max(chances)), 0.0, 1.0)

    def forward(self, batch: Batch) -> list[Batch]:
        """Global views, then local ones; row i of each shows image i."""
        keys = draws_of(batch).keys
        global_size, local_size = self.sizes(tuple(batch["image"].shape[2:]))
        global_law, local_law = self.laws(batch["image"].ndim - 2)
        numbers = range(self.global_count + self.local_count)
        streams = [fold(keys, VIEW_STREAM + number) for number in numbers]
        with torch.autocast(batch["image"].device.type, enabled=False):  # half precision would move voxels
            large = self._crops(batch, streams[: self.global_count], global_law, global_size)
            one, two = _split(large, self.global_count)
            views = [self._change(one, 0), self._change(two, 1)]
            if self.local_count:
                small = self._crops(batch, streams[self.global_count :], local_law, local_size)
                views += _split(self._change(small, 2), self.local_count)
        extra = {name: value for name, value in batch.items() if name in ("label", "id")}
        return [cast(Batch, {**view, **extra}) for view in views]

    def sizes(self, space: tuple[int, ...]) -> tuple[list[int], list[int]]:
        """Voxels of global and of local views of a crop: the shares of it, to the nearest multiple."""
        count = len(space)
        if count not in (2, 3):
            raise UserError(f"MultiCrop makes views of images with 2 or 3 axes, got {count}: {space}")
        steps = [self.multiple] * count if isinstance(self.multiple, int) else self.multiple
        if len(steps) != count:
            raise UserError(f"MultiCrop: multiple {self.multiple} does not fit crops of {space} voxels")
        large, small = (
            [max(1, math.floor(share * size / step + 0.5)) * step for size, step in zip(space, steps, strict=True)]
            for share in (self.global_share, self.local_share)
        )
        fits = all(a <= size for a, size in zip(large, space, strict=True))
        if not fits or (self.local_count and not math.prod(small) < math.prod(large)):
            raise UserError(
                f"MultiCrop: crops of {space} voxels are too small for global views of {large} and smaller local views "
                f"of {small} at multiple {self.multiple}: enlarge the crop or take smaller patches"
            )
        return large, small

    def laws(self, count: int) -> tuple[BoxLaw, BoxLaw]:
        """Global and local law for ``count`` axes: what was set, the published values elsewhere."""
        large, small = DINO_2D if count == 2 else DINO_3D
        if count == 2 and (self.global_through or self.local_through or self.through_axis is not None):
            raise UserError("MultiCrop: global_through, local_through and through_axis are for volumes, got images")
        return (
            BoxLaw(self.global_scale or large.scale, large.ratio, self.global_through or large.through),
            BoxLaw(self.local_scale or small.scale, small.ratio, self.local_through or small.through),
        )

    def _crops(self, batch: Batch, streams: list[Tensor], law: BoxLaw, size: list[int]) -> Batch:
        """All views of one size, (v * b, ...), view by view."""
        image = batch["image"]
        space = constant(image.shape[2:], image.device, torch.float32)
        spacing = batch.get("spacing", torch.ones(len(image), len(size), device=image.device)).float()
        draws = Draws(torch.stack(streams, 1).flatten())  # the views of an image side by side
        order = self._order(spacing).repeat_interleave(len(streams), 0)
        start, lengths = draw_boxes(draws, law, order)
        boxes = Boxes(start, lengths, draw_turns(draws.child(1), self._flips(len(size)), self._turns(len(size)), size))
        crops: dict[str, Tensor] = {"key": torch.cat(streams)}
        for name, value in batch.items():
            if name in SpatialTransform.keys:
                mode = "nearest" if name in NEAREST else "bilinear"
                crops[name] = read_boxes(cast(Tensor, value), boxes, size, mode)
        if "modality" in batch:
            crops["modality"] = batch["modality"].repeat(len(streams))
        if "spacing" in batch:
            extent = (spacing * space).repeat_interleave(len(streams), 0)
            crops["spacing"] = boxes.spacing(extent, size).unflatten(0, (len(image), -1)).transpose(0, 1).flatten(0, 1)
        return cast(Batch, crops)

    def _order(self, spacing: Tensor) -> Tensor:
        if spacing.shape[1] == 2:
            return torch.arange(2, device=spacing.device).expand(len(spacing), 2)
        if self.through_axis is None:
            return axis_order(through_plane(spacing))
        if self.through_axis not in (0, 1, 2):
            raise UserError(f"MultiCrop: through_axis must be 0, 1 or 2, got {self.through_axis}")
        return axis_order(torch.full((len(spacing),), self.through_axis, device=spacing.device))

    def _flips(self, count: int) -> Sequence[float]:
        flip = ([0.0, 0.5] if count == 2 else [0.3] * 3) if self.flip is None else self.flip
        if len(flip) != count:
            raise UserError(f"MultiCrop: flip needs one probability for each of {count} axes, got {flip}")
        return flip

    def _turns(self, count: int) -> float:
        return (0.0 if count == 2 else 0.3) if self.turn is None else self.turn

    def _change(self, view: Batch, role: int) -> Batch:
        """Grey values of the first (0), second (1) or local (2) views."""
        own = (self.first, self.second, self.local)[role]
        if own is not None:
            return Compose(cast("list[Transform]", list(own)))(view)
        image = view["image"]
        style = self.style
        if style == "auto":
            style = "colour" if image.ndim == 4 and image.shape[1] == 3 else "ct"
        chain = cast(nn.ModuleList, self._styles[style])[role]
        return cast(Batch, chain(view))


def _split(views: Batch, count: int) -> list[Batch]:
    parts = {name: cast(Tensor, value).chunk(count) for name, value in views.items()}
    return [cast(Batch, {name: part[number] for name, part in parts.items()}) for number in range(count)]


def _colour() -> list[list]:
    def shared() -> list[Transform]:
        return [ColourJitter(0.4, 0.4, 0.2, 0.1, 0.8), Grayscale(0.2)]

    def blur(probability: float) -> Transform:
        return GaussianBlur((0.1, 2.0), probability)

    return [[*shared(), blur(1.0)], [*shared(), blur(0.1), Solarize(0.5, 0.2)], [*shared(), blur(0.5)]]


def _edges(probability: float) -> OneOf:
    return OneOf([GaussianBlur((0.5, 1.0)), Sharpen((0.5, 2.0))], probability)


def _ct() -> list[list]:
    def noise() -> Transform:
        return GaussianNoise((0.0, 0.02), 0.8)

    return [[noise(), _edges(1.0)], [noise(), _edges(0.1)], [noise(), GaussianBlur((0.5, 1.0), 0.5)]]


def _grey() -> list[list]:
    def bend() -> OneOf:
        limit = math.log(2.0)
        return OneOf([Gamma((-limit, limit)), GaussianNoise((0.0, 0.1)), HistogramShift(10)], 0.8)

    return [
        [bend(), _edges(1.0)],
        [bend(), _edges(0.1), GibbsNoise((0.3, 0.7), 0.2)],
        [bend(), GaussianBlur((0.5, 1.0), 0.5)],
    ]


STYLES = {"colour": _colour, "ct": _ct, "grey": _grey, "none": lambda: [[], [], []]}
"""Chains of the first and second global view and of the local ones."""
