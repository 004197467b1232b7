"""How to tune: which weights move at which moment of a fine-tuning, and how fast. Named presets for the usual ways."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from torch import nn

from finetune.lora import Adapter, LoRALinear, wrap
from ssl_med.backbones import Backbone
from ssl_med.schedules import linear, warmup_cosine
from ssl_med.tasks import Rates

Preset = Literal["full", "frozen", "linear_then_full", "sawtooth", "lora", "adapters"]


class Tuning(ABC):
    """A way to tune a backbone with a head on it; everything is a function of progress, so that a run resumes exactly.

    Backbones that hold still for a time get no backward pass and stay in evaluation mode. On several processes such a
    training needs ``trainer.strategy: ddp_find_unused_parameters_true``.
    """

    @abstractmethod
    def rates(self, progress: float, warmup: float) -> Rates:
        """Factors on the learning rate, see :meth:`ssl_med.tasks.Task.rates`."""

    def prepare(self, backbone: Backbone) -> None:
        """Change a backbone, once, before anything is trained; by default all of it is to be trained."""
        backbone.requires_grad_(True)

    def trains(self, progress: float) -> bool:
        """Whether gradients flow through the backbone at this moment."""
        return True

    def layers(self, backbone: Backbone) -> Sequence[list[nn.Parameter]]:
        """The trunk, from input to output."""
        return backbone.layers()

    def from_scratch(self) -> "Tuning":
        """The same schedule for random weights, which are worth no protection."""
        return self


class Full(Tuning):
    """All weights from the first step, after a common warm-up; ``learner.layer_decay`` slows earlier layers down."""

    def rates(self, progress: float, warmup: float) -> Rates:
        """One schedule for all."""
        return Rates(*[warmup_cosine(progress, warmup)] * 2)


class Frozen(Tuning):
    """The head alone: what the features are worth as they are. Random weights are its control."""

    def prepare(self, backbone: Backbone) -> None:
        """No gradients, ever."""
        backbone.requires_grad_(False)

    def trains(self, progress: float) -> bool:
        """Never."""
        return False

    def rates(self, progress: float, warmup: float) -> Rates:
        """The head's."""
        return Rates(0.0, warmup_cosine(progress, warmup))


class LinearThenFull(Tuning):
    """The head alone first, then everything with a warm-up of its own (LP-FT, Kumar et al., arXiv 2202.10054).

    A random head sends random gradients into the backbone; a trained one does not.

    Args:
        share: of the training that belongs to the head alone.
        freeze: hold the backbone still meanwhile; False keeps both rises and falls of the rate but trains everything,
            which is the same schedule for random weights.
    """

    def __init__(self, share: float = 0.3, freeze: bool = True) -> None:
        self.share, self.freeze = share, freeze

    def trains(self, progress: float) -> bool:
        """Once the head has had its share."""
        return progress >= self.share or not self.freeze

    def rates(self, progress: float, warmup: float) -> Rates:
        """Two warm-ups and two cosine falls."""
        first, rest = progress < self.share, 1 - self.share
        part = progress / self.share if first else (progress - self.share) / rest
        rate = warmup_cosine(part, warmup)
        return Rates(rate if self.trains(progress) else 0.0, rate)

    def from_scratch(self) -> "Tuning":
        """The same two parts, with everything trained in both."""
        return LinearThenFull(self.share, freeze=False)


class Sawtooth(Tuning):
    """Two teeth: the rate rises for head or decoder alone, falls back, rises for all, then decays.

    For segmentation with CNNs: the best schedule there in OpenMind (arXiv 2412.17041), where plain warm-up (``full``)
    was best for ViTs. Theirs is a linear rise for the decoder alone, another one for all, then a polynomial decay by
    epochs; here the decay is a cosine.

    Args:
        ramp: share of the training of each of the two rises; it takes the place of ``learner.warmup``.
        freeze: hold the backbone still during the first rise; see :class:`LinearThenFull`.
    """

    def __init__(self, ramp: float = 0.05, freeze: bool = True) -> None:
        self.ramp, self.freeze = ramp, freeze

    def trains(self, progress: float) -> bool:
        """From the second rise on."""
        return progress >= self.ramp or not self.freeze

    def rates(self, progress: float, warmup: float) -> Rates:
        """Two rises and one cosine fall."""
        if progress < self.ramp:
            rate = linear(progress / self.ramp, 0.0, 1.0)
        else:
            rate = warmup_cosine((progress - self.ramp) / (1 - self.ramp), self.ramp / (1 - self.ramp))
        return Rates(rate if self.trains(progress) else 0.0, rate)

    def from_scratch(self) -> "Tuning":
        """The same two teeth, with everything trained in both."""
        return Sawtooth(self.ramp, freeze=False)


class Added(Full):
    """Small new parts inside a frozen backbone; random weights are trained in full, as frozen they are no control."""

    def layers(self, backbone: Backbone) -> Sequence[list[nn.Parameter]]:
        """None: all that is trained is new, at whatever depth."""
        return []

    def from_scratch(self) -> "Tuning":
        """All weights."""
        return Full()


class LoRA(Added):
    """Low-rank changes of the attention's matrices, all else frozen (Hu et al., arXiv 2106.09685).

    Added to the weights at export, so that the exported task is an ordinary one.

    Args:
        rank: of the changes.
        alpha: the change is multiplied by alpha / rank.
    """

    def __init__(self, rank: int = 8, alpha: float = 16.0) -> None:
        self.rank, self.alpha = rank, alpha

    def prepare(self, backbone: Backbone) -> None:
        """Freeze, then put the changes beside queries, keys, values and the projection behind."""
        backbone.requires_grad_(False)
        wrap(backbone, ("qkv", "proj"), lambda layer: LoRALinear(layer, self.rank, self.alpha))


class Adapters(Added):
    """A small bottleneck behind each attention, all else frozen (Houlsby et al., arXiv 1902.00751, its first half).

    A bottleneck is not linear, so unlike LoRA it stays in the exported task.

    Args:
        width: of the bottleneck.
    """

    def __init__(self, width: int = 32) -> None:
        self.width = width

    def prepare(self, backbone: Backbone) -> None:
        """Freeze, then put the bottlenecks in."""
        backbone.requires_grad_(False)
        wrap(backbone, ("proj",), lambda layer: Adapter(layer, self.width))


_PRESETS: dict[str, type[Tuning]] = {
    "full": Full,
    "frozen": Frozen,
    "linear_then_full": LinearThenFull,
    "sawtooth": Sawtooth,
    "lora": LoRA,
    "adapters": Adapters,
}


def as_tuning(tuning: Preset | Tuning) -> Tuning:
    """The tuning that a name stands for, with its defaults; a tuning as it is."""
    return _PRESETS[tuning]() if isinstance(tuning, str) else tuning
