"""Self-supervised pretraining and few-label fine-tuning for medical images, in 2D and 3D.

Names are resolved when they are used: ``import ssl_med`` loads neither torch nor Lightning. It is refused beside
versions of them that must not run.
"""

import importlib
from typing import Any

from ssl_med.denied import refuse_denied

refuse_denied()

__version__ = "0.1.0"

_VERBS = (
    "card",
    "curve",
    "demo",
    "doctor",
    "embed",
    "export",
    "finetune",
    "inspect",
    "plan",
    "predict",
    "prepare",
    "pretrain",
    "probe",
    "report",
)
_PLACES = {
    **{name: f"ssl_med.verbs.{name}" for name in _VERBS},
    "Batch": "ssl_med.types",
    "Features": "ssl_med.types",
    "Store": "ssl_med.data.store",
    "StoreData": "ssl_med.data.module",
    "UserError": "ssl_med.errors",
    "build": "ssl_med.recipe",
    "load_backbone": "ssl_med.exports",
    "load_task": "ssl_med.exports",
    "load_weights": "ssl_med.weights",
    "pull": "ssl_med.verbs.hub",
    "push": "ssl_med.verbs.hub",
    "recipe": "ssl_med.recipe",
}
__all__ = sorted(_PLACES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'ssl_med' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
