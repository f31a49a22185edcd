"""Rows: reading and writing files of them, and the splits and the task of a run. No torch here."""

from __future__ import annotations

from .content import RowsWithContent
from .formats import ENDINGS, RowWriter, columns_of, open_writer, read_rows
from .sources import (
    COMPLAINTS,
    Splits,
    check_labels,
    labels_alike,
    labels_repeat,
    load_splits,
    make_task,
    new_labels,
)

__all__ = [
    "COMPLAINTS",
    "ENDINGS",
    "RowWriter",
    "RowsWithContent",
    "Splits",
    "check_labels",
    "columns_of",
    "labels_alike",
    "labels_repeat",
    "load_splits",
    "make_task",
    "new_labels",
    "open_writer",
    "read_rows",
]
