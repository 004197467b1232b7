"""What MoCo v3 (arXiv 2104.02057) and SSiT (arXiv 2210.10969) share: two branches, one of them a moving average.

The query branch (backbone, projector, predictor) learns; the key branch (backbone, projector) follows it. Every query
of one view has to find the key of its own image's other view among the keys of the whole batch.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional

from ssl_med.backbones import Backbone, ViT
from ssl_med.errors import UserError
from ssl_med.ops.collapse import feature_spread
from ssl_med.ops.contrast import info_nce
from ssl_med.ops.ema import follow, teacher_of
from ssl_med.ops.norm import BatchNorm
from ssl_med.schedules import cosine
from ssl_med.tasks.base import Choice, Plan, PretextTask
from ssl_med.tasks.heads import MLPHead
from ssl_med.transforms import Views
from ssl_med.types import Batch

MOMENTUM, HIDDEN = 0.99, 4096
"""The papers' values, which a constructor takes where it meets None."""

Module = TypeVar("Module", bound=nn.Module)


def contrast(q: Float[Tensor, "b d"], k: Float[Tensor, "b d"], temperature: float) -> Float[Tensor, ""]:
    """InfoNCE scaled by ``2 * temperature``, so that its gradient does not depend on the temperature's size."""
    return 2 * temperature * info_nce(q, k, temperature)


def steady_copy(student: Module) -> Module:
    """A teacher that follows the student, without stochastic depth."""
    teacher = teacher_of(student)
    for module in teacher.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    return teacher


def by_own_statistics(head: MLPHead, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
    """A head whose batch norms take the moments of these rows: nothing is remembered, no other process is asked."""
    for layer in head:
        if isinstance(layer, BatchNorm):
            x = functional.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)
        else:
            x = layer(x)
    return x


class MomentumContrast(PretextTask):
    """Two branches and their schedule; a task says what each branch sees.

    Args:
        backbone: of the query branch; it is exported.
        views: two views of each image.
        temperature: of the contrast.
        momentum: of the key branch at the start, cosine to 1 at the end; None is the papers' 0.99.
        hidden_dim: width inside the heads; None is the papers' 4096.
        out_dim: width of queries and keys.
        pooling: ``class``: the class token where the backbone has one (the papers), else its pooled feature; ``mean``:
            always the pooled feature.
    """

    progress: Tensor

    def __init__(
        self,
        backbone: Backbone,
        views: Views,
        temperature: float,
        momentum: float | None,
        hidden_dim: int | None,
        out_dim: int,
        pooling: Literal["class", "mean"],
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if temperature <= 0:
            raise UserError(f"{name}: temperature must be above 0, got {temperature}")
        if momentum is not None and not 0 <= momentum <= 1:
            raise UserError(f"{name}: momentum must be 0 to 1, got {momentum}")
        self.backbone, self.views = backbone, views
        self.temperature, self.momentum, self.hidden_dim, self.out_dim = temperature, momentum, hidden_dim, out_dim
        self.pooling: Literal["class", "mean"] = pooling
        hidden = hidden_dim or HIDDEN
        self.projector = MLPHead([backbone.embed_dim, hidden, hidden, out_dim], last_norm=True)
        self.predictor = MLPHead([out_dim, hidden, out_dim], last_norm=True)
        self.key_backbone, self.key_projector = steady_copy(backbone), steady_copy(self.projector)
        self.register_buffer("progress", torch.zeros(()))

    @abstractmethod
    def query(self, view: Batch) -> Float[Tensor, "b d"]:
        """Predictions of the keys from a view."""

    @abstractmethod
    def key(self, view: Batch) -> Float[Tensor, "b d"]:
        """What a view is to be recognised by; without gradients."""

    def equip(self, batch: Batch) -> Batch:
        """What must be added to a batch before its views are made; nothing by default."""
        return batch

    def represent(self, backbone: Backbone, view: Batch) -> Float[Tensor, "b d"]:
        """One vector per image."""
        image, spacing = view["image"], view.get("spacing")
        if self.pooling == "class" and isinstance(backbone, ViT) and backbone.class_token:
            return backbone.encode(backbone.tokenize(image, spacing))[:, 0]
        return backbone(image, spacing).pooled

    def through(self, head: MLPHead, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """A head; in evaluation it normalises by the batch at hand, as in training, and not by its lagging averages."""
        return head(x) if self.training or len(x) < 2 else by_own_statistics(head, x)

    def momentum_at(self, progress: float) -> float:
        """Cosine from the start value to 1: with 0.99, 0.995 in the middle."""
        return cosine(progress, MOMENTUM if self.momentum is None else self.momentum, 1.0)

    def after_step(self, progress: float) -> None:
        """The key branch follows; the papers do it before the next step's keys, which is the same."""
        follow(self.key_backbone, self.backbone, self.momentum_at(progress))
        follow(self.key_projector, self.projector, self.momentum_at(progress))
        self.progress.fill_(progress)

    @classmethod
    def choose(cls, settings: Mapping[str, Any], plan: Plan) -> dict[str, Choice]:
        """Momentum from the number of steps, width of the heads from the number of images."""
        window = min(100, max(10, plan.steps // 50))
        memory = f"keys average {window} steps, of {plan.steps} (the papers' 0.99 averages 100, of some 50,000 or more)"
        width = HIDDEN if plan.images >= 50_000 else 2048 if plan.images >= 5_000 else 1024
        heads = f"{plan.images} images; the papers' 4096 were for 88,000 (SSiT) and 1.3 million (MoCo v3)"
        return {"momentum": Choice(1 - 1 / window, memory), "hidden_dim": Choice(width, heads)}

    def vital_signs(self, batch: Batch) -> dict[str, Tensor]:
        """The contrast of this process beside its chance level, and how much nearer a query is to its own key.

        ``contrast_chance`` is ``4 * temperature * ln(images looked at)``. No process waits for another here.
        """
        first, second = self.views(self.equip(batch))
        pairs = [(self.query(first), self.key(second)), (self.query(second), self.key(first))]
        signs = [_signs(q.float(), k.float(), self.temperature) for q, k in pairs]
        n, device = len(batch["image"]), batch["image"].device
        chance = torch.full((), 4 * self.temperature * math.log(n), device=device)
        return {
            "contrast": sum((s["contrast"] for s in signs), torch.zeros((), device=device)),
            "contrast_chance": chance,
            "query_key_gap": torch.stack([s["gap"] for s in signs]).mean(),
            "key_spread": torch.stack([s["spread"] for s in signs]).mean(),
            "progress": self.progress.clone(),
        }

    def verdict(self, signs: Mapping[str, float]) -> str:
        """Names numbers that are no numbers, a representation that is constant, and queries that find nothing."""
        value, chance = signs["contrast"], signs["contrast_chance"]
        if not math.isfinite(value):
            return "the contrast is not a number: lower learner.lr or set learner.clip to 1"
        if signs["feature_spread"] < 0.01:
            return (
                f"features are the same for every image (spread {signs['feature_spread']:.4f}): the backbone has "
                "collapsed; lower learner.lr or lengthen learner.warmup"
            )
        if signs["progress"] >= 0.5 and chance > 0 and value > 0.97 * chance:
            return (
                f"queries do not find their own image: the contrast is {value:.2f}, chance is {chance:.2f} (4 tau ln N)"
                "; lower learner.lr, raise data.batch_size or make the views more alike"
            )
        return ""

    def exports(self) -> dict[str, nn.Module]:
        """The query branch's backbone, the one that learns."""
        return {"backbone": self.backbone}

    def layers(self) -> list[list[nn.Parameter]]:
        """The backbone's; the heads count as last."""
        return self.backbone.layers()


def _signs(q: Tensor, k: Tensor, temperature: float) -> dict[str, Tensor]:
    """Contrast, gap between own and other keys, and spread of the keys, on the rows of this process."""
    similarity = functional.normalize(q, dim=1) @ functional.normalize(k, dim=1).T
    n, own = len(similarity), similarity.diagonal()
    loss = functional.cross_entropy(similarity / temperature, torch.arange(n, device=q.device))
    others = (similarity.sum() - own.sum()) / max(n * (n - 1), 1)
    return {"contrast": 2 * temperature * loss, "gap": own.mean() - others, "spread": feature_spread(k)}
