"""DINO (Caron et al., ICCV 2021, arXiv 2104.14294) with the parts of DINOv2 (arXiv 2304.07193) as options.

A student sees small and large crops of an image, its moving average, the teacher, the large ones; the student learns to
say what the teacher says. Options: masked patches (iBOT, arXiv 2111.07832), KoLeo, Sinkhorn-Knopp. Defaults are DINO's.
"""

import math
from collections.abc import Mapping
from itertools import groupby
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from ssl_med.backbones import Backbone, ViT
from ssl_med.backbones.packed import encode_packed
from ssl_med.errors import UserError
from ssl_med.ops.centring import centring_of, koleo
from ssl_med.ops.distillation import teacher_signs, view_distillation
from ssl_med.ops.ema import follow, teacher_of
from ssl_med.schedules import cosine, linear
from ssl_med.tasks.base import Choice, Plan, PretextTask
from ssl_med.tasks.heads import PrototypeHead
from ssl_med.tasks.ibot import Hidden, MaskedPatches, PatchAnswers
from ssl_med.transforms import MultiCrop, Views
from ssl_med.types import Batch, Losses

PROTOTYPES, HIDDEN_DIM, MOMENTUM, FREEZE_LAST = 65536, 2048, 0.996, 0.01
"""The paper's values of what is chosen from the data when it is left open."""
_WIDE = 100_000
"""Images from which on the paper's head and its loss alone are chosen."""
SETTLED, INFORMED = 0.5, 0.02
"""Share of the training after which a teacher that tells images apart by less than so many nats has collapsed."""
_CENTRED = 0.15
"""Share of the training after which the centre has caught up: one prototype took all in sound runs at 0.09 of it."""


class Seen(NamedTuple):
    """What a backbone says of joined views: a feature (v, d) for each, and its patches (v, n, d) where it has any."""

    feature: Tensor
    patches: Tensor | None


class DINO(PretextTask):
    """Self-distillation without labels. The teacher is what is probed and exported.

    Args:
        backbone: any. Its stochastic depth acts in the student only (0.1 in the paper).
        views: two global views first, then local ones; :class:`~ssl_med.transforms.MultiCrop` with 2 + 8 by default.
        prototypes: outputs of the head; chosen from the number of images if left open, 65,536 (the paper's) where it is
            not known.
        hidden_dim: width of the head's hidden layers; chosen likewise, 2048 in the paper.
        bottleneck_dim: width before the prototypes.
        feature: what the head gets: the ``class_token``, or the ``pool`` of the patches, which is what probes and
            fine-tuning see. By default the class token where the backbone has one, as published.
        momentum: of the teacher at the start, to 1 on a cosine; chosen from the number of steps, 0.996 in the paper.
        student_temp: temperature of the student.
        teacher_temp: temperature of the teacher at the start.
        teacher_temp_end: temperature of the teacher after the warm-up; DINOv2 goes to 0.07.
        teacher_temp_warmup: share of the training over which it rises (30 of 100 epochs in the papers).
        freeze_last: share of the training in which the prototypes stay; one epoch, 0.01 in the paper, chosen likewise.
        centring: ``centre`` (DINO) or ``sinkhorn`` (DINOv2).
        centre_momentum: share of the old centre that stays.
        ibot: weight of the loss on hidden patches, 0 for none; DINOv2 has 1. It needs a ViT.
        ibot_ratio: range of the share of hidden patches (3DINO: 0.2 to 0.75), in one global view of each image: half of
            the views, as published.
        ibot_blocks: hide blocks of patches (DINOv2) or single ones (3DINO).
        ibot_head: give the patches a head of their own (DINOv2).
        koleo: weight of KoLeo on the student's features of each global view; 0 (the paper) for none, 0.1 in DINOv2;
            chosen from the number of images if left open.
        packed: run views of all sizes through a ViT in one pass, see :func:`~ssl_med.backbones.packed.encode_packed`.
        norm_last_layer: prototypes of length 1. False lets their lengths be learned, the authors' choice for ViT-S:
            better there, and less stable.

    Raises:
        UserError: a setting that the backbone cannot fulfil, or one out of range.
    """

    def __init__(
        self,
        backbone: Backbone,
        views: Views | None = None,
        prototypes: int | None = None,
        hidden_dim: int | None = None,
        bottleneck_dim: int = 256,
        feature: Literal["class_token", "pool"] | None = None,
        momentum: float | None = None,
        student_temp: float = 0.1,
        teacher_temp: float = 0.04,
        teacher_temp_end: float = 0.04,
        teacher_temp_warmup: float = 0.3,
        freeze_last: float | None = None,
        centring: Literal["centre", "sinkhorn"] = "centre",
        centre_momentum: float = 0.9,
        ibot: float = 0.0,
        ibot_ratio: tuple[float, float] = (0.1, 0.5),
        ibot_blocks: bool = True,
        ibot_head: bool = True,
        koleo: float | None = None,
        packed: bool = False,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        token = isinstance(backbone, ViT) and backbone.class_token
        self.feature: Literal["class_token", "pool"] = feature or ("class_token" if token else "pool")
        self.prototypes, self.hidden_dim = prototypes or PROTOTYPES, hidden_dim or HIDDEN_DIM
        self.momentum = MOMENTUM if momentum is None else momentum
        self.freeze_last = FREEZE_LAST if freeze_last is None else freeze_last
        self.bottleneck_dim, self.student_temp = bottleneck_dim, student_temp
        self.teacher_temp, self.teacher_temp_end = teacher_temp, teacher_temp_end
        self.teacher_temp_warmup, self.centre_momentum = teacher_temp_warmup, centre_momentum
        self.ibot, self.ibot_ratio, self.ibot_blocks, self.ibot_head = ibot, ibot_ratio, ibot_blocks, ibot_head
        self.centring: Literal["centre", "sinkhorn"] = centring
        self.koleo, self.packed, self.norm_last_layer = koleo or 0.0, packed, norm_last_layer
        self._check(backbone, token)
        self.backbone = backbone
        self.views = views if views is not None else MultiCrop(multiple=list(backbone.multiple()))
        self.head = self._head()
        self.centre = centring_of(centring, self.prototypes, centre_momentum)
        self.masked = self._masked() if ibot else None
        self.patch_head = self._head() if ibot and ibot_head else None
        self.teacher = teacher_of(self._student())
        self._temperature, self._progress = teacher_temp, 0.0  # of the last step, for the vital signs

    def _check(self, backbone: Backbone, token: bool) -> None:
        if self.feature == "class_token" and not token:
            raise UserError("DINO: feature 'class_token' needs a ViT with class_token: true; set feature to 'pool'")
        if (self.ibot or self.packed) and not isinstance(backbone, ViT):
            raise UserError(f"DINO: ibot and packed need a ViT, got {type(backbone).__name__}; set both to 0")
        if not 0 < self.ibot_ratio[0] <= self.ibot_ratio[1] < 1:
            raise UserError(f"DINO: ibot_ratio must be (low, high) with 0 < low <= high < 1, got {self.ibot_ratio}")
        temperatures = (self.student_temp, self.teacher_temp, self.teacher_temp_end)
        if min(temperatures) <= 0 or not 0 <= self.momentum <= 1:
            raise UserError(f"DINO: temperatures {temperatures} must be above 0, momentum {self.momentum} in [0, 1]")

    def _head(self) -> PrototypeHead:
        widths = (self.backbone.embed_dim, self.prototypes, self.hidden_dim, self.bottleneck_dim)
        return PrototypeHead(*widths, norm_last_layer=self.norm_last_layer)

    def _masked(self) -> MaskedPatches:
        width, ratio = self.backbone.embed_dim, self.ibot_ratio
        return MaskedPatches(width, self.prototypes, ratio, self.ibot_blocks, self.centring, self.centre_momentum)

    def _student(self) -> nn.ModuleDict:
        """What the teacher is the moving average of."""
        parts: dict[str, nn.Module] = {"backbone": self.backbone, "head": self.head}
        return nn.ModuleDict(parts if self.patch_head is None else {**parts, "patch_head": self.patch_head})

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Crop; the teacher sees the global views and the student all; compare."""
        self._progress, self._temperature = progress, self.teacher_temperature(progress)
        frozen = progress < self.freeze_last
        joined, rest = self._crops(batch)
        hidden = self._hide(joined, len(batch["image"]))
        teacher, taught = self._teach(joined)
        student, *others = self._see(self.backbone, [joined, *rest], hidden)
        features = torch.cat([student.feature, *[other.feature for other in others]])
        logits = self.head(features, frozen).unflatten(0, (-1, len(batch["image"])))
        targets = self.centre(taught, self._temperature)
        losses = {"dino": view_distillation(targets.unflatten(0, (2, -1)), logits, self.student_temp)}
        if self.training:
            self.centre.collect(taught)
        if hidden is not None:
            losses["ibot"] = self._compare_patches(teacher, student, hidden, frozen).loss
        if self.koleo:
            losses["koleo"] = torch.stack([koleo(view) for view in student.feature.chunk(2)]).sum()
        entropy = teacher_signs(targets)["teacher_entropy"]
        return {"loss": self._total(losses, frozen), **losses, "teacher_entropy": entropy}

    def _crops(self, batch: Batch) -> tuple[Batch, list[Batch]]:
        """The two global views joined, and the others joined by size."""
        views = self.views(batch)
        if len(views) < 2 or _size(views[0]) != _size(views[1]):
            sizes = [_size(view) for view in views]
            raise UserError(f"DINO needs two global views of one size before the local ones, got views of {sizes}")
        return join(views[:2]), [join(list(group)) for _, group in groupby(views[2:], _size)]

    def _hide(self, joined: Batch, images: int) -> Hidden | None:
        if self.masked is None:
            return None
        return self.masked.hide(joined, images, cast(ViT, self.backbone).embedding(joined["image"].ndim - 2).patch)

    @torch.no_grad()
    def _teach(self, joined: Batch) -> tuple[Seen, Tensor]:
        """What the teacher's backbone and its head say of the global views."""
        seen = self._see(cast(Backbone, self.teacher["backbone"]), [joined])[0]
        return seen, self.teacher["head"](seen.feature)

    def _see(self, backbone: Backbone, groups: list[Batch], hidden: Hidden | None = None) -> list[Seen]:
        """One forward pass for each size of view, or one for all; patches are hidden in the first group."""
        if not isinstance(backbone, ViT):
            return [Seen(backbone(group["image"], group.get("spacing")).pooled, None) for group in groups]
        tokens = [backbone.tokenize(group["image"], group.get("spacing")) for group in groups]
        if hidden is not None:
            tokens[0] = cast(MaskedPatches, self.masked).blank(backbone, tokens[0], groups[0]["image"], hidden)
        encoded = encode_packed(backbone, tokens) if self.packed else [backbone.encode(group) for group in tokens]
        token = self.feature == "class_token"
        return [Seen(x[:, 0] if token else backbone.pool(x), x[:, backbone.prefix :]) for x in encoded]

    def _compare_patches(self, teacher: Seen, student: Seen, hidden: Hidden, frozen: bool) -> PatchAnswers:
        head, name = (self.head, "head") if self.patch_head is None else (self.patch_head, "patch_head")
        said = head(hidden.of(cast(Tensor, student.patches)).flatten(0, 1), frozen)
        with torch.no_grad():
            taught = self.teacher[name](hidden.of(cast(Tensor, teacher.patches)).flatten(0, 1))
        shape, temperatures = hidden.patches.shape, (self.student_temp, self._temperature)
        masked = cast(MaskedPatches, self.masked)
        return masked.compare(said.unflatten(0, shape), taught.unflatten(0, shape), hidden, temperatures)

    def _total(self, losses: dict[str, Tensor], frozen: bool) -> Tensor:
        weights = {"dino": 1.0, "ibot": self.ibot, "koleo": self.koleo}
        total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        if frozen:  # several processes wait for a gradient of every parameter; this one is zero
            heads = [self.head] if self.patch_head is None else [self.head, self.patch_head]
            total = total + sum(0.0 * part.sum() for head in heads for part in head.last())
        return total

    def teacher_temperature(self, progress: float) -> float:
        """Linear from ``teacher_temp`` to ``teacher_temp_end`` over the warm-up, then constant."""
        done = 1.0 if self.teacher_temp_warmup <= 0 else progress / self.teacher_temp_warmup
        return linear(done, self.teacher_temp, self.teacher_temp_end)

    def teacher_momentum(self, progress: float) -> float:
        """Cosine from ``momentum`` to 1."""
        return cosine(progress, self.momentum, 1.0)

    def after_step(self, progress: float) -> None:
        """The teacher follows the student, backbone and heads; the centres move, by all batches of the step."""
        follow(self.teacher, self._student(), self.teacher_momentum(progress))
        self.centre.move()
        if self.masked is not None:
            self.masked.centring.move()

    @classmethod
    def choose(cls, settings: Mapping[str, Any], plan: Plan) -> dict[str, Choice]:
        """Prototypes and head by the number of images, momentum and the frozen start by the number of steps."""
        prototypes = 2 ** round(math.log2(max(plan.images / 4, 1)))
        prototypes = min(max(prototypes, 256), PROTOTYPES)
        why = f"the power of two near {plan.images} images / 4, between 256 and {PROTOTYPES}"
        if settings.get("centring") == "sinkhorn" and prototypes > 32 * 2 * plan.forward_size:
            prototypes = 2 ** int(math.log2(64 * plan.forward_size))
            why = (
                f"32 for each of the {2 * plan.forward_size} rows that Sinkhorn balances in a forward pass, as in "
                "DINOv2; more would each get nearly no row"
            )
        memory = min(max(0.01 * plan.steps, 10.0), 250.0)
        epoch = plan.images / plan.batch_size / plan.steps
        wide = plan.images >= _WIDE
        return {
            "prototypes": Choice(prototypes, why),
            "hidden_dim": Choice(HIDDEN_DIM if wide else 512, "2048 (the paper's) from 100,000 images on, 512 below"),
            "momentum": Choice(
                round(1 - 1 / memory, 4),
                f"the teacher remembers {memory:.0f} steps: 1 % of {plan.steps}, within 10 and 250 (the paper's)",
            ),
            "freeze_last": Choice(round(min(epoch, 0.1), 4), "the first epoch, at most a tenth of the training"),
            "koleo": _chosen_koleo(plan),
        }

    def vital_signs(self, batch: Batch) -> dict[str, Tensor]:
        """Entropy and use of the teacher's prototypes on the global views, and how far the training is.

        With iBOT the same of the hidden patches, under ``ibot_``, and their loss without the views that count 0: it and
        the entropies are to be read beside ``ln_prototypes``.
        """
        joined, _ = self._crops(batch)
        teacher, taught = self._teach(joined)
        signs = teacher_signs(self.centre(taught, self._temperature))
        hidden = self._hide(joined, len(batch["image"]))
        if hidden is not None:
            student = self._see(self.backbone, [joined], hidden)[0]
            signs |= self._compare_patches(teacher, student, hidden, True).signs(hidden)
        return {**signs, "progress": signs["teacher_kl"].new_tensor(self._progress)}

    def verdict(self, signs: Mapping[str, float]) -> str:
        """A uniform teacher, one prototype for all, or nothing to say."""
        most = signs["ln_prototypes"]
        if not math.isfinite(signs["teacher_entropy"]):
            return "the teacher is not finite: lower learner.lr, or clip gradients (clip: 3, clip_each: true)"
        blind = signs["teacher_information"] < INFORMED
        if blind and signs["teacher_kl"] > 0.9 * most and signs["progress"] >= _CENTRED:
            return (
                f"one prototype takes all: the teacher says the same of every image (divergence from uniform "
                f"{signs['teacher_kl']:.2f} of ln K = {most:.2f}); lower centre_momentum or learner.lr, or take "
                "centring: sinkhorn"
            )
        if blind and signs["progress"] >= SETTLED:
            return (
                f"teacher is uniform: loss stays at ln K = {most:.2f} and no image is told from another; lower "
                f"teacher_temp (now {self._temperature:.3g}) or learner.lr, lengthen the warm-up (learner.warmup), or "
                "set koleo to 0.1"
            )
        return ""

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The image and its two global views."""
        joined, _ = self._crops(batch)
        first, second = joined["image"].float().chunk(2)
        return {"input": batch["image"].float(), "global view 1": first, "global view 2": second}

    def exports(self) -> dict[str, nn.Module]:
        """The teacher's backbone, as published: it is better than the student's throughout the training."""
        return {"backbone": cast(nn.Module, self.teacher["backbone"])}

    def layers(self) -> list[list[nn.Parameter]]:
        """The backbone's; the heads count as last."""
        return self.backbone.layers()


def _chosen_koleo(plan: Plan) -> Choice:
    if plan.forward_size < 2:
        return Choice(0.0, "KoLeo keeps the images of a forward pass apart, and there is one")
    return Choice(
        0.0 if plan.images >= _WIDE else 0.1,
        "DINOv2's weight below 100,000 images: without it a short training may never leave the uniform teacher",
    )


def join(views: list[Batch]) -> Batch:
    """Views of one size as one batch, view by view."""
    names = [name for name in ("image", "spacing", "key") if all(name in view for view in views)]
    return cast(Batch, {name: torch.cat([cast("dict[str, Tensor]", view)[name] for view in views]) for name in names})


def _size(view: Batch) -> tuple[int, ...]:
    return tuple(view["image"].shape[2:])
