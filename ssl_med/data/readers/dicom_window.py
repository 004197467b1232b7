"""The window that a DICOM header asks an image to be shown in (PS3.3 C.11.2.1.2), on the values that a reader gives."""

from math import isfinite

from pydicom.dataset import Dataset

from ssl_med.data.readers.dicom_header import BROKEN

_HALF, _WHOLE = 0.5, 1.0
"""What ``LINEAR`` takes off centre and width: meant for whole numbers, it is ``LINEAR_EXACT`` of these."""


def shown_in(header: Dataset, macro: Dataset, rescale: tuple[float, ...], inverted: bool) -> str:
    """The first window of a frame, as :func:`ssl_med.data.windows.window_of` reads it.

    A header that breaks the standard here has none: it is no fault of the image.

    Args:
        header: of the file.
        macro: the frame's VOI LUT macro in an enhanced file, else the header.
        rescale: slope and intercept.
        inverted: the reader turns the stored numbers round, so that bright is high.

    Returns:
        ``centre/width`` by ``LINEAR_EXACT``, or with ``:SIGMOID``; empty where there is none.
    """
    try:
        return _shown_in(header, macro, rescale, inverted)
    except BROKEN:
        return ""


def scaled_window(window: str, factor: float) -> str:
    """The window of the same image once its values are multiplied."""
    if not window:
        return ""
    numbers, colon, function = window.partition(":")
    centre, width = (float(number) * factor for number in numbers.split("/"))
    return _text(centre, width) + colon + function


def _shown_in(header: Dataset, macro: Dataset, rescale: tuple[float, ...], inverted: bool) -> str:
    place = macro if "WindowCenter" in macro else header
    if "WindowCenter" not in place or int(header.get("SamplesPerPixel") or 1) != 1:
        return ""
    centre, width = (_first(place, tag) for tag in ("WindowCenter", "WindowWidth"))
    function = str(place.get("VOILUTFunction") or "LINEAR")
    if function == "LINEAR":
        centre, width = centre - _HALF, width - _WHOLE
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or not isfinite(centre) or not 0 < width < float("inf"):
        return ""
    if inverted:
        slope, intercept = rescale
        highest = -1 if header.PixelRepresentation else 2 ** int(header.BitsStored) - 1
        centre = slope * highest + 2 * intercept - centre
    return _text(centre, width) + (":SIGMOID" if function == "SIGMOID" else "")


def _first(dataset: Dataset, tag: str) -> float:
    value = dataset[tag].value
    return float(value if isinstance(value, int | float | str) else value[0])


def _text(centre: float, width: float) -> str:
    return f"{centre:.9g}/{width:.9g}"
