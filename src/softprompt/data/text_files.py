"""Shared by the formats: text files, column names, and values as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ..errors import DataError

Write = Callable[[Mapping[str, Any]], None]
"""Writes a row."""


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 file, with or without a byte order mark, for reading.

    Raises:
        DataError: it cannot be read, or is not UTF-8 (with the line).
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            yield handle
    except UnicodeDecodeError:
        raise DataError(f"{path.name}, {_undecodable(path)}; save the file as UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def _undecodable(path: Path) -> str:
    """The first line that is not UTF-8. The decoder reads ahead, so its position does not tell."""
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"line {number}: not UTF-8 (byte 0x{line[error.start]:02x})"
    return "its end: not UTF-8"


def checked_names(names: Sequence[str], path: Path) -> list[str]:
    """Column names, checked.

    Raises:
        DataError: one is empty or occurs twice.
    """
    for number, name in enumerate(names, start=1):
        if not name.strip():
            raise DataError(
                f"{path.name}: column {number} of {len(names)} has no name; name it or remove it "
                "(pandas writes its index as such a column; to_csv(index=False) does not)"
            )
        if name in names[: number - 1]:
            first = names.index(name) + 1
            raise DataError(f"{path.name}: columns {first} and {number} are both called {name!r}; rename one")
    return list(names)


def json_text(value: Any) -> str:
    """A value as JSON on one line, with non-ASCII characters unescaped."""
    return json.dumps(value, ensure_ascii=False, default=str)  # str: dates and decimals from parquet
