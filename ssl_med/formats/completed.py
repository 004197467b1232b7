"""Encoders inside another library's whole network: what is ours is set, what is not is named."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Build a network whose random weights repeat, without touching the generator of the caller."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def completed(network: nn.Module, ours: Mapping[str, Tensor]) -> list[str]:
    """Put our weights into a network, strictly.

    Args:
        network: of the other library.
        ours: name in the network -> weight.

    Returns:
        Names of the weights that are not ours.

    Raises:
        RuntimeError: a weight of ours has no place, or another shape.
    """
    own = network.state_dict()
    network.load_state_dict({**own, **ours}, strict=True)
    return sorted(set(own) - set(ours))
