"""Region-guided contrast: lesion-based contrastive learning (Huang et al., MICCAI 2021, arXiv 2107.08274), 2D and 3D.

Two crops around the same region of an image attract each other and repel the crops of all other images. Defaults
(temperature 0.07, head to 128) are the paper's; its detector is one of several sources of boxes here.
"""

from collections.abc import Mapping
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ssl_med.backbones import Backbone
from ssl_med.errors import UserError
from ssl_med.ops import ranks
from ssl_med.ops.contrast import nt_xent
from ssl_med.ops.random import fold
from ssl_med.ops.regions import Boxes, coordinates
from ssl_med.tasks.appearance import appearance
from ssl_med.tasks.base import PretextTask
from ssl_med.tasks.boxes import BoxProvider, SaliencyBoxes
from ssl_med.tasks.heads import MLPHead
from ssl_med.transforms import Affine, Flip, RandomResizedCrop, SingleView, Views
from ssl_med.transforms.base import draws_of
from ssl_med.transforms.region import crop, crop_corner
from ssl_med.types import Batch, Losses


class RegionContrast(PretextTask):
    """Contrast of crops that share a region.

    An image without a region takes no part: neither as anchor nor as negative. How many there were is logged.

    Args:
        backbone: any; it is exported.
        views: changes of each crop, drawn anew for either; by default the paper's kinds with the strengths of
            :func:`default_views`, without colour for grey images.
        boxes: where the regions come from; connected salient regions by default, which needs no annotation.
        size: voxels of the crops along each axis; by default half of the image, rounded up to what the backbone takes.
            Regions longer than that are not used.
        temperature: of the contrast.
        hidden_dim: width inside the head; None is the backbone's own (the paper's 2048 is that of its ResNet-50).
        out_dim: width of what is compared.
    """

    def __init__(
        self,
        backbone: Backbone,
        views: Views | None = None,
        boxes: BoxProvider | None = None,
        size: list[int] | None = None,
        temperature: float = 0.07,
        hidden_dim: int | None = None,
        out_dim: int = 128,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise UserError(f"RegionContrast: temperature must be above 0, got {temperature}")
        self.backbone, self.size = backbone, size
        self.views = views if views is not None else default_views(backbone.in_channels, backbone.spatial_dims)
        self.boxes = boxes if boxes is not None else SaliencyBoxes()
        self.temperature, self.hidden_dim, self.out_dim = temperature, hidden_dim, out_dim
        hidden = hidden_dim or backbone.embed_dim
        self.projector = MLPHead([backbone.embed_dim, hidden, out_dim], norm="none")

    def forward(self, batch: Batch, progress: float) -> Losses:
        """A region per image, two crops around it, changed, compared."""
        first, second, boxes = self.crops(batch)
        z1, z2 = (self.project(self.views(one)[0]) for one in (first, second))
        loss = nt_xent(z1, z2, self.temperature, boxes.found.float())
        return {"loss": loss, "images_without_region": ranks.total((~boxes.found).float().sum())}

    def crops(self, batch: Batch) -> tuple[Batch, Batch, Boxes]:
        """Two crops of each image around the same box, and the boxes."""
        draws, space = draws_of(batch), tuple(batch["image"].shape[2:])
        size = self.crop_size(space)
        boxes = self.boxes(batch, size, draws.child(0))
        first, second = (
            cast(
                Batch,
                {
                    **crop(batch, crop_corner(boxes, size, space, draws.child(number)), size),
                    "key": fold(draws.keys, number),
                },
            )
            for number in (1, 2)
        )
        return first, second, boxes

    def crop_size(self, space: tuple[int, ...]) -> tuple[int, ...]:
        """Voxels of the crops.

        Raises:
            UserError: they do not fit into the images or the backbone.
        """
        steps = self.backbone.multiple()
        size = tuple(self.size) if self.size else tuple(-(-n // (2 * s)) * s for n, s in zip(space, steps, strict=True))
        if len(size) != len(space) or any(s > n for s, n in zip(size, space, strict=True)):
            raise UserError(f"RegionContrast: crops of {size} do not fit into images of {space} voxels; lower size")
        return size

    def project(self, view: Batch) -> Float[Tensor, "b d"]:
        """Backbone and head."""
        return self.projector(self.backbone(view["image"], view.get("spacing")).pooled)

    def vital_signs(self, batch: Batch) -> dict[str, Tensor]:
        """How much nearer two crops of one region are than crops of different images, and images with a region."""
        first, second, boxes = self.crops(batch)
        z1, z2 = (functional.normalize(self.project(self.views(one)[0]).float(), dim=1) for one in (first, second))
        found = boxes.found.float()
        similarity, pairs = z1 @ z2.T, found[:, None] * found[None]
        own = (similarity.diagonal() * found).sum() / found.sum().clamp(min=1)
        others = pairs - torch.diag(found)
        rest = (similarity * others).sum() / others.sum().clamp(min=1)
        logits = (similarity / self.temperature).masked_fill(others + torch.eye(len(found)).to(z1) == 0, -torch.inf)
        place = torch.arange(len(found), device=z1.device)
        losses = functional.cross_entropy(logits, place, reduction="none")
        return {
            "contrast": (losses * found).sum() / found.sum().clamp(min=1),
            "contrast_chance": found.sum().clamp(min=1).log(),
            "own_other_gap": own - rest,
            "with_region": found.mean(),
        }

    def verdict(self, signs: Mapping[str, float]) -> str:
        """Names numbers that are no numbers, a constant representation, and data without regions."""
        if not signs["contrast"] < float("inf"):
            return "the contrast is not a number: lower learner.lr or set learner.clip to 1"
        if signs["feature_spread"] < 0.01:
            return (
                f"features are the same for every image (spread {signs['feature_spread']:.4f}): the backbone has "
                "collapsed; lower learner.lr or lengthen learner.warmup"
            )
        if signs["with_region"] < 0.25:
            return (
                f"only {100 * signs['with_region']:.0f} % of the images have a region: lower boxes.threshold or "
                "boxes.border, enlarge task.size, or take other boxes"
            )
        return ""

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The image, its box, and the two crops before and after they are changed, enlarged to the image."""
        first, second, boxes = self.crops(batch)
        space = tuple(batch["image"].shape[2:])
        place = coordinates(space, batch["image"].device)[None]
        inside = ((place >= boxes.lower[:, None]) & (place < boxes.upper[:, None])).all(-1) & boxes.found[:, None]
        shown = {"input": batch["image"], "region": inside.float().reshape(len(inside), 1, *space)}
        for name, one in (("first", first), ("second", second)):
            shown[f"{name} crop"] = functional.interpolate(one["image"].float(), space)
            shown[f"{name} view"] = functional.interpolate(self.views(one)[0]["image"].float(), space)
        return shown

    def exports(self) -> dict[str, nn.Module]:
        """The backbone."""
        return {"backbone": self.backbone}

    def layers(self) -> list[list[nn.Parameter]]:
        """The backbone's; the head counts as last."""
        return self.backbone.layers()


def default_views(channels: int, spatial_dims: int) -> Views:
    """The paper's kinds of change: flips, colour where there is some, a slight resized crop, turns, shifts; and blur.

    The paper's resized crop shows 0.8 to 1.2 at a ratio of 0.8 to 1.2, its jitter is (0.4, 0.4, 0.4, 0.1), and it does
    not blur; here a crop shows no more than there is, ratios are alike in both directions, and colour, blur and noise
    are those of :func:`~ssl_med.tasks.appearance.appearance`.
    """
    crops = RandomResizedCrop(scale=(0.8, 1.0), ratio=(0.8, 1.25))
    turns = Affine(rotation=180.0, scale=(1.0, 1.0), translation=0.2)
    return SingleView([Flip(), crops, turns, *appearance(channels, spatial_dims)])
