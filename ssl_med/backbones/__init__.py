"""Backbones: one promise (:class:`Backbone`), our own ViT and U-Net encoder, adapters to timm and MONAI."""

from ssl_med.backbones.adapters import MonaiBackbone, TimmBackbone
from ssl_med.backbones.base import Backbone
from ssl_med.backbones.genesis import GenesisEncoder
from ssl_med.backbones.plain_encoder import PlainEncoder
from ssl_med.backbones.residual_encoder import ResidualEncoder
from ssl_med.backbones.shared_vit import SharedViT
from ssl_med.backbones.unet import UNetEncoder
from ssl_med.backbones.vit import Tokens, ViT

__all__ = [
    "Backbone",
    "GenesisEncoder",
    "MonaiBackbone",
    "PlainEncoder",
    "ResidualEncoder",
    "SharedViT",
    "TimmBackbone",
    "Tokens",
    "UNetEncoder",
    "ViT",
]
