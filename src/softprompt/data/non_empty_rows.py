"""Rows without the empty ones, which spreadsheets write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..types import Row
from .template import is_missing


def empty_note(num_empty: int) -> str | None:
    """A line for the user on rows that were skipped; ``None`` without any."""
    return f"rows skipped because all columns are empty: {num_empty}" if num_empty else None


class NonEmptyRows(Iterator[Row]):
    """Iterates over rows and skips those in which all columns are empty.

    NaN, NaT and ``NA`` become ``None``; strings are unchanged, blank ones too.

    Attributes:
        num_empty: number of rows skipped so far.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = iter(rows)
        self.num_empty = 0

    def __next__(self) -> Row:
        for row in self._rows:
            missing = {name for name, value in row.fields.items() if is_missing(value)}
            if len(missing) < len(row.fields):
                fields = {n: None if n in missing and not isinstance(v, str) else v for n, v in row.fields.items()}
                return Row(fields, row.where)
            self.num_empty += 1
        raise StopIteration
