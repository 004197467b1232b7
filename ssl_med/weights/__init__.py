"""Weights from elsewhere into our backbones: every source read safely, every tensor accounted for."""

from ssl_med.weights.audit import Audit, Row
from ssl_med.weights.load import initialised, initialised_vit, load_weights
from ssl_med.weights.sources import Source, read_source
from ssl_med.weights.start import Start, Started, as_start, start_from

__all__ = [
    "Audit",
    "Row",
    "Source",
    "Start",
    "Started",
    "as_start",
    "initialised",
    "initialised_vit",
    "load_weights",
    "read_source",
    "start_from",
]
