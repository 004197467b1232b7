"""What trainings on several stores have in common, whether their samples are mixed or come in turn."""

from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl

from ssl_med.data.dataset import CropDataset
from ssl_med.data.module import StoreData
from ssl_med.data.sampler import even_cycle
from ssl_med.errors import UserError


class Turns:
    """place -> whose turn it is, and how many turns that one has had before.

    Args:
        weights: how often each comes, relative to the others; spread as evenly as possible.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.cycle = even_cycle(weights)

    def __call__(self, place: int) -> int:
        """Number of the one whose turn it is."""
        return self.cycle[place % len(self.cycle)]

    def before(self, place: int, number: int) -> int:
        """Turns that ``number`` has had before a place."""
        rounds, within = divmod(place, len(self.cycle))
        return rounds * self.cycle.count(number) + self.cycle[:within].count(number)


class SeveralStores(pl.LightningDataModule):
    """What trainings on several stores share. Looks at the run (health, probes, pictures) are at the first store.

    Args:
        stores: as they would be given alone.
        weights: how often each has its turn, relative to the others; all alike by default.

    Raises:
        UserError: less than two stores, weights that do not fit, different channels, or targets.
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
        if any(data.targets for data in stores):
            raise UserError("data.targets: several stores are for pretraining, which has none; fine-tune on one store")
        self.turns = Turns(shares)
        for number, data in enumerate(stores):
            data.number = number

    @property
    def parts(self) -> list[StoreData]:
        """The stores, each as it would be given alone."""
        return self.stores

    @property
    def batch_size(self) -> int:
        """Samples per step, of the first store."""
        return self.stores[0].batch_size

    @property
    def ledger(self) -> Path | None:
        """Where images that are left out are noted, those of all stores."""
        return self.stores[0].ledger

    @ledger.setter
    def ledger(self, path: Path | None) -> None:
        for data in self.stores:
            data.ledger = path

    def crops(self, split: str = "train") -> CropDataset:
        """Random crops of the first store."""
        return self.stores[0].crops(split)

    def explain(self, error: Exception) -> UserError | None:
        """See :meth:`StoreData.explain`."""
        found = (data.explain(error) for data in self.stores)
        return next((sentence for sentence in found if sentence is not None), None)
