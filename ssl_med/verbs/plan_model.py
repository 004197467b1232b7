"""A pretraining on paper: parameters, FLOPs and bytes of activations of a transformer task on crops of one size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ssl_med.errors import UserError
from ssl_med.presets import Stack, linear_flops, linear_parameters, training_flops, visible_count


@dataclass(frozen=True)
class Views:
    """What a task computes for one sample.

    Attributes:
        student: (number of crops, their edge over ``crop``) that run forward and backward.
        teacher: the same for crops that run through the EMA teacher, forward only; empty without a teacher.
        region: edge of the region that is read for them, over ``crop``.
        masked: the encoder sees the visible patches of one crop, and a decoder fills in the rest.
    """

    student: tuple[tuple[int, float], ...]
    teacher: tuple[tuple[int, float], ...] = ()
    region: float = 1.0
    masked: bool = False


TASKS = {
    "mae": Views(student=((1, 1.0),), masked=True),  # arXiv 2111.06377
    "simclr": Views(student=((2, 1.0),), region=4 / 3),  # arXiv 2002.05709
    "byol": Views(student=((2, 1.0),), teacher=((2, 1.0),), region=4 / 3),  # arXiv 2006.07733
    "dino": Views(student=((2, 1.0), (8, 0.5)), teacher=((2, 1.0),), region=4 / 3),  # arXiv 2104.14294
}


def require(condition: bool, sentence: str) -> None:
    """Refuse a plan that cannot be made, with a sentence that says why."""
    if not condition:
        raise UserError(sentence)


def per_axis(name: str, value: Any, rank: int) -> tuple[int, ...]:
    """One number for each axis, from these or from one for all; ``name`` is what an error calls them."""
    sizes = (value,) * rank if isinstance(value, int) else tuple(value)
    require(len(sizes) == rank, f"{name} {sizes} needs one number for each of spatial_dims={rank} axes, or one for all")
    require(min(sizes) > 0, f"{name} must be above 0 along every axis, got {sizes}")
    return sizes


def token_count(space: Sequence[int], patch: Sequence[int], what: str = "crop") -> int:
    """Patches in a crop.

    Raises:
        UserError: the crop is not divisible by the patch; the sentence names the axis.
    """
    for axis, size, step in zip("tzyx"[-len(space) :], space, patch, strict=True):
        where = f"{what} {tuple(space)} is not divisible by patch {tuple(patch)} along axis {axis}"
        remedy = f"choose a multiple of {step}, e.g. {max(1, size // step) * step}"
        require(
            size >= step and size % step == 0, f"{where}: {size} = {size // step} x {step} + {size % step}; {remedy}"
        )
    return math.prod(size // step for size, step in zip(space, patch, strict=True))


@dataclass(frozen=True)
class Model:
    """An encoder and, for masked tasks, a decoder, on crops of one size.

    Attributes:
        encoder, decoder: their blocks; ``decoder`` is None where the task has none.
        patch: voxels of a patch along each axis.
        channels: channels of the image.
        class_token: the encoder (and the decoder with it) has one.
    """

    encoder: Stack
    decoder: Stack | None
    patch: tuple[int, ...]
    channels: int
    class_token: bool

    @property
    def patch_values(self) -> int:
        """Numbers in one patch."""
        return math.prod(self.patch) * self.channels

    def encoder_parameters(self) -> int:
        """Patch embedding, class token, blocks and the last norm; positions are computed, not learned."""
        d = self.encoder.width
        return linear_parameters(self.patch_values, d) + d * self.class_token + self.encoder.parameters() + 2 * d

    def decoder_parameters(self) -> int:
        """Projection from the encoder, mask token, blocks, last norm and the layer that predicts voxels."""
        if self.decoder is None:
            return 0
        d = self.decoder.width
        ends = linear_parameters(self.encoder.width, d) + linear_parameters(d, self.patch_values)
        return ends + d + self.decoder.parameters() + 2 * d

    def parameters(self) -> int:
        """All that is trained."""
        return self.encoder_parameters() + self.decoder_parameters()

    def flops(self, tokens: int, visible: int) -> int:
        """One forward pass over one crop: all patches are embedded, ``visible`` encoded, the rest predicted."""
        extra = int(self.class_token)
        total = linear_flops(self.patch_values, self.encoder.width, tokens)
        total += self.encoder.flops(visible + extra)
        if self.decoder is not None:
            total += linear_flops(self.encoder.width, self.decoder.width, visible + extra)
            total += self.decoder.flops(tokens + extra)
            total += linear_flops(self.decoder.width, self.patch_values, tokens - visible)
        return total

    def activations(self, tokens: int, visible: int, checkpointed: bool) -> float:
        """Bytes kept for the backward pass over one crop.

        Beside the blocks: their residual stream, which autocast keeps in fp32 (4 bytes a number), the patches in bf16,
        and where voxels are predicted, about 22 bytes for each: target, prediction and error in fp32. Measured with
        saved-tensor hooks, see ``benchmarks/plan_check.py``.
        """
        extra = int(self.class_token)
        kept = self.patch_values * 2.0 * tokens + _kept(self.encoder, visible + extra, checkpointed)
        if self.decoder is not None:
            kept += _kept(self.decoder, tokens + extra, checkpointed) + 22.0 * self.patch_values * (tokens - visible)
        return kept


def _kept(stack: Stack, tokens: int, checkpointed: bool) -> float:
    """Bytes that blocks keep under autocast; recomputed ones keep their fp32 input, and the one at work all it has."""
    residual = 4.0 * stack.width * tokens
    if checkpointed:
        return (
            stack.checkpointed_bytes(tokens) + residual * (stack.depth + 1) - 2.0 * stack.depth * stack.width * tokens
        )
    return stack.activation_bytes(tokens) + residual * stack.depth


class Work(NamedTuple):
    """What one sample takes: training FLOPs, and bytes of activations, plain and with full checkpointing."""

    flops: float
    activations: float
    checkpointed: float


@dataclass(frozen=True)
class Job:
    """A task that trains a model on crops of one size; ``mask_ratio`` counts for masked tasks only."""

    model: Model
    views: Views
    crop: tuple[int, ...]
    mask_ratio: float

    def counts(self, edge: float) -> tuple[int, int]:
        """Tokens of a view whose edge is ``edge`` times the crop's, and how many of them the encoder sees."""
        space = tuple(round(size * edge) for size in self.crop)
        tokens = token_count(space, self.model.patch, "crop" if edge == 1 else f"the view made of crop {self.crop},")
        return tokens, visible_count(tokens, self.mask_ratio) if self.views.masked else tokens

    def work(self) -> Work:
        """Sum over the views of one sample; the teacher keeps nothing for backward."""
        model, student = self.model, [(number, *self.counts(edge)) for number, edge in self.views.student]
        forward = sum(number * model.flops(*counts) for number, *counts in student)
        teacher = sum(number * model.flops(*self.counts(edge)) for number, edge in self.views.teacher)
        plain = sum(number * model.activations(*counts, checkpointed=False) for number, *counts in student)
        saved = sum(number * model.activations(*counts, checkpointed=True) for number, *counts in student)
        return Work(training_flops(forward, teacher), plain, saved)

    def region(self) -> float:
        """Numbers that are read for one sample."""
        return math.prod(size * self.views.region for size in self.crop) * self.model.channels
