"""The corruptions of Models Genesis (arXiv 1908.06912), batched, on the device, for images and volumes of any size.

Written from the published description; nothing was taken from the authors' code, whose licence is non-commercial.
"""

from ssl_med.transforms.corruption.base import Corruption, Corruptions
from ssl_med.transforms.corruption.intensity_curve import IntensityCurve
from ssl_med.transforms.corruption.local_shuffle import LocalShuffle
from ssl_med.transforms.corruption.painting import Painting
from ssl_med.transforms.corruption.repeated_flip import RepeatedFlip

__all__ = ["Corruption", "Corruptions", "IntensityCurve", "LocalShuffle", "Painting", "RepeatedFlip"]
