"""What a process keeps of the arrays that it reads: a few open files, and small images decoded."""

from collections import OrderedDict
from collections.abc import Callable

from ssl_med.data.stored import StoredArray, StoredFile

_OPEN = 16  # files kept open: k crops of one image open it once
_SMALL = 1 << 18  # bytes up to which opening a file costs more than decoding all of it
_HELD = 1 << 26  # bytes of small images kept decoded, per process


class AtHand:
    """The arrays that were used last; what has changed on the disk since is opened again."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[str, str], StoredArray] = OrderedDict()
        self._held: OrderedDict[tuple[str, str], StoredArray] = OrderedDict()
        self._bytes = 0

    def __call__(self, key: tuple[str, str], opened: Callable[[], StoredArray]) -> StoredArray:
        """The array of that key.

        Args:
            key: part of the store and id of the row.
            opened: opens it.

        Raises:
            Damaged: it is missing, or not what was written.
        """
        kept = self._held if key in self._held else self._open
        found = kept.pop(key, None)
        if found is None or not found.is_current():
            self._bytes -= found.nbytes if found is not None and kept is self._held else 0
            found = opened()
            if isinstance(found, StoredFile) and found.nbytes <= _SMALL:
                found = found.decoded()
                self._bytes += found.nbytes
                kept = self._held
            else:
                kept = self._open
        kept[key] = found
        while self._bytes > _HELD:
            self._bytes -= self._held.popitem(last=False)[1].nbytes
        if len(self._open) > _OPEN:
            self._open.popitem(last=False)
        return found
