"""``quarantine.parquet`` of a store: what was not taken and why, written group by group."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_SCHEMA = pa.schema([("file", pa.string()), ("reason", pa.string()), ("set_aside", pa.bool_())])
_GROUP = 8192


class Quarantine:
    """Writes the file; to be used with ``with``.

    Args:
        path: of the file, whose mode is kept.
    """

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, _SCHEMA)
        self._held: list[dict[str, object]] = []

    def add(self, file: Path, reason: str, aside: bool) -> None:
        """One image that was not taken."""
        self._held.append({"file": str(file), "reason": reason, "set_aside": aside})
        if len(self._held) == _GROUP:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._held, _SCHEMA))
        self._held = []

    def __enter__(self) -> "Quarantine":
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        self._writer.close()
