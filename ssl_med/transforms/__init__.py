"""Changes of whole batches on their device, where every image draws its own parameters."""

from ssl_med.transforms.base import Compose, SpatialTransform, Transform
from ssl_med.transforms.choice import OneOf
from ssl_med.transforms.corruption import (
    Corruption,
    Corruptions,
    IntensityCurve,
    LocalShuffle,
    Painting,
    RepeatedFlip,
)
from ssl_med.transforms.intensity import BiasField, Brightness, Contrast, Gamma, GaussianBlur, GaussianNoise
from ssl_med.transforms.intensity_colour import ColourJitter, Grayscale, Solarize
from ssl_med.transforms.intensity_scan import GibbsNoise, HistogramShift, Sharpen
from ssl_med.transforms.multicrop import MultiCrop
from ssl_med.transforms.spatial import Affine, Flip, RandomResizedCrop, Rotate90
from ssl_med.transforms.views import PairedViews, SingleView, Views

__all__ = [
    "Affine",
    "BiasField",
    "Brightness",
    "ColourJitter",
    "Compose",
    "Contrast",
    "Corruption",
    "Corruptions",
    "Flip",
    "Gamma",
    "GaussianBlur",
    "GaussianNoise",
    "GibbsNoise",
    "Grayscale",
    "HistogramShift",
    "IntensityCurve",
    "LocalShuffle",
    "MultiCrop",
    "OneOf",
    "Painting",
    "PairedViews",
    "RandomResizedCrop",
    "RepeatedFlip",
    "Rotate90",
    "Sharpen",
    "SingleView",
    "Solarize",
    "SpatialTransform",
    "Transform",
    "Views",
]
