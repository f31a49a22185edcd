"""Records of delimited text, as Python's ``csv.reader(strict=True)`` reads them.

The ``csv`` module refuses fields of more than 131,072 characters, less than a long document. Its limit can only be
changed for the whole process, so these functions read the records themselves.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator

MOST_CHARACTERS = 1 << 24
"""Of a field: some thousand pages."""


def read_records(lines: Iterable[str], delimiter: str, *, quoted: bool) -> Iterator[list[str]]:
    """The cells of each record; none for a blank line.

    Args:
        lines: with their line ends, from a file opened with ``newline=""``.
        quoted: a cell that begins with ``"`` ends with one, and may hold delimiters, line ends and doubled quotes.
            Otherwise each line is a record, and quotes have no meaning.

    Raises:
        csv.Error: text follows a closing quote, a quote is not closed, or a cell is too long.
    """
    lines = iter(lines)
    for line in lines:
        if quoted and '"' in line:
            yield _quoted_record(line, lines, delimiter)
        else:
            text = line.rstrip("\r\n")
            yield [_checked(cell) for cell in text.split(delimiter)] if text else []


def _quoted_record(line: str, lines: Iterator[str], delimiter: str) -> list[str]:
    cells, start = [], 0
    while True:
        if line.startswith('"', start):
            cell, line, end = _quoted_cell(line, start + 1, lines)
        else:
            end = line.find(delimiter, start)
            end = len(line.rstrip("\r\n")) if end < 0 else end
            cell = line[start:end]
        cells.append(_checked(cell))
        if not line[end:].strip("\r\n"):
            return cells
        if not line.startswith(delimiter, end):
            raise csv.Error(f"'{delimiter}' expected after '\"'")
        start = end + 1


def _quoted_cell(line: str, start: int, lines: Iterator[str]) -> tuple[str, str, int]:
    """The cell whose text begins at ``start``, the line on which it ends, and the position after its closing quote."""
    parts: list[str] = []
    size = 0
    while True:
        end = line.find('"', start)
        parts.append(line[start:] if end < 0 else line[start:end])
        size += len(parts[-1])
        if size > MOST_CHARACTERS:
            raise _too_long()
        if end < 0:
            following = next(lines, None)
            if following is None:
                raise csv.Error("unexpected end of data")
            line, start = following, 0
        elif line.startswith('"', end + 1):
            parts.append('"')
            start = end + 2
        else:
            return "".join(parts), line, end + 1


def _checked(cell: str) -> str:
    if len(cell) > MOST_CHARACTERS:
        raise _too_long()
    return cell


def _too_long() -> csv.Error:
    return csv.Error(f"field larger than field limit ({MOST_CHARACTERS})")
