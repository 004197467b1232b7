"""Backbones of other libraries behind our promise: any timm model with feature maps, and MONAI's 3D encoders."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_med.backbones.base import Backbone
from ssl_med.types import Features


class TimmBackbone(Backbone):
    """Any 2D model of timm that yields feature maps.

    Args:
        name: timm's model name, such as ``resnet18`` or ``convnext_tiny``.
        in_channels: channels of the image; timm adapts the stem.
        pretrained: take timm's published weights. This downloads them, so it is off unless asked; a backbone that is
            rebuilt from its recipe does not ask again.
        image_size: height and width, needed by models with fixed positions (timm's ViTs).
    """

    def __init__(
        self, name: str, in_channels: int = 3, pretrained: bool = False, image_size: int | None = None
    ) -> None:
        super().__init__()
        import timm

        self.spatial_dims, self.name, self.in_channels = 2, name, in_channels
        self.image_size = image_size
        size: dict[str, Any] = {"img_size": image_size} if image_size else {}
        model = timm.create_model(name, pretrained=pretrained, in_chans=in_channels, features_only=True, **size)
        self.model = model.to(memory_format=torch.channels_last)  # ResNets are faster so
        self.pretrained = False  # the weights are in the state now; a random twin must be random
        info: Any = self.model.feature_info
        self.channels = list(info.channels())
        self.strides = [(s, s) for s in info.reduction()]
        self.embed_dim = self.channels[-1]

    def forward(self, image: Float[Tensor, "b c *space"], spacing: Float[Tensor, "b d"] | None = None) -> Features:
        """timm's feature maps, channels first; pooled is the mean of the coarsest."""
        found = self.model(image.contiguous(memory_format=torch.channels_last))
        maps = [self._channels_first(m, c) for m, c in zip(found, self.channels, strict=True)]
        return Features(maps[-1].flatten(2).mean(-1), maps)

    @staticmethod
    def _channels_first(feature_map: Tensor, channels: int) -> Tensor:
        if feature_map.shape[1] != channels and feature_map.shape[-1] == channels:
            return feature_map.movedim(-1, 1)  # Swin-like models answer channels last
        return feature_map


class MonaiBackbone(Backbone):
    """Encoders of MONAI's segmentation networks.

    Args:
        name: which network's encoder.
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        width: channels of the first stage (SwinUNETR: feature_size, a multiple of 12).
        swin_v2: SwinUNETR with a residual convolution before each stage (VoCo's and MONAI's ``use_v2``).
    """

    def __init__(
        self,
        name: Literal["SwinUNETR", "SegResNet", "DynUNet"] = "SwinUNETR",
        spatial_dims: int = 3,
        in_channels: int = 1,
        width: int = 24,
        swin_v2: bool = False,
    ) -> None:
        super().__init__()
        self.swin_v2 = swin_v2
        self.name, self.spatial_dims, self.in_channels, self.width = name, spatial_dims, in_channels, width
        self.network = getattr(self, f"_{name.lower()}")()
        size = 32  # the largest stride of the three
        with torch.no_grad():
            maps = self._maps(torch.zeros(1, in_channels, *[size] * spatial_dims))
        self.channels = [m.shape[1] for m in maps]
        self.strides = [tuple(size // s for s in m.shape[2:]) for m in maps]
        self.embed_dim = self.channels[-1]

    def _swinunetr(self) -> nn.Module:
        from monai.networks.nets.swin_unetr import SwinUNETR

        size: dict[str, Any] = {"feature_size": self.width, "spatial_dims": self.spatial_dims}
        return SwinUNETR(self.in_channels, 1, use_checkpoint=False, use_v2=self.swin_v2, **size).swinViT

    def _segresnet(self) -> nn.Module:
        from monai.networks.nets.segresnet import SegResNet

        net = SegResNet(self.spatial_dims, self.width, self.in_channels, 1)
        del net.up_layers, net.up_samples, net.conv_final  # decoder parts would be parameters without a gradient
        return net

    def _dynunet(self) -> nn.Module:
        from monai.networks.nets.dynunet import DynUNet

        steps, filters = [1, 2, 2, 2], [self.width * 2**i for i in range(4)]
        net = DynUNet(
            self.spatial_dims, self.in_channels, 1, [3] * 4, steps, steps[1:], filters=filters, res_block=True
        )
        return nn.ModuleList([net.input_block, *net.downsamples, net.bottleneck])

    def _maps(self, image: Tensor) -> list[Tensor]:
        if self.name == "SwinUNETR":
            return list(self.network(image))
        if self.name == "SegResNet":
            coarse, skips = self.network.encode(image)  # pyright: ignore[reportCallIssue]
            return [*skips[:-1], coarse]
        maps = []
        for stage in self.network:  # pyright: ignore[reportGeneralTypeIssues]
            image = stage(image)
            maps.append(image)
        return maps

    def forward(self, image: Float[Tensor, "b c *space"], spacing: Float[Tensor, "b d"] | None = None) -> Features:
        """The encoder's maps, fine to coarse; pooled is the mean of the coarsest."""
        maps = self._maps(image)
        return Features(maps[-1].flatten(2).mean(-1), maps)
