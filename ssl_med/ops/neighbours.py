"""The next image of the global batch, for tasks that mix images with each other."""

from typing import Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from ssl_med.errors import UserError
from ssl_med.ops import ranks


def check_neighbours(who: str, rows: int) -> None:
    """Refuse a global batch in which an image has no neighbour.

    Args:
        who: what needs neighbours.
        rows: of this process.

    Raises:
        UserError: there is only one row, which would be mixed with itself.
    """
    if rows * ranks.world_size() < 2:
        raise UserError(f"{who} mixes each image with another of the batch, and there is one: enlarge data.batch_size")


@torch.no_grad()
def neighbour(x: Shaped[Tensor, "b *rest"], step: Literal[1, -1] = 1) -> Shaped[Tensor, "b *rest"]:
    """Row i of the answer is row i + ``step`` of the global batch, where the last row is followed by the first.

    Each process holds a slice of the global batch, in the order of the ranks, so only the row at the edge of a slice
    travels, and the partners are the same at any number of processes. A global batch of one row is its own neighbour.

    Args:
        x: rows of this process; no gradient flows through the answer.
        step: 1 for the next row, -1 for the one before.
    """
    if ranks.world_size() == 1:
        return x.roll(-step, 0)
    edge = x[:1] if step == 1 else x[-1:]
    sent = edge.to(torch.uint8) if edge.dtype == torch.bool else edge  # gloo does not send booleans
    edges = ranks.gather(sent).to(x.dtype)
    other = edges[(ranks.rank() + step) % ranks.world_size()][None]
    return torch.cat([x[1:], other] if step == 1 else [other, x[:-1]])
