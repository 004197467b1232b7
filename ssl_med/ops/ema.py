"""A teacher that follows a student: the exponential moving average of its weights."""

import copy
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Buffers of batch norms, which a teacher in training mode fills from what it sees itself."""


def teacher_of(student: Module) -> Module:
    """A copy with the student's weights that gradients never reach, without stochastic depth and dropout."""
    teacher = copy.deepcopy(student)
    for module in teacher.modules():
        for name in ("drop_prob", "p"):  # of DropPath and Dropout; set, since a teacher follows its task into training
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return cast(Module, teacher.requires_grad_(False))


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """``teacher = momentum * teacher + (1 - momentum) * student``; buffers are copied, but not batch statistics.

    The student's running moments belong to the student's weights: a teacher runs in training mode and keeps its own.
    Call it after the optimiser's step (Mean Teacher, arXiv 1703.01780).

    Args:
        teacher, student: of the same structure.
        momentum: 1 leaves the teacher as it is.
    """
    pairs = list(zip(teacher.parameters(), student.parameters(), strict=True))
    old: list[Tensor] = [t for t, _ in pairs]
    new: list[Tensor] = [s.detach() for _, s in pairs]
    torch._foreach_lerp_(old, new, 1.0 - momentum)
    for (name, held), current in zip(teacher.named_buffers(), student.buffers(), strict=True):
        if name.rpartition(".")[2] not in STATISTICS:
            held.copy_(cast(Tensor, current))
