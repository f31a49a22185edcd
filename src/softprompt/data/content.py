"""Rows that have content: what is missing is ``None``, and rows of nothing are left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..template import is_missing
from ..types import Row


class RowsWithContent(Iterator[Row]):
    """Goes through rows and leaves out those that are empty in all columns, as spreadsheets write them.

    NaN and its like become ``None``, as every format but .csv and .tsv has it; texts stay as they are.

    Attributes:
        num_empty: rows left out so far.
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
