"""nnU-Net's residual encoder U-Net around an encoder of ours: its arguments and the names of all its weights."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ssl_med.backbones import ResidualEncoder

NETWORK = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
IMPORTED = ["conv_op", "norm_op", "dropout_op", "nonlin"]
"""Arguments that nnU-Net's plans give as dotted names."""

_SLOPE = 1e-2
"""Of nnU-Net's leaky ReLUs, for which it initialises (``InitWeights_He``)."""


def architecture(encoder: ResidualEncoder) -> dict[str, Any]:
    """Arguments of the network, as a plans file of nnU-Net gives them."""
    axes, stages = encoder.spatial_dims, len(encoder.widths)
    return {
        "n_stages": stages,
        "features_per_stage": list(encoder.widths),
        "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "kernel_sizes": [list(kernel) for kernel in encoder.kernels],
        "strides": [list(step) for step in encoder.pooling],
        "n_blocks_per_stage": list(encoder.blocks),
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "conv_bias": encoder.bias,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def encoder_from(arguments: dict[str, Any], in_channels: int) -> ResidualEncoder:
    """The encoder of :func:`architecture`, with random weights."""
    return ResidualEncoder(
        int(arguments["conv_op"][-2]),
        in_channels,
        arguments["features_per_stage"],
        arguments["n_blocks_per_stage"],
        arguments["strides"],
        arguments["kernel_sizes"],
        arguments["conv_bias"],
    )


def encoder_state(encoder: ResidualEncoder) -> dict[str, Tensor]:
    """Our weights under ``encoder.``, without second names."""
    return {f"encoder.{name}": tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}


def decoder_state(encoder: ResidualEncoder) -> dict[str, Tensor]:
    """Weights of the decoder that fits, random as nnU-Net's own (He et al., arXiv 1502.01852), the same each time.

    Layers of the segmentation are left out: nnU-Net makes them for the classes it finds, and never loads them.
    """
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def convolution(name: str, shape: tuple[int, ...], width: int) -> None:
        state[f"{name}.weight"] = nn.init.kaiming_normal_(torch.empty(shape), a=_SLOPE, generator=generator)
        if encoder.bias:
            state[f"{name}.bias"] = torch.zeros(width)

    for level, (below, skip) in enumerate(pairwise(reversed(encoder.widths))):
        step, kernel = encoder.pooling[-1 - level], encoder.kernels[-2 - level]
        convolution(f"decoder.transpconvs.{level}", (below, skip, *step), skip)
        block = f"decoder.stages.{level}.convs.0"
        convolution(f"{block}.conv", (skip, 2 * skip, *kernel), skip)
        state |= {f"{block}.norm.weight": torch.ones(skip), f"{block}.norm.bias": torch.zeros(skip)}
    return state


def with_second_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """All names that nnU-Net's loaders ask for; a tensor with several names is one in the file.

    Convolutions and norms stand in ``all_modules`` again, and the whole encoder inside the decoder.
    """
    found = dict(state)
    for name, tensor in state.items():
        for part, number in ((".conv.", 0), (".norm.", 1)):
            if part in name:
                found[name.replace(part, f".all_modules.{number}.")] = tensor
    inside = {f"decoder.{name}": tensor for name, tensor in found.items() if name.startswith("encoder.")}
    return found | inside
