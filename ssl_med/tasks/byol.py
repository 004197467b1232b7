"""BYOL: predict what a slowly following teacher sees in another view (Grill et al., NeurIPS 2020, arXiv 2006.07733)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ssl_med.backbones import Backbone
from ssl_med.ops.ema import follow, teacher_of
from ssl_med.ops.joint import cosine_distance
from ssl_med.schedules import cosine
from ssl_med.tasks.base import Choice, Plan
from ssl_med.tasks.heads import MLPHead
from ssl_med.tasks.joint import TwoViewTask
from ssl_med.transforms import Views
from ssl_med.types import Batch, Losses


def teacher_memory(plan: Plan, published: float) -> Choice:
    """A teacher's momentum at which it looks back over at most a twentieth of the training.

    Published momenta suit hundreds of thousands of steps; in a short run such a teacher would stay near its random
    beginning.

    Args:
        plan: of the training.
        published: the paper's momentum at the start.
    """
    fitting = 1 - 20 / max(plan.steps, 21)
    if fitting >= published:
        return Choice(published, "the paper's, since the training is long enough")
    value = round(max(fitting, 0.9), 4)
    return Choice(value, f"{plan.steps} steps are few: the paper's {published} would keep the teacher at its beginning")


class BYOL(TwoViewTask):
    """No negatives: a predictor and a moving-average teacher keep the embedding alive.

    Args:
        backbone: any; the student's is exported.
        views: two views; crops, flips, blur and noise by default, for RGB pictures colour instead of noise.
        hidden_dim: width of the hidden layers of projector and predictor.
        out_dim: width of the embedding.
        momentum: of the teacher at the start, rising to 1; None for one that fits the length of the training, or the
            paper's 0.996 where that is not known.
    """

    def __init__(
        self,
        backbone: Backbone,
        views: Views | None = None,
        hidden_dim: int = 4096,
        out_dim: int = 256,
        momentum: float | None = None,
    ) -> None:
        super().__init__(backbone, views)
        self.hidden_dim, self.out_dim, self.momentum = hidden_dim, out_dim, momentum
        self.head = MLPHead([backbone.embed_dim, hidden_dim, out_dim])
        self.predictor = MLPHead([out_dim, hidden_dim, out_dim])
        self.teacher_backbone, self.teacher_head = teacher_of(backbone), teacher_of(self.head)

    @classmethod
    def choose(cls, settings: Mapping[str, Any], plan: Plan) -> dict[str, Choice]:
        """A momentum for the length of the training."""
        return {"momentum": teacher_memory(plan, 0.996)}

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Each view predicts the teacher's embedding of the other; 4 is chance, 0 is perfect."""
        views = self.views(batch)
        first, second = (self.predictor(self.embed(view)) for view in views)
        with torch.no_grad():
            seen_first, seen_second = (self._teach(view) for view in views)
        return {"loss": cosine_distance(first, seen_second) + cosine_distance(second, seen_first)}

    def _teach(self, view: Batch) -> Tensor:
        return self.teacher_head(self.teacher_backbone(view["image"], view.get("spacing")).pooled)

    def after_step(self, progress: float) -> None:
        """The teacher follows."""
        momentum = cosine(progress, 0.996 if self.momentum is None else self.momentum, 1.0)
        follow(self.teacher_backbone, self.backbone, momentum)
        follow(self.teacher_head, self.head, momentum)
