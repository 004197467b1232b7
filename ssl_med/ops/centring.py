"""What keeps self-distillation from collapsing: centring, Sinkhorn-Knopp and KoLeo, over all processes."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_med.errors import UserError
from ssl_med.ops import ranks


class Centre(nn.Module):
    """Moving mean of a teacher's logits, which is taken off them before the softmax (DINO, arXiv 2104.14294, eq. 4).

    Without it one prototype takes all images; with it alone all prototypes come out alike, which the low temperature of
    the teacher prevents.

    Args:
        prototypes: number of logits.
        momentum: share of the old centre that stays.
    """

    value: Tensor
    sums: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(prototypes))
        self.register_buffer("sums", torch.zeros(prototypes + 1))  # of logits, and of their weights

    def forward(
        self, logits: Float[Tensor, "rows k"], temperature: float, weight: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "rows k"]:
        """Probabilities of the centred, sharpened logits; ``weight`` makes no difference to them."""
        return ((logits.float() - self.value) / temperature).softmax(-1)

    @torch.no_grad()
    def collect(self, logits: Float[Tensor, "rows k"], weight: Float[Tensor, " rows"] | None = None) -> None:
        """Remember the logits of all processes for the next :meth:`move`; call it after the loss.

        Args:
            logits: of the teacher.
            weight: of each row; all count the same by default.
        """
        weight = torch.ones_like(logits[:, 0]) if weight is None else weight
        sums = torch.cat([(logits.float() * weight[:, None]).sum(0), weight.sum()[None].float()])
        self.sums += ranks.total(sums)

    @torch.no_grad()
    def move(self) -> None:
        """Move to the mean of what was collected; call it after the step, which may have several batches."""
        mean = torch.where(self.sums[-1] > 0, self.sums[:-1] / self.sums[-1].clamp(min=1e-12), self.value)
        self.value.lerp_(mean, 1 - self.momentum)
        self.sums.zero_()


class Sinkhorn(nn.Module):
    """Probabilities by :func:`sinkhorn` in place of a centre; in evaluation those of the plain logits."""

    def forward(
        self, logits: Float[Tensor, "rows k"], temperature: float, weight: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "rows k"]:
        """Balanced over the rows of all processes, as far as their weight is 1."""
        return sinkhorn(logits, temperature, weight) if self.training else (logits.float() / temperature).softmax(-1)

    def collect(self, logits: Float[Tensor, "rows k"], weight: Float[Tensor, " rows"] | None = None) -> None:
        """There is nothing to remember from one batch to the next."""

    def move(self) -> None:
        """There is nothing that moves."""


def centring_of(kind: str, prototypes: int, momentum: float) -> Centre | Sinkhorn:
    """The way of keeping prototypes in use that ``kind`` (``centre`` or ``sinkhorn``) names."""
    return Centre(prototypes, momentum) if kind == "centre" else Sinkhorn()


@torch.no_grad()
def sinkhorn(
    logits: Float[Tensor, "rows k"],
    temperature: float,
    weight: Float[Tensor, " rows"] | None = None,
    iterations: int = 3,
) -> Float[Tensor, "rows k"]:
    """Probabilities for which every prototype gets the same share of the rows of all processes.

    Sinkhorn-Knopp (SwAV, arXiv 2006.09882, as in DINOv2, arXiv 2304.07193), in logarithms: nothing overflows, however
    low the temperature. With many more prototypes than rows, many prototypes share a row.

    Args:
        logits: of the teacher.
        temperature: divides the logits.
        weight: 1 for rows that count, 0 for those that do not.
        iterations: of alternately normalising prototypes and rows.

    Returns:
        Rows of sum 1 (of sum 0 where the weight is 0).
    """
    table = logits.float() / temperature
    counts = torch.ones(len(table), device=table.device) if weight is None else weight.float()
    table = table + counts.log()[:, None]
    for _ in range(iterations):
        table = table - _column_logsumexp(table)
        table = table - table.logsumexp(1, keepdim=True).nan_to_num(neginf=0.0)
    return table.exp()


def _column_logsumexp(table: Tensor) -> Tensor:
    """Logarithm of the sum of each column over the rows of all processes."""
    highest = table.amax(0)
    if ranks.world_size() > 1:
        torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
    highest = highest.nan_to_num(neginf=0.0)
    return highest + ranks.total((table - highest).exp().sum(0)).clamp(min=1e-38).log()


def koleo(features: Float[Tensor, "b d"], floor: float = 1e-8) -> Float[Tensor, ""]:
    """Minus the mean logarithm of the distance to the nearest other row, over all processes (arXiv 1806.03198).

    Rows are scaled to length 1. The loss of two equal rows is ``-log(floor)`` and not infinite. Neighbours are searched
    in full precision whatever the trainer's: in bfloat16 most of them would be others.

    Raises:
        UserError: there is only one row, which has no neighbour.
    """
    with torch.autocast(features.device.type, enabled=False):
        rows = ranks.gather(torch.nn.functional.normalize(features.float(), dim=-1, eps=floor))
        if len(rows) < 2:
            raise UserError("KoLeo needs a batch of two or more images: enlarge data.batch_size or set koleo to 0")
        with torch.no_grad():
            likeness = (rows @ rows.T).fill_diagonal_(-2)
            nearest = likeness.argmax(1)
        distance = torch.nn.functional.pairwise_distance(rows, rows[nearest], 2, floor)
        return -(distance + floor).log().mean()
