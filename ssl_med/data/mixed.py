"""Batches that mix several stores of one kind, in proportion to weights."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_med.data.dataset import CropDataset
from ssl_med.data.module import StoreData
from ssl_med.data.several import SeveralStores, Turns
from ssl_med.errors import UserError
from ssl_med.ops.random import sample_keys
from ssl_med.types import Batch


class MixedData(SeveralStores):
    """Every batch holds samples of all stores, spread over it in proportion to the weights.

    Which store a position is of follows from the position alone, and so does the place in that store's own order.

    Args:
        stores: of one number of axes, crop and batch size; the loader's settings are those of the first.
        weights: samples of each, relative to the others; all alike by default.

    Raises:
        UserError: as :class:`SeveralStores`, or crops that do not fit into one batch.
    """

    def __init__(self, stores: list[StoreData], weights: list[float] | None = None) -> None:
        super().__init__(stores, weights)
        if not fit_together(stores):
            found = {data.folder: (data.crop, data.batch_size) for data in stores}
            raise UserError(f"data: stores are mixed where crop and batch_size are the same, they give {found}")

    def train_dataloader(self) -> DataLoader:
        """Endless batches, beginning at the trainer's step."""
        if self.trainer is None:
            return self.loader()
        start = self.trainer.global_step * self.trainer.accumulate_grad_batches
        return self.loader(start, self.trainer.global_rank, self.trainer.world_size)

    def loader(self, start: int = 0, rank: int = 0, world: int = 1) -> DataLoader:
        """Endless batches of one process, beginning at batch ``start``."""
        mixed = MixedCrops([data.crops() for data in self.stores], self.turns, self.stores[0].seed)
        return self.stores[0].loader(start, rank, world, mixed)


class MixedCrops(Dataset[Batch]):
    """position -> a crop of the store whose turn it is.

    Args:
        datasets: one of each store.
        turns: whose turn a position is.
        seed: of the run.
    """

    def __init__(self, datasets: list[CropDataset], turns: Turns, seed: int) -> None:
        self.datasets, self.turns, self.seed = datasets, turns, seed
        padded = any(dataset.padded for dataset in datasets)  # all samples of a batch must agree
        mapped = all(dataset.saliency for dataset in datasets)
        for dataset in datasets:
            dataset.padded, dataset.saliency = padded, mapped

    def __getitems__(self, positions: list[int]) -> Batch:
        """The batch of these positions, in their order."""
        owners = torch.tensor([self.turns(position) for position in positions])
        parts, places = [], []
        for number, dataset in enumerate(self.datasets):
            chosen = torch.nonzero(owners == number)[:, 0]
            if len(chosen):
                parts.append(dataset.__getitems__([self.turns.before(positions[i], number) for i in chosen.tolist()]))
                places.append(chosen)
        batch = {name: _joined([part[name] for part in parts], torch.cat(places)) for name in parts[0]}
        # positions begin at 0 in every store: with keys of their own two stores would draw the same views
        return cast(Batch, {**batch, "key": sample_keys(self.seed, torch.tensor(positions))})

    def at_work(self, worker: int) -> str:
        """What a loader process was reading last, in words; empty for nothing."""
        return next(filter(None, (dataset.at_work(worker) for dataset in self.datasets)), "")


def _joined(parts: list[Any], places: Tensor) -> Any:
    """Values of several batches, put at their places in one."""
    if isinstance(parts[0], Tensor):
        whole = parts[0].new_empty(len(places), *parts[0].shape[1:])
        whole[places] = torch.cat(parts)
        return whole
    values = [value for part in parts for value in part]
    return [values[i] for i in torch.argsort(places).tolist()]


def fit_together(stores: Sequence[StoreData]) -> bool:
    """Crops of these stores can stand in one batch."""
    return len({(tuple(data.crop), data.batch_size) for data in stores}) == 1
