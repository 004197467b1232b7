"""Changes of whole batches on their device, where every image draws its own parameters."""

from ssl_med.transforms.base import Compose, SpatialTransform, Transform
from ssl_med.transforms.intensity import BiasField, Brightness, Contrast, Gamma, GaussianBlur, GaussianNoise
from ssl_med.transforms.spatial import Affine, Flip, RandomResizedCrop, Rotate90
from ssl_med.transforms.views import PairedViews, SingleView, Views

__all__ = [
    "Affine",
    "BiasField",
    "Brightness",
    "Compose",
    "Contrast",
    "Flip",
    "Gamma",
    "GaussianBlur",
    "GaussianNoise",
    "PairedViews",
    "RandomResizedCrop",
    "Rotate90",
    "SingleView",
    "SpatialTransform",
    "Transform",
    "Views",
]
