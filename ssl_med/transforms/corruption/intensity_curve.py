"""Non-linear intensity change of Models Genesis."""

from torch import Tensor

from ssl_med.ops.curves import apply_tables_, bezier_tables
from ssl_med.ops.random import Draws
from ssl_med.ops.unit import UnitRange, check_unit, value_range
from ssl_med.transforms.base import Params, check_range
from ssl_med.transforms.corruption.base import Corruption


class IntensityCurve(Corruption):
    """Sends all grey values through one random monotone curve, inverted for half of the images (arXiv 1908.06912).

    The curve is a cubic Bezier from (0, 0) to (1, 1) with two control points uniform in the unit square. On CT it
    changes what Hounsfield units mean: made for tasks that predict the original, not to augment labelled CT.

    Args:
        probability: share of the images that are changed.
        inverted: share of the curves that fall.
        unit: which values stand for 0 and 1; a curve on [0, 1] that is given z-scores clamps two thirds of them.
    """

    def __init__(self, probability: float = 0.9, inverted: float = 0.5, unit: UnitRange = "auto") -> None:
        super().__init__(probability)
        check_range("IntensityCurve: inverted", (inverted, inverted), 0.0, 1.0)
        check_unit("IntensityCurve: unit", unit)
        self.inverted = inverted
        self.unit: UnitRange = unit

    def sample(self, image: Tensor, draws: Draws) -> Params:
        """Control points (b, 2, 2) and whether the curve falls (b,)."""
        numbers = draws.uniform(5)
        return {"points": numbers[:, :4].reshape(-1, 2, 2), "falling": numbers[:, 4] < self.inverted}

    def corrupt_(self, volumes: Tensor, params: Params) -> Tensor:
        """The image with its grey values bent; what lies outside the range is clamped to it."""
        tables = bezier_tables(params["points"], params["falling"])
        low, span = value_range(volumes, self.unit)
        return apply_tables_(volumes, tables, low, span, params["chosen"])
