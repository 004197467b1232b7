"""What stands out in an image, without labels: maps (b, 1, \\*space) in [0, 1], batched, for images and volumes."""

from ssl_med.ops.saliency.fine_grained import SURROUNDS, fine_grained, local_contrast
from ssl_med.ops.saliency.local import foreground, gradient_magnitude, local_entropy
from ssl_med.ops.saliency.scale import as_bytes, grey, unit
from ssl_med.ops.saliency.spectral import spectral_residual

__all__ = [
    "SURROUNDS",
    "as_bytes",
    "fine_grained",
    "foreground",
    "gradient_magnitude",
    "grey",
    "local_contrast",
    "local_entropy",
    "spectral_residual",
    "unit",
]
