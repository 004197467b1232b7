"""Rows of a CSV, TSV or parquet file as words, read from the start each time they are asked for, never all held."""

import csv
from collections.abc import Iterator
from pathlib import Path

from ssl_med.errors import UserError

SUFFIXES = (".csv", ".tsv", ".parquet")
"""Ends of the names of files that may be tables."""


_SEPARATORS = (",", ";", "\t")
"""Excel writes semicolons where a comma is the decimal point."""


class NotATable(UserError):
    """A file that cannot be taken apart into rows and columns."""


def header_of(path: Path) -> list[str]:
    """Names of the columns.

    Raises:
        NotATable: the file is damaged or none of its kind.
    """
    if path.suffix.lower() == ".parquet":
        return _parquet(path).schema_arrow.names
    return next(_lines(path), [])


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    """All rows in order: column -> text; empty where a value is missing.

    Raises:
        NotATable: the file is damaged, or a row has not as many values as there are columns.
    """
    if path.suffix.lower() == ".parquet":
        yield from _parquet_rows(path)
        return
    lines = _lines(path)
    header = next(lines, [])
    for number, line in enumerate(lines, 2):
        if len(line) != len(header):
            raise NotATable(f"{path.name}, line {number}: {len(line)} values for {len(header)} columns")
        yield {name: value.strip() for name, value in zip(header, line, strict=True)}


def _lines(path: Path) -> Iterator[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            separator = _separator(next((line for line in file if line.strip()), ""))
            file.seek(0)
            yield from (line for line in csv.reader(file, strict=True, delimiter=separator) if any(line))
    except (csv.Error, UnicodeDecodeError) as error:
        raise NotATable(f"table {path.name} is not CSV in UTF-8 ({error}): save it again as such") from None


def _separator(header: str) -> str:
    """What parts the line of names into most columns; a comma where nothing does."""
    return max(_SEPARATORS, key=lambda separator: len(next(csv.reader([header], delimiter=separator), [])))


def _parquet(path: Path):
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise NotATable(
            f"table {path.name} is no parquet file ({type(error).__name__}): save it again as such"
        ) from None


def _parquet_rows(path: Path) -> Iterator[dict[str, str]]:
    for batch in _parquet(path).iter_batches(batch_size=1024):
        for row in batch.to_pylist():
            yield {name: "" if value is None or value != value else str(value).strip() for name, value in row.items()}
