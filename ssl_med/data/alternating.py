"""Batches from several stores in turn, such as images and volumes for one backbone: never two kinds in one batch.

Whose turn a step is follows from its number alone, and so does the place in that store's own order: training goes on
after a kill as if there had been none, at any number of processes.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytorch_lightning as pl

from ssl_med.data.module import StoreData
from ssl_med.data.sampler import even_cycle
from ssl_med.errors import UserError
from ssl_med.ops.random import fold
from ssl_med.types import Batch


class Turns:
    """step -> whose turn it is, and how many turns that one has had before.

    Args:
        weights: how often each comes, relative to the others; spread as evenly as possible.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.cycle = even_cycle(weights)

    def __call__(self, step: int) -> int:
        """Number of the one whose turn it is."""
        return self.cycle[step % len(self.cycle)]

    def before(self, step: int, number: int) -> int:
        """Turns that ``number`` has had before a step."""
        rounds, place = divmod(step, len(self.cycle))
        return rounds * self.cycle.count(number) + self.cycle[:place].count(number)


class AlternatingData(pl.LightningDataModule):
    """Every batch comes from one of several stores, in turn.

    With several processes every one has the same store at the same step. What only one kind of batch uses, such as a
    patch embedding, gets no gradient in the steps of the others: train with
    ``strategy: ddp_find_unused_parameters_true``.

    Args:
        stores: as they would be given alone, each with its own crop and batch size.
        weights: how often each has its turn, relative to the others; all alike by default (UniMiSS gives each two
            passes at a time).

    Raises:
        UserError: less than two stores, weights that do not fit, or different channels.
    """

    def __init__(self, stores: list[StoreData], weights: list[float] | None = None) -> None:
        super().__init__()
        self.stores, self.weights = stores, weights
        shares = [1.0] * len(stores) if weights is None else weights
        if len(stores) < 2 or len(shares) != len(stores) or min(shares) <= 0:
            raise UserError(
                f"data: two or more stores and a positive weight for each, got {len(stores)} stores, weights {weights}"
            )
        if len({data.channels for data in stores}) > 1:
            found = {data.folder: data.channels for data in stores}
            raise UserError(f"data: one backbone takes one number of channels, the stores give {found}")
        self.turns = Turns(shares)

    def train_dataloader(self) -> "Alternation":
        """Endless batches, beginning at the trainer's step."""
        if self.trainer is None:
            return self.loader()
        trainer = self.trainer
        return self.loader(
            trainer.global_step, trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches
        )

    def loader(self, step: int = 0, rank: int = 0, world: int = 1, parts: int = 1) -> "Alternation":
        """Endless batches of one process.

        Args:
            step: the first one.
            rank: number of the process.
            world: number of processes.
            parts: batches in a step; all of them come from one store.
        """
        return Alternation(self.stores, self.turns, step, rank, world, parts)


class Alternation:
    """The batches of an :class:`AlternatingData`, beginning at any step; arguments as of its ``loader``."""

    def __init__(self, stores: Sequence[StoreData], turns: Turns, step: int, rank: int, world: int, parts: int) -> None:
        self.turns, self.step, self.parts = turns, step, parts
        self.loaders = [
            data.loader(turns.before(step, number) * parts, rank, world) for number, data in enumerate(stores)
        ]

    def __iter__(self) -> Iterator[Batch]:
        streams: list[Iterator[Any]] = [iter(loader) for loader in self.loaders]
        step = self.step
        while True:
            number = self.turns(step)
            for _ in range(self.parts):
                batch = next(streams[number])
                # positions begin at 0 in every store: without a fold two stores would draw the same views
                yield cast(Batch, {**batch, "key": fold(batch["key"], number)})
            step += 1
