"""What can be trained: a task turns a batch into losses and knows no trainer, logger, file or device."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor, nn

from ssl_med.schedules import warmup_cosine
from ssl_med.types import Batch, Losses


@dataclass(frozen=True)
class Plan:
    """What a training will be, known before it begins.

    Attributes:
        images: in the training split.
        batch_size: samples per optimiser step, over all processes.
        steps: optimiser steps.
        forward_size: samples of one forward pass, over all processes: what losses over a batch see at once. Smaller
            than ``batch_size`` where gradients are accumulated; the same if 0.
        targets: what is to be learned of each training image: classes (n,) and findings (n, k), -1 where unknown, or
            numbers (n,), NaN where unknown. None for masks, boxes and pretraining.
    """

    images: int
    batch_size: int
    steps: int
    forward_size: int = 0
    targets: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not self.forward_size:
            object.__setattr__(self, "forward_size", self.batch_size)


class Choice(NamedTuple):
    """A value that was chosen for a setting left open, and why, in words."""

    value: Any
    reason: str


class Rates(NamedTuple):
    """Factors on the peak learning rate at some moment of the training.

    Attributes:
        trunk: of the parameters in :meth:`Task.layers`; 0 holds them still.
        head: of all others.
    """

    trunk: float
    head: float


class Task(nn.Module, ABC):
    """Anything that can be trained, for pretraining and for fine-tuning alike.

    Attributes:
        remembered: names of attributes beside the weights, numbers, on which later verdicts depend: checkpoints keep
            them.
    """

    remembered: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, batch: Batch, progress: float) -> Losses:
        """Losses of a batch; ``loss`` is minimised, every entry is logged.

        Args:
            batch: on the device of the parameters.
            progress: share of the training done, 0 to 1; every schedule is a function of it.
        """

    def after_step(self, progress: float) -> None:
        """After each optimiser step: EMA teachers, queues. Nothing by default."""

    @classmethod
    def choose(cls, settings: Mapping[str, Any], plan: Plan) -> dict[str, Choice]:
        """Values for settings that were left at None and depend on the data and the length of the training.

        Args:
            settings: arguments of the constructor, resolved.
            plan: of the training.
        """
        return {}

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Images a person should look at, name -> (b, c, \\*space), in the order they should be shown."""
        return {}

    def layers(self) -> list[list[nn.Parameter]]:
        """Groups of parameters from input to output for layer-wise rates; what is in no group counts as last."""
        return []

    def rates(self, progress: float, warmup: float) -> Rates:
        """How large the learning rates are: warm-up and cosine decay for all, unless a task says otherwise.

        Args:
            progress: share of the training done, 0 to 1.
            warmup: share of the training that warms up.
        """
        return Rates(*[warmup_cosine(progress, warmup)] * 2)


class PretextTask(Task):
    """A task that needs no labels and leaves parts worth keeping."""

    def vital_signs(self, batch: Batch) -> dict[str, Tensor]:
        """Numbers that tell a living task from a collapsed one, beside those of the features; see ``Health``.

        Args:
            batch: a fixed batch; called in evaluation mode without gradients.
        """
        return {}

    def verdict(self, signs: Mapping[str, float]) -> str:
        """What is wrong and what to do, in one sentence, judged by the task's own signs; empty if nothing is.

        Args:
            signs: :meth:`vital_signs` as numbers, with ``feature_spread`` and ``effective_rank`` of the backbone.
        """
        return ""

    @abstractmethod
    def exports(self) -> dict[str, nn.Module]:
        """The parts to keep, by name; ``backbone`` must be among them."""


class SupervisedTask(Task):
    """A task with targets: it also predicts, and knows how good a prediction is.

    Attributes:
        metric: name of the score that counts, higher is better.
        answers: what the numbers of one image are, where a prediction is a row of them: the field of an export's
            ``input`` that names them, or ``value``.
    """

    metric: str
    answers: Literal["class_names", "finding_names", "value"] = "class_names"

    @classmethod
    def from_scratch(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of the same training for a backbone with random weights: nothing that only suits good weights.

        Args:
            settings: arguments of the constructor, as they stand in a config.
        """
        return dict(settings)

    def merged(self) -> "SupervisedTask":
        """The task without what only training needed; itself if there is nothing of the kind."""
        return self

    @abstractmethod
    def predict(self, batch: Batch) -> Tensor:
        """Predictions for whole images of any size: probabilities or numbers (b, k), or labels (b, 1, \\*space)."""

    @abstractmethod
    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What there is to know of each case, name -> (b, ...)."""

    @abstractmethod
    def summarise(self, cases: dict[str, Tensor]) -> dict[str, float]:
        """Scores of a set of cases, :attr:`metric` among them."""
