"""Which kind of images a store keeps, where a folder holds several: rank and channels, by what most images are.

Grey pictures are often saved as RGB with three equal channels. Such an image goes with either kind: it is kept with one
channel in a store of grey images, and as it is in a store of colour images.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from ssl_med.data.journal import Outcome
from ssl_med.data.record import Image

Kind = tuple[int, int]
"""Axes of space, and channels; (0, 0) where there is no image."""


def is_grey(image: Image) -> bool:
    """Three channels that are equal."""
    array = image.array
    return len(array) == 3 and bool((array[1:] == array[:1]).all())


def as_grey(image: Image) -> Image:
    """The first of equal channels."""
    return replace(image, array=image.array[:1])


def kind_of(outcome: Outcome) -> Kind:
    """Of what is stored of an image; (0, 0) for nothing."""
    row = outcome.row
    return (0, 0) if row is None else (len(row.shape) - 1, row.shape[0])


def most_common(outcomes: Iterable[Outcome], rank: int | None = None) -> Kind:
    """The kind of most images, whatever their order.

    What can be either counts for both; where that decides nothing, the kind that more were saved as is taken, then the
    one of fewer axes and channels.

    Args:
        outcomes: of all images.
        rank: keep images of so many axes only.
    """
    saved, could_be = Counter[Kind](), Counter[Kind]()
    for outcome in outcomes:
        axes, channels = kind_of(outcome)
        if axes == 0 or rank not in (None, axes):
            continue
        saved[axes, 3 if outcome.grey else channels] += 1
        could_be.update([(axes, 1), (axes, 3)] if outcome.grey else [(axes, channels)])
    return min(could_be, key=lambda kind: (-could_be[kind], -saved[kind], kind), default=(0, 0))


def to_turn(outcome: Outcome, kind: Kind) -> bool:
    """The image is stored as grey and wanted in colour, or the other way round."""
    axes, channels = kind_of(outcome)
    return outcome.grey and axes == kind[0] and channels != kind[1] and kind[1] in (1, 3)
