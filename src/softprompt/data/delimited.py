"""Delimited files: fields are separated by commas (.csv) or tabs (.tsv). Every value is text.

A .csv is quoted: a field that begins with ``"`` ends with one, and may contain commas and line breaks. A .tsv is read
either as quoted or as written (every line is a row, every quotation mark a character). A reading is valid if all quotes
close and all rows have the same number of fields.

=============================  ==============================================================================
valid                          reading
=============================  ==============================================================================
both, same number of rows      as quoted
both, but quotes join lines    as written; as quoted if the first row is quoted throughout, as softprompt does
only one                       that one
none                           as in the second line; the error is reported
=============================  ==============================================================================

Trailing columns with neither a name nor content are dropped (spreadsheets write them).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ..errors import DataError
from ..types import Row
from .csv_records import read_records
from .template import listed
from .text_files import Write, checked_names, json_text, open_text

DELIMITERS = {".csv": ",", ".tsv": "\t"}

_SEPARATORS = {";": "semicolons", "\t": "tabs", ",": "commas"}


def read_delimited(path: Path, column_names: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a file. With ``column_names``, the first line is a row too.

    Raises:
        DataError: broken quotes, a row with more or fewer fields than there are names, or invalid names.
    """
    with open_text(path) as handle:
        records = _records(handle, path, num_names=len(column_names or ()))
        names = list(column_names or _header(records, path))
        for number, cells in enumerate(records, start=1):
            where = f"{path.name}, row {number}"
            fields = _fitted(cells, len(names))
            if len(fields) != len(names):
                raise DataError(f"{where}: {_misfit(fields, names, path, headed=not column_names)}")
            if number == 1 and column_names and fields == names:
                raise DataError(f"{path.name}: the first line is a header with these names; leave column_names out")
            yield Row(dict(zip(names, fields, strict=True)), where)


def delimited_columns(path: Path) -> list[str]:
    """The column names in the first line of a file.

    Raises:
        DataError: as ``read_delimited``.
    """
    with open_text(path) as handle:
        return _header(_records(handle, path, num_names=0), path)


@contextmanager
def write_delimited(path: Path, columns: list[str], delimiter: str) -> Iterator[Write]:
    """Write a file of rows; see ``formats.open_writer``."""
    with open(path, "w", encoding="utf-8", newline="") as handle:
        plain = csv.writer(handle, delimiter=delimiter, lineterminator="\n")
        quoted = csv.writer(handle, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)

        def write(values: Mapping[str, Any]) -> None:
            cells = [_cell(values.get(name)) for name in columns]
            # The plain writer leaves a lone carriage return unquoted, where readers see the end of a row.
            (quoted if any("\r" in cell for cell in cells) else plain).writerow(cells)

        (quoted if delimiter == "\t" else plain).writerow(columns)  # a quoted header marks a quoted .tsv
        yield write


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return json_text(value) if isinstance(value, (dict, list)) else str(value)


def _delimiter(path: Path) -> str:
    return DELIMITERS[path.suffix.lower()]


# ---- records


def _records(handle: TextIO, path: Path, *, num_names: int) -> Iterator[list[str]]:
    """The non-blank records, with the header unless names are given; broken quotes are errors."""
    number = 1 if num_names else 0
    try:
        for cells in filter(None, read_records(handle, _delimiter(path), quoted=_is_quoted(path, num_names))):
            yield cells
            number += 1
    except csv.Error as error:
        raise DataError(
            f"{path.name}, row {number}: {error}; in a quoted field each double quote is written twice "
            "(or use .jsonl, which has no such rules)"
        ) from None


def _is_quoted(path: Path, num_names: int) -> bool:
    """Whether to read a file as quoted: every .csv, and a .tsv by the table above.

    Args:
        num_names: number of columns; 0 to take it from the first row.
    """
    if _delimiter(path) == ",":
        return True
    written, unquoted = (_number_of_rows(path, num_names, quoted=quoted) for quoted in (False, True))
    if (written is None) != (unquoted is None):
        return written is None
    return (unquoted is not None and written == unquoted) or _first_line_is_quoted(path)


def _number_of_rows(path: Path, width: int, *, quoted: bool) -> int | None:
    """Number of rows of a .tsv in one reading; ``None`` if that reading is not valid."""
    number = 0
    try:
        with open_text(path) as handle:
            for cells in filter(None, read_records(handle, "\t", quoted=quoted)):
                width = width or len(_trimmed(cells))
                if len(_fitted(cells, width)) != width:
                    return None
                number += 1
    except csv.Error:
        return None
    return number


def _first_line_is_quoted(path: Path) -> bool:
    with open_text(path) as handle:
        cells = next(filter(None, read_records(handle, "\t", quoted=False)), [])
    return all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells)


# ---- names and widths


def _header(records: Iterator[list[str]], path: Path) -> list[str]:
    names = next(records, None)
    if names is None:
        raise DataError(f"{path.name} is empty; its first line must name the columns")
    delimiter = _delimiter(path)
    line = delimiter.join(names)
    for separator, word in _SEPARATORS.items():
        # Names in a .tsv may well contain commas, so these count only if there is a single name.
        counts = separator != delimiter and (separator != "," or len(names) == 1)
        if counts and line.count(separator) >= len(names):
            columns = "is one column" if len(names) == 1 else f"has {len(names)} columns"
            raise DataError(f"{path.name}: the header {line!r} {columns}; {_separated_by(word)}")
    return checked_names(_trimmed(names), path)


def _misfit(fields: Sequence[str], names: Sequence[str], path: Path, *, headed: bool) -> str:
    """The error for a row with more or fewer fields than there are names, and its remedy."""
    line, delimiter = _delimiter(path).join(fields), _delimiter(path)
    other = [word for mark, word in _SEPARATORS.items() if mark != delimiter and line.count(mark) == len(names) - 1]
    if len(fields) == 1 and len(names) > 1 and other:
        remedy = _separated_by(other[0])
    elif len(fields) < len(names):
        remedy = "is one missing?"
    elif delimiter == ",":
        remedy = "put double quotes around a field that holds the separator"
    else:
        remedy = "is there a tab inside a field? Use .jsonl for texts with tabs"
    source = "the header" if headed else "column_names"
    return f"{len(fields)} fields, but {source} has {len(names)} ({listed(names)}); {remedy}"


def _separated_by(word: str) -> str:
    return f"is it separated by {word}? A .csv is separated by commas, a .tsv by tabs"


def _trimmed(cells: list[str]) -> list[str]:
    """Cells without the empty ones at the end; at least one is kept."""
    end = len(cells)
    while end > 1 and not cells[end - 1].strip():
        end -= 1
    return cells[:end]


def _fitted(cells: list[str], width: int) -> list[str]:
    """The first ``width`` cells if the others are empty, else all."""
    return cells if any(cell.strip() for cell in cells[width:]) else cells[:width]
