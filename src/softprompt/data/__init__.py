"""Rows: reading and writing files of them, and the splits and the task of a run. No torch here."""

from __future__ import annotations

from .formats import ENDINGS, RowWriter, columns_of, open_writer, read_rows
from .sources import COMPLAINTS, Splits, check_labels, load_splits, make_task

__all__ = [
    "COMPLAINTS",
    "ENDINGS",
    "RowWriter",
    "Splits",
    "check_labels",
    "columns_of",
    "load_splits",
    "make_task",
    "open_writer",
    "read_rows",
]
