"""Counting images of which there may be any number: every counter here has a bound on its size."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

Item = TypeVar("Item")


class Distinct:
    """How many different words came by: exact up to ``most``, then an estimate (error about 1 / sqrt(most)).

    The smallest hashes are kept; n uniform numbers whose k-th smallest is u are about (k - 1) / u many (Bar-Yossef et
    al., Counting distinct elements in a data stream, RANDOM 2002).
    """

    def __init__(self, most: int = 1 << 14) -> None:
        self.most = most
        self._smallest: set[int] = set()
        self._bound = 1 << 64

    def add(self, word: str) -> None:
        """Count a word; the same word counts once."""
        number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
        if number < self._bound:
            self._smallest.add(number)
        if len(self._smallest) > 2 * self.most:
            kept = sorted(self._smallest)[: self.most]
            self._smallest, self._bound = set(kept), kept[-1] + 1

    @property
    def exact(self) -> bool:
        """No estimate was necessary so far."""
        return self._bound == 1 << 64

    def __len__(self) -> int:
        if self.exact:
            return len(self._smallest)
        kept = sorted(self._smallest)[: self.most]
        return round((self.most - 1) / (kept[-1] / 2**64))


class Reservoir(Generic[Item]):
    """A uniform sample of a stream of unknown length (algorithm R, Vitter 1985), a function of the seed.

    Args:
        size: of the sample.
        seed: of the choice.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size, self.seen = size, 0
        self.items: list[tuple[int, Item]] = []
        self._rng = np.random.default_rng((seed, 3))

    def add(self, item: Item) -> None:
        """Offer one item."""
        place = self.seen if self.seen < self.size else int(self._rng.integers(self.seen + 1))
        if self.seen < self.size:
            self.items.append((self.seen, item))
        elif place < self.size:
            self.items[place] = (self.seen, item)
        self.seen += 1

    def in_order(self) -> list[Item]:
        """The sample, in the order in which it came."""
        return [item for _, item in sorted(self.items, key=lambda entry: entry[0])]


class Spread:
    """Least, median and largest of vectors; the median is that of a random sample where there are very many.

    Args:
        most: vectors kept for the median.
    """

    def __init__(self, most: int = 4096) -> None:
        self._most, self._seen = most, 0
        self._least = self._largest = np.empty(0)
        self._sample = np.empty((0, 0))
        self._rng = np.random.default_rng(4)

    def add(self, vector: tuple[float, ...]) -> None:
        """Count one vector; all of a spread have one length."""
        if self._seen == 0:
            self._sample = np.empty((self._most, len(vector)))  # an array of its full size takes less than objects
            self._least = self._largest = np.array(vector, float)
        place = self._seen if self._seen < self._most else int(self._rng.integers(self._seen + 1))
        if place < self._most:
            self._sample[place] = vector
        self._least, self._largest = np.minimum(self._least, vector), np.maximum(self._largest, vector)
        self._seen += 1

    def facts(self) -> dict[str, list[float]]:
        """``min``, ``median``, ``max``, each along the vector."""
        median = np.median(self._sample[: min(self._seen, self._most)], 0)
        return {"min": self._least.tolist(), "median": median.tolist(), "max": self._largest.tolist()}


@dataclass
class Counts:
    """Words counted under headings, at most ``most`` different ones each; the others count as ``other``."""

    most: int = 1000
    counters: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, heading: str, word: str, times: int = 1) -> None:
        """Count a word."""
        counter = self.counters.setdefault(heading, Counter())
        counter[word if word in counter or len(counter) < self.most else "other"] += times

    def facts(self, heading: str) -> dict[str, int]:
        """Numbers by size, words after them."""
        return dict(sorted(self.counters.get(heading, {}).items(), key=_natural))


def _natural(entry: tuple[str, Any]) -> tuple[float, str]:
    number = entry[0].lstrip("-")
    return (float(entry[0]) if number.isdigit() else float("inf"), entry[0])
