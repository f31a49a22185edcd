"""Rows that a program holds in memory, or names as a file: texts, pairs, dictionaries, and tables of two libraries.

============================================  ==========================================================
``"text"``                                    the text column, for a task with one
``("text", "label")``                         text column and label column, for a task with one text column
``{"column": value, ...}``                    a row
a pandas ``DataFrame``                        its columns
a ``datasets.Dataset``                        its columns; a ``ClassLabel`` becomes its name
a path                                        the rows of that file (``formats.py``)
============================================  ==========================================================

pandas and datasets are recognised by their methods, so neither is imported here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Union

from ..errors import DataError
from ..types import Row
from .formats import read_rows
from .template import is_missing, listed

Rows = Union[str, "os.PathLike[str]", Iterable[Any]]
"""What functions that take rows accept; see the table above."""


def rows_from(given: Rows, text_columns: Sequence[str], label_column: str, *, name: str = "") -> Iterator[Row]:
    """The rows of ``given``, one after the other. A string is a path; texts are given as a list.

    Args:
        text_columns, label_column: names of the columns that texts and pairs fill.
        name: of these rows, for error messages.

    Raises:
        DataError: an item is none of the above, or a text where the task has several text columns; a file cannot be
            read.
    """
    if isinstance(given, (str, os.PathLike)):
        yield from read_rows(os.fspath(given))
        return
    prefix = f"{name} " if name else ""
    for number, item in enumerate(_items(given), start=1):
        where = f"{prefix}row {number}"
        if isinstance(item, Row):
            yield item
        else:
            yield Row(fields_of(item, tuple(text_columns), label_column, where), where)


def _items(given: Any) -> Iterator[Any]:
    """The rows of a table as dictionaries; the items of anything else."""
    if isinstance(given, Mapping):
        if given and all(hasattr(value, "features") for value in given.values()):
            raise DataError(f"a DatasetDict has several splits ({listed(list(given))}); give one of them")
        raise DataError("a dictionary is one row; give a list of dictionaries, one per row")
    if hasattr(given, "to_dict") and hasattr(given, "columns"):  # pandas.DataFrame
        yield from given.to_dict("records")
    elif isinstance(getattr(given, "features", None), Mapping):  # datasets.Dataset
        names = class_names(given.features)
        for values in given:
            yield {column: class_name(value, names.get(column)) for column, value in values.items()}
    else:
        try:
            yield from given
        except TypeError:
            raise DataError(f"rows must be a list, a table or a path, not {type(given).__name__}") from None


def fields_of(item: Any, text_columns: tuple[str, ...], label_column: str, where: str) -> dict[str, Any]:
    """The columns of one item: a text, a pair of text and label, or a dictionary.

    Raises:
        DataError: it is none of these, or a text where the task has several text columns.
    """
    if isinstance(item, Mapping):
        return {str(name): value for name, value in item.items()}
    is_pair = isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[0], str)
    if not (is_pair or isinstance(item, str)):
        raise DataError(
            f"{where} is of type {type(item).__name__}; a row must be a text, a pair (text, label) or a dictionary of "
            "columns"
        )
    if len(text_columns) != 1:
        raise DataError(
            f"{where} is a text, but the task has {len(text_columns)} text columns; give a dictionary with "
            f"{listed(text_columns)}"
        )
    return {text_columns[0]: item[0], label_column: item[1]} if is_pair else {text_columns[0]: item}


def class_names(features: Mapping[str, Any]) -> dict[str, list[str | None]]:
    """The names of every ``ClassLabel`` column of a data set, by number; ``None`` for a name that means no label.

    Underscores become spaces.
    """
    names = {key: feature.names for key, feature in features.items() if type(feature).__name__ == "ClassLabel"}
    readable = {key: [name.replace("_", " ").strip() for name in found] for key, found in names.items()}
    return {key: [None if is_withheld(name) else name for name in found] for key, found in readable.items()}


def declared_labels(table: Any, label_column: str) -> tuple[str, ...]:
    """The classes in order, if ``table`` is a data set whose label column is a ``ClassLabel``; else empty."""
    features = getattr(table, "features", None)
    names = class_names(features).get(label_column, []) if isinstance(features, Mapping) else []
    return tuple(name for name in names if name is not None)


def class_name(value: Any, names: list[str | None] | None) -> Any:
    """The name of a class number; ``value`` itself where the column has no names, ``None`` for a withheld label."""
    if names is None:
        return value
    return None if value is None or value < 0 else names[value]


def is_withheld(label: Any) -> bool:
    """Whether a label stands for none, as in test sets whose authors keep the labels: missing, -1, ``Unlabeled``."""
    return is_missing(label) or label == -1 or str(label).strip().lower() == "unlabeled"
