"""SimCLR: two views of an image attract each other, all others repel (Chen et al., ICML 2020, arXiv 2002.05709)."""

import math
from collections.abc import Mapping
from typing import Any

from ssl_med.backbones import Backbone
from ssl_med.ops.contrast import nt_xent
from ssl_med.ops.ranks import world_size
from ssl_med.tasks.base import Choice, Plan
from ssl_med.tasks.heads import MLPHead
from ssl_med.tasks.joint import TwoViewTask
from ssl_med.transforms import Views
from ssl_med.types import Batch, Losses


class SimCLR(TwoViewTask):
    """Contrast with all other images of the global batch as negatives.

    Args:
        backbone: any.
        views: two views; crops, flips, blur and noise by default, for RGB pictures colour instead of noise.
        hidden_dim: width of the head's hidden layer.
        out_dim: width of the embedding (paper: 128).
        temperature: of the similarities; None for one that fits the batch, or 0.1 (paper, for large batches) where no
            batch size is known.
    """

    def __init__(
        self,
        backbone: Backbone,
        views: Views | None = None,
        hidden_dim: int = 2048,
        out_dim: int = 128,
        temperature: float | None = None,
    ) -> None:
        super().__init__(backbone, views)
        self.hidden_dim, self.out_dim, self.temperature = hidden_dim, out_dim, temperature
        self.head = MLPHead([backbone.embed_dim, hidden_dim, out_dim])

    @classmethod
    def choose(cls, settings: Mapping[str, Any], plan: Plan) -> dict[str, Choice]:
        """A higher temperature for small batches (paper, table 5: 0.5 was best at 256, 0.1 at 4096)."""
        size = plan.forward_size
        reason = f"{size} images are contrasted in a forward pass; the paper's best is 0.5 up to 256"
        return {"temperature": Choice(0.5 if size <= 256 else 0.1, reason)}

    def forward(self, batch: Batch, progress: float) -> Losses:
        """NT-Xent of both views, and its value for an embedding that knows nothing."""
        first, second = (self.embed(view) for view in self.views(batch))
        loss = nt_xent(first, second, 0.1 if self.temperature is None else self.temperature)
        return {"loss": loss, "loss_over_chance": loss / math.log(max(2 * len(first) * world_size() - 1, 2))}
