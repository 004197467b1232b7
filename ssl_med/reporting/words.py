"""Numbers, times and sizes as a person writes them."""

import math
from datetime import datetime
from typing import Any

from ssl_med.reporting.metrics import as_number


def number(value: Any) -> str:
    """A number with four significant digits and separated thousands; text as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if float(value).is_integer() and abs(value) < 1e12:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.4g}"


def score(value: Any) -> str:
    """A score with three decimals, so that numbers in one column can be compared."""
    finite = as_number(value)
    return "not a number" if finite is None else f"{finite:.3f}"


def signed(value: Any) -> str:
    """A difference with its sign."""
    finite = as_number(value)
    return "not a number" if finite is None else f"{finite:+.3f}".replace("-", "\N{MINUS SIGN}")


def amount(value: Any) -> str:
    """A large count in short: 22.1 million."""
    finite = as_number(value)
    if finite is None:
        return str(value)
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if finite >= size:
            return f"{finite / size:.1f} {name}"
    return number(finite)


def duration(seconds: Any) -> str:
    """Seconds as hours, minutes and seconds, the two largest of them."""
    finite = as_number(seconds)
    if finite is None or finite < 0:
        return "not recorded"
    if finite < 60:
        return f"{finite:.1f} s"
    whole = round(finite)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def file_size(size: int) -> str:
    """Bytes in decimal units."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"


def moment(value: Any) -> str:
    """An ISO time as day and minute; anything else as it stands."""
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        return str(value)
    return f"{time:%Y-%m-%d %H:%M}" + (f" {time.tzname()}" if time.tzinfo else "")


def class_name(dotted: Any) -> str:
    """The last part of a dotted name."""
    return str(dotted).rsplit(".", 1)[-1]
