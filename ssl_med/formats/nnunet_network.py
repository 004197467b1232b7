"""nnU-Net's U-Nets around an encoder of ours: their arguments and the names of all their weights."""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssl_med.backbones import Backbone, PlainEncoder, ResidualEncoder

Encoder = PlainEncoder | ResidualEncoder
IMPORTED = ["conv_op", "norm_op", "dropout_op", "nonlin"]
"""Arguments that nnU-Net's plans give as dotted names."""

_SLOPE = 1e-2
"""Of nnU-Net's leaky ReLUs, for which it initialises (``InitWeights_He``)."""


class Network(NamedTuple):
    """One of nnU-Net's networks.

    Attributes:
        name: its class, with the way to it.
        encoder: ours with the same names.
        depths: the argument that says how many blocks or convolutions a stage has.
        decoder: convolutions of each stage of the decoder in nnU-Net's own plans.
        stem: where the class says its stem is.
        first: the layer that sees the image.
    """

    name: str
    encoder: type[Encoder]
    depths: str
    decoder: int
    stem: str
    first: str


_UNETS = "dynamic_network_architectures.architectures.unet"
NETWORKS = (
    Network(
        f"{_UNETS}.ResidualEncoderUNet",
        ResidualEncoder,
        "n_blocks_per_stage",
        1,
        "encoder.stem",
        "encoder.stem.convs.0",
    ),
    Network(
        f"{_UNETS}.PlainConvUNet", PlainEncoder, "n_conv_per_stage", 2, "encoder.stages.0", "encoder.stages.0.0.convs.0"
    ),
)


def network_of(backbone: Backbone) -> Network | None:
    """The network that holds a backbone; None where there is none."""
    return next((network for network in NETWORKS if isinstance(backbone, network.encoder)), None)


def architecture(encoder: Encoder, network: Network) -> dict[str, Any]:
    """Arguments of the network, as a plans file of nnU-Net gives them."""
    axes, stages = encoder.spatial_dims, len(encoder.widths)
    return {
        "n_stages": stages,
        "features_per_stage": list(encoder.widths),
        "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "kernel_sizes": [list(kernel) for kernel in encoder.kernels],
        "strides": [list(step) for step in encoder.pooling],
        network.depths: list(encoder.depths),
        "n_conv_per_stage_decoder": [network.decoder] * (stages - 1),
        "conv_bias": encoder.bias,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def encoder_from(network: Network, arguments: dict[str, Any], in_channels: int) -> Encoder:
    """The encoder of :func:`architecture`, with random weights."""
    return network.encoder(
        int(arguments["conv_op"][-2]),
        in_channels,
        arguments["features_per_stage"],
        arguments[network.depths],
        arguments["strides"],
        arguments["kernel_sizes"],
        arguments["conv_bias"],
    )


def encoder_state(encoder: Encoder) -> dict[str, Tensor]:
    """Our weights under ``encoder.``, without second names."""
    return {f"encoder.{name}": tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}


def decoder_state(encoder: Encoder, network: Network) -> dict[str, Tensor]:
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
        for number in range(network.decoder):
            block = f"decoder.stages.{level}.convs.{number}"
            convolution(f"{block}.conv", (skip, skip if number else 2 * skip, *kernel), skip)
            state[f"{block}.norm.weight"], state[f"{block}.norm.bias"] = torch.ones(skip), torch.zeros(skip)
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
