"""Windows: how a range of scanner values becomes [0, 1], by the three functions of the DICOM standard, and by name.

Source: DICOM PS3.3 C.11.2.1.2 (window centre and width) and C.11.2.1.3 (functions).
"""

from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import numpy as np

from ssl_med.errors import UserError

Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]


@dataclass(frozen=True)
class Window:
    """A window of the values, as a viewer shows them.

    Attributes:
        centre: value in the middle, in the units of the image (HU for CT).
        width: of the range; at least 1 for ``LINEAR``, above 0 for the others.
        function: how values become brightness.

    Raises:
        UserError: a width that the function does not allow.
    """

    centre: float
    width: float
    function: Function = "LINEAR_EXACT"

    def __post_init__(self) -> None:
        least = 1.0 if self.function == "LINEAR" else 0.0
        if self.width < least or (self.width == 0 and self.function != "LINEAR"):
            wanted = "at least 1" if self.function == "LINEAR" else "above 0"
            raise UserError(f"window width is {self.width}, {self.function} needs {wanted}")

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Values of any shape -> float32 in [0, 1]."""
        return _FUNCTIONS[self.function](values.astype(np.float64), self.centre, self.width).astype(np.float32)

    @property
    def limits(self) -> tuple[float, float]:
        """Value that becomes 0 and value that becomes 1; a sigmoid never reaches either.

        Example: ``Window(-600, 1500).limits == (-1350, 150)``.
        """
        if self.function == "SIGMOID":
            return float("-inf"), float("inf")
        if self.function == "LINEAR":
            return self.centre - 0.5 - (self.width - 1) / 2, self.centre - 0.5 + (self.width - 1) / 2
        return self.centre - self.width / 2, self.centre + self.width / 2


def linear(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1: meant for whole numbers, so the range is half a value lower and one value narrower."""
    low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    inside = (values - (centre - 0.5)) / max(width - 1, 1e-12) + 0.5  # a width of 1 has no inside, only a step
    return np.where(values <= low, 0.0, np.where(values > high, 1.0, inside))


def linear_exact(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.3.2: ``(x - c) / w + 0.5``, clipped to [0, 1]."""
    return np.clip((values - centre) / width + 0.5, 0.0, 1.0)


def sigmoid(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.3.1: ``1 / (1 + exp(-4 (x - c) / w))``."""
    return 0.5 * (1.0 + np.tanh(2.0 * (values - centre) / width))  # the same number without an overflow of exp


_FUNCTIONS = {"LINEAR": linear, "LINEAR_EXACT": linear_exact, "SIGMOID": sigmoid}

PRESETS = {
    "lung": Window(-600, 1500),
    "soft_tissue": Window(40, 400),
    "liver": Window(30, 150),
    "bone": Window(400, 1800),
    "brain": Window(40, 80),
    "stroke": Window(40, 40),
    "subdural": Window(75, 200),
    "angiography": Window(200, 600),
}
"""Windows of CT by name, in HU, as radiology workstations ship them."""


def window_of(text: str) -> Window:
    """A window by name or by its numbers.

    Args:
        text: ``lung``, ``40/400`` (centre and width), or ``40/400:SIGMOID`` with a function of the standard.

    Raises:
        UserError: no such window, no numbers, or a width or function that there is not.
    """
    if text in PRESETS:
        return PRESETS[text]
    numbers, colon, function = text.partition(":")
    centre, slash, width = numbers.partition("/")
    if not slash:
        known = f"{', '.join(PRESETS)}, or centre/width such as 40/400 or 40/400:SIGMOID"
        raise UserError(f"window {text!r} is unknown, expected one of {known}")
    if colon and function not in _FUNCTIONS:
        raise UserError(f"window {text!r}: its function is none of {', '.join(_FUNCTIONS)}")
    try:
        limits = float(centre), float(width)
    except ValueError:
        limits = (float("nan"), float("nan"))
    if not all(map(isfinite, limits)):
        raise UserError(f"window {text!r}: expected numbers for centre/width, such as -600/1500")
    chosen: Any = function or "LINEAR_EXACT"
    return Window(*limits, chosen)
