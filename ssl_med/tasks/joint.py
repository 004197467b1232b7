"""What tasks on two views share: the views, the backbone, and how to see whether the embedding is alive."""

import copy
import math
from collections.abc import Mapping

from torch import Tensor, nn

from ssl_med.backbones import Backbone
from ssl_med.ops.collapse import effective_rank, feature_spread
from ssl_med.tasks.appearance import appearance
from ssl_med.tasks.base import PretextTask
from ssl_med.transforms import Flip, PairedViews, RandomResizedCrop
from ssl_med.transforms.base import Transform
from ssl_med.transforms.views import Views
from ssl_med.types import Batch

_LEAST_RANK = 0.1
"""Of the effective rank that is possible, below which few dimensions are left; sound trainings stay above 0.14."""


def two_views(channels: int, spatial_dims: int, smallest: float = 0.2) -> PairedViews:
    """The views of SimCLR and its family for medical images: crops and flips; colour for RGB, else blur and noise.

    Only RGB pictures have their values moved, see :func:`~ssl_med.tasks.appearance.appearance`: Hounsfield units stay.
    For images whose scale has no unit, ``Brightness`` and ``Contrast`` in own views make the task harder.

    Args:
        channels: of the images.
        spatial_dims: 2 for pictures, 3 for volumes.
        smallest: smallest share of the image in a crop (SimCLR 0.08; MoCo v3 with a CNN 0.2).
    """
    crop = RandomResizedCrop(scale=(smallest, 1.0))
    steps: list[Transform] = [crop, Flip(), *appearance(channels, spatial_dims)]
    return PairedViews(steps, copy.deepcopy(steps))


class TwoViewTask(PretextTask):
    """Two views of each image, embedded by a backbone and a head.

    Args:
        backbone: any.
        views: two views; :func:`two_views` by default.
    """

    head: nn.Module
    """Features (b, backbone.embed_dim) to the space of the loss."""

    collapsed_spread: float = 0.05
    """Spread of the embedding up to which it counts as collapsed; 1 is isotropic, 0 the same for all images."""

    _possible = 0.0

    def __init__(self, backbone: Backbone, views: Views | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.views = views if views is not None else two_views(backbone.in_channels, backbone.spatial_dims)

    def features(self, view: Batch) -> Tensor:
        """Pooled features of one view (b, d)."""
        return self.backbone(view["image"], view.get("spacing")).pooled

    def embed(self, view: Batch) -> Tensor:
        """Features through the head."""
        return self.head(self.features(view))

    def vital_signs(self, batch: Batch) -> dict[str, Tensor]:
        """Spread and effective rank of the embedding that the loss sees."""
        return self.signs_of(self.embed(self.views(batch)[0]))

    def signs_of(self, embedding: Tensor) -> dict[str, Tensor]:
        """The signs of an embedding (b, d)."""
        self._possible = float(min(embedding.shape))
        return {"embedding_spread": feature_spread(embedding), "embedding_rank": effective_rank(embedding)}

    def verdict(self, signs: Mapping[str, float]) -> str:
        """Collapsed to a point, to a few dimensions (arXiv 2110.09348), or neither."""
        spread, rank = signs["embedding_spread"], signs.get("embedding_rank", math.nan)
        remedy = "lower the learning rate, lengthen the warm-up or enlarge the batch"
        if spread <= self.collapsed_spread:  # a single image has none
            return (
                f"the embedding is nearly the same for all images (spread {spread:.4f}, 1 would be isotropic): {remedy}"
            )
        if rank < _LEAST_RANK * self._possible:
            return (
                f"the embedding has collapsed to few dimensions (effective rank {rank:.1f} of {self._possible:.0f}): "
                f"{remedy}"
            )
        return ""

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Both views."""
        first, second = self.views(batch)[:2]
        return {"first view": first["image"].float(), "second view": second["image"].float()}

    def exports(self) -> dict[str, nn.Module]:
        """The backbone that is trained; heads are thrown away."""
        return {"backbone": self.backbone}

    def layers(self) -> list[list[nn.Parameter]]:
        """The backbone's; heads count as last."""
        return self.backbone.layers()
