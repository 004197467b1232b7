"""From scanner units to what a network sees: one window and one scale per channel, chosen by modality."""

from dataclasses import dataclass

import numpy as np

from ssl_med.data.windows import Window, window_of
from ssl_med.errors import UserError

Policy = str
"""Name of a rule of :func:`scale_of`; :func:`check_policy` says whether there is such a rule."""

POLICIES = ("auto", "ct", "foreground", "unit", "suv", "voi")
_PROJECTIONS = ("CR", "DX", "MG", "PX", "IO", "XA", "RF", "RG", "XR")
_HIGHEST_SUV = 100.0
"""No tissue has a 99.5th percentile above this in SUV; in Bq/ml every scan has."""

NO_WINDOW = (
    "no window in the header (data.intensity: voi): use another rule, such as auto; stores of earlier versions know of "
    "no windows, so prepare into a new folder"
)


@dataclass(frozen=True)
class Statistics:
    """What must be known of an image to scale it, from all its voxels.

    Attributes:
        low: 0.5th percentile of all voxels.
        high: 99.5th percentile of the foreground, the voxels above the mean of the image.
        mean, sd: of the foreground after clipping to [low, high].
        minimum, maximum: of all voxels.
    """

    low: float
    high: float
    mean: float
    sd: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class Scale:
    """``(clip(voxel, low, high) - shift) * factor``, one channel out for each channel in.

    Attributes:
        low, high, shift, factor: see the formula.
        sigmoid: the logistic function of that, ``1 / (1 + exp(-x))``, as the last step.
    """

    low: float
    high: float
    shift: float
    factor: float
    sigmoid: bool = False

    def __call__(self, voxels: np.ndarray) -> np.ndarray:
        """Scaled float32 voxels, any shape."""
        scaled = np.clip(voxels.astype(np.float32), np.float32(self.low), np.float32(self.high))
        scaled -= np.float32(self.shift)
        scaled *= np.float32(self.factor)
        if self.sigmoid:
            logistic(scaled)
        return scaled

    @property
    def parts(self) -> tuple["Scale", ...]:
        """The scales that are applied side by side: itself."""
        return (self,)

    @property
    def background(self) -> float:
        """The scaled value of ``low``: what air looks like, and so what lies beyond the image's border."""
        return 0.0 if self.sigmoid else self.straight_background

    @property
    def straight_background(self) -> float:
        """The same before the sigmoid, where there is one."""
        return float((np.float32(self.low) - np.float32(self.shift)) * np.float32(self.factor))


@dataclass(frozen=True)
class Windows:
    """Several scales of the same voxels side by side, as channels.

    Attributes:
        parts: one scale for each channel out, all with the same background.
    """

    parts: tuple[Scale, ...]

    def __call__(self, voxels: np.ndarray) -> np.ndarray:
        """(c, \\*space) -> (c * parts, \\*space) float32; all windows of the first channel come first."""
        seen = np.stack([part(voxels) for part in self.parts], axis=1)
        return seen.reshape(-1, *voxels.shape[1:])

    @property
    def background(self) -> float:
        """The scaled value of air, the same in every window."""
        return self.parts[0].background


def logistic(scaled: np.ndarray) -> None:
    """``1 / (1 + exp(-x))`` in place, float32 of any shape."""
    scaled *= np.float32(0.5)
    np.tanh(scaled, out=scaled)  # the same number without an overflow of exp
    scaled += np.float32(1)
    scaled *= np.float32(0.5)


def statistics(array: np.ndarray) -> Statistics:
    """Measure an image (c, \\*space); above a million voxels the percentiles come from an even sample of them."""
    voxels = array.reshape(-1)
    sample = voxels[:: max(1, len(voxels) // 1_000_000)].astype(np.float64)
    foreground = sample[sample > sample.mean()]
    if not len(foreground):
        foreground = sample
    low, high = float(np.percentile(sample, 0.5)), float(np.percentile(foreground, 99.5))
    inside = np.clip(foreground, low, high)
    return Statistics(low, high, float(inside.mean()), float(inside.std()), float(voxels.min()), float(voxels.max()))


def check_policy(policy: Policy) -> None:
    """Refuse a rule that does not exist.

    Raises:
        UserError: with all the rules there are.
    """
    if policy in POLICIES:
        return
    kind, _, names = policy.partition(":")
    if kind not in ("window", "windows"):
        rules = f"{', '.join(POLICIES)}, window:lung, window:40/400 or windows:lung,soft_tissue,bone"
        raise UserError(f"intensity {policy!r} is no rule, expected one of {rules}")
    windows = [_scale_in(window_of(name)) for name in _window_names(policy)]
    if kind == "window" and len(windows) != 1:
        raise UserError(
            f"intensity {policy!r} names {len(windows)} windows, expected 1: windows:{names} makes channels"
        )


def channels_of(policy: Policy, channels: int) -> int:
    """Channels that a network sees, where an image has ``channels``.

    Example: ``channels_of("windows:lung,soft_tissue,bone", 1) == 3``.
    """
    return channels * max(1, len(_window_names(policy)))


def scale_of(policy: Policy, modality: str, dtype: str, found: Statistics, window: str = "") -> Scale | Windows:
    """The scale of one image.

    Args:
        policy: one of

            - ``ct``: HU are absolute, [-1000, 1000] to [0, 1] (Models Genesis, Swin UNETR).
            - ``foreground``: clip to [low, high], then zero mean and unit variance over the foreground (MR and all that
              has no absolute units).
            - ``unit``: 8-bit images by 1/255, others from [low, high] to [0, 1] (X-ray, ultrasound, photographs).
            - ``suv``: PET in standardised uptake values, [0, 20] to [0, 1].
            - ``voi``: the window that the header of each DICOM image asks to be shown in, to [0, 1].
            - ``window:lung``: one of :data:`ssl_med.data.windows.PRESETS`, to [0, 1].
            - ``window:40/400``: centre and width, to [0, 1] by DICOM's ``LINEAR_EXACT``; ``window:40/400:SIGMOID`` (or
              ``:LINEAR``) by another of its functions, see :mod:`ssl_med.data.windows`.
            - ``windows:lung,soft_tissue,40/80``: several, each as a channel.
            - ``auto``: by modality and type, see :func:`rule_for`.
        modality: of the image.
        dtype: of the stored voxels.
        found: its statistics.
        window: what its header asks for.

    Raises:
        UserError: no such rule, or ``voi`` for an image without a window.
    """
    check_policy(policy)
    if policy == "auto":
        policy = rule_for(modality, dtype, found)
    if names := _window_names(policy):
        windows = tuple(_scale_in(window_of(name)) for name in names)
        return windows[0] if len(windows) == 1 else Windows(windows)
    if policy == "voi":
        if not window:
            raise UserError(NO_WINDOW)
        return _scale_in(window_of(window))
    if policy == "ct":
        return Scale(-1000.0, 1000.0, -1000.0, 1 / 2000)
    if policy == "suv":
        return _between(0.0, 20.0)
    if policy == "unit":
        return _between(0.0, 255.0) if dtype == "uint8" else _between(found.low, found.high)
    return Scale(found.low, found.high, found.mean, 1 / max(found.sd, 1e-6))


def rule_for(modality: str, dtype: str, found: Statistics) -> Policy:
    """What ``auto`` means for an image.

    CT gets ``ct``; 8-bit images and projections by X-ray ``unit``; PET ``suv`` where its values can be SUV, which those
    in Bq/ml cannot; the rest ``foreground``.
    """
    if modality == "CT":
        return "ct"
    if dtype == "uint8" or modality in _PROJECTIONS:
        return "unit"
    if modality == "PT" and found.high <= _HIGHEST_SUV:
        return "suv"
    return "foreground"


def _between(low: float, high: float) -> Scale:
    return Scale(low, high, low, 1 / max(high - low, 1e-6))


def _scale_in(window: Window) -> Scale:
    """A window as a scale that gives the same numbers.

    Raises:
        UserError: a LINEAR window of width 1 is a step.
    """
    if window.function == "SIGMOID":
        reach = 25 * window.width  # beyond it float32 knows no more than 0 and 1
        return Scale(window.centre - reach, window.centre + reach, window.centre, 4 / window.width, sigmoid=True)
    low, high = window.limits
    if not high > low:
        raise UserError(f"window {window.centre:g}/{window.width:g}:LINEAR is a step, its width must be above 1")
    return Scale(low, high, low, 1 / (high - low))


def _window_names(policy: Policy) -> list[str]:
    kind, _, names = policy.partition(":")
    return [name.strip() for name in names.split(",")] if kind in ("window", "windows") else []
