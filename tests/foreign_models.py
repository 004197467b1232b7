"""Models of other libraries with random weights, in which every parameter differs from what it is made with."""

import timm
import torch
from torch import Tensor, nn

from ssl_med.backbones import ViT

SMALL = {"embed_dim": 48, "depth": 2, "heads": 4}


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norms, biases and running moments too, so that a swap would show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def timm_vit(size: int = 32, channels: int = 3, patch: int = 8, **changes) -> nn.Module:
    """A ViT of timm, 48 wide, two blocks, without a classifier."""
    torch.manual_seed(0)
    settings = {"patch_size": patch, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 0, **changes}
    return shaken(timm.create_model("vit_tiny_patch16_224", img_size=size, in_chans=channels, **settings))


def our_vit(grid: tuple[int, ...] = (4, 4), channels: int = 3, patch: int = 8, **changes) -> ViT:
    """The same with our class."""
    torch.manual_seed(1)
    settings = {"positions": "learned", "grid": grid, **SMALL, **changes}
    return ViT(len(grid), patch, channels, **settings).eval()


@torch.no_grad()
def tokens(vit: ViT, image: Tensor) -> Tensor:
    """All tokens after the last norm, as timm's ``forward_features`` answers."""
    return vit.encode(vit.tokenize(image))


def difference(a: Tensor, b: Tensor) -> float:
    """The largest, anywhere."""
    assert a.shape == b.shape
    return float((a - b).detach().abs().max())
