"""Batches from several stores in turn, such as images and volumes for one backbone: never two kinds in one batch.

Whose turn a step is follows from its number alone, and so does the place in that store's own order: training goes on
after a kill as if there had been none, at any number of processes.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

from ssl_med.data.module import StoreData
from ssl_med.data.several import SeveralStores, Turns
from ssl_med.ops.random import fold
from ssl_med.types import Batch

__all__ = ["AlternatingData", "Alternation", "Turns"]


class AlternatingData(SeveralStores):
    """Every batch comes from one of several stores, in turn.

    With several processes every one has the same store at the same step. What only one kind of batch uses, such as a
    patch embedding, gets no gradient in the steps of the others: train with
    ``strategy: ddp_find_unused_parameters_true``.

    Args:
        stores: as they would be given alone, each with its own crop and batch size.
        weights: how often each has its turn, relative to the others; all alike by default (UniMiSS gives each two
            passes at a time).

    Raises:
        UserError: less than two stores, weights that do not fit, different channels, or targets.
    """

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
