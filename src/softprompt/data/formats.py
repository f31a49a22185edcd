"""Files of rows: reading and writing .csv, .tsv, .json, .jsonl and .parquet.

Files are read row by row where the format allows it (all but .json) and written in one atomic step. From
.csv and .tsv everything is text. Text is UTF-8, with or without a byte order mark.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ..config.options import nearest
from ..errors import DataError
from ..storage.atomic import atomic_path
from ..types import Row
from .delimited import DELIMITERS, delimited_columns, read_delimited, write_delimited
from .template import unknown_column
from .text_files import Write, checked_names, json_text, open_text

_ROWS_AT_ONCE = 1024


def read_rows(path: str | Path, column_names: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a file, one after the other; ``Row.where`` is, for example, ``"A.csv, row 3"``.

    Data rows count from 1; for .jsonl the line of the file is given instead.

    Args:
        column_names: names of the columns, for a .csv or .tsv without a header.

    Raises:
        DataError: the file is missing, of another kind, not UTF-8, or broken (at that row); or ``column_names`` are
            given for a format that names its columns.
    """
    source = _existing(path)
    ending = _ending(source)
    if not column_names:
        return _READERS[ending](source)
    _check_nameless(source, ending)
    return read_delimited(source, list(column_names))


def columns_of(path: str | Path, column_names: Sequence[str] | None = None) -> list[str]:
    """The columns of a file in order. For .json and .jsonl, all rows are read.

    Args:
        column_names: as for ``read_rows``.

    Raises:
        DataError: as ``read_rows``.
    """
    source = _existing(path)
    ending = _ending(source)
    if column_names:
        _check_nameless(source, ending)
        return list(column_names)
    if ending == ".parquet":
        with _parquet(source) as file:
            return checked_names(file.schema_arrow.names, source)
    if ending in DELIMITERS:
        return delimited_columns(source)
    return list(dict.fromkeys(name for row in read_rows(source) for name in row.fields))


class RowWriter:
    """Writes rows in order; made by ``open_writer``.

    Attributes:
        columns: the columns of the file.
        num_rows: rows written so far.
    """

    def __init__(self, columns: Sequence[str], write: Write) -> None:
        self.columns = tuple(columns)
        self.num_rows = 0
        self._write = write

    def write(self, values: Mapping[str, Any]) -> None:
        """Write one row; a column that ``values`` lacks is empty (in .json and .jsonl, omitted).

        Raises:
            DataError: ``values`` has a column that the file has not.
        """
        for name in values:
            if name not in self.columns:
                problem = unknown_column(name, self.columns)
                raise DataError(f"row {self.num_rows + 1} does not fit the file: {problem}")
        self._write(values)
        self.num_rows += 1


@contextmanager
def open_writer(path: str | Path, columns: Iterable[str]) -> Iterator[RowWriter]:
    """Open a file of rows for writing, in the format of its extension.

    The file appears, complete, when the ``with`` block ends; after an error there the old one stays.
    Parquet is kept in memory (compactly) until then, since its types depend on all rows.

    Args:
        path: .csv, .tsv, .json, .jsonl or .parquet.
        columns: all columns, in order.

    Raises:
        DataError: an unknown ending, a repeated column, or a place that cannot be written to.
    """
    target = Path(path)
    begin = _WRITERS[_ending(target)]
    names = checked_names(list(columns), target)
    if target.is_dir():
        raise DataError(f"{target} is a folder; give the name of a file in it")
    with ExitStack() as stack:
        try:
            temporary = stack.enter_context(atomic_path(target))
            write = stack.enter_context(begin(temporary, names))
        except OSError as error:
            raise DataError(f"cannot write {target}: {error.strerror or error}") from None
        yield RowWriter(names, write)


def _existing(path: str | Path) -> Path:
    source = Path(path)
    if source.is_dir():
        inside = sorted(p.name for p in source.iterdir() if p.suffix.lower() in _READERS)
        has = f", such as {source / inside[0]}" if inside else f" ({', '.join(ENDINGS)})"
        raise DataError(f"{source} is a folder; give a file of rows{has}")
    if not source.exists():
        beside = [p.name for p in source.parent.iterdir()] if source.parent.is_dir() else []
        raise DataError(f"{source} does not exist{nearest(source.name, beside) or '; check the path'}")
    return source


def _ending(path: Path) -> str:
    ending = path.suffix.lower()
    if ending not in _READERS:
        given = f"the extension {ending!r}" if ending else "no extension"
        raise DataError(f"{path} has {given}; the supported ones are {', '.join(ENDINGS)}{nearest(ending, ENDINGS)}")
    return ending


def _check_nameless(path: Path, ending: str) -> None:
    if ending not in DELIMITERS:
        kinds = " and ".join(DELIMITERS)
        raise DataError(f"column_names is for {kinds} files without a header; {path.name} names its columns itself")


def _read_jsonl(path: Path) -> Iterator[Row]:
    with open_text(path) as handle:
        for number, line in enumerate(handle, start=1):
            if line.strip():
                where = f"{path.name}, line {number}"
                yield _json_row(_parse_json(line, where, ""), where, escapes="\\u" in line)


def _read_json(path: Path) -> Iterator[Row]:
    with open_text(path) as handle:
        text = handle.read()
    value = _parse_json(text, path.name, "; a file with one object a line is called .jsonl")
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise DataError(f'{path.name}: must hold a list of objects, or {{"data": [...]}}, not {_kind(value)}')
    escapes = "\\u" in text
    for number, row in enumerate(rows, start=1):
        yield _json_row(row, f"{path.name}, row {number}", escapes=escapes)


def _parse_json(text: str, where: str, remedy: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if remedy == "" else f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{where}: not valid JSON ({error.msg} at {at}){remedy}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nested too deep
        raise DataError(f"{where}: not usable JSON ({error})") from None


def _json_row(value: Any, where: str, *, escapes: bool) -> Row:
    if not isinstance(value, dict):
        raise DataError(f'{where}: a row must be an object such as {{"text": "..."}}, not {_kind(value)}')
    if escapes:  # only an escape can bring half a character into a file that is UTF-8
        try:
            json_text(value).encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(
                f"{where}: contains half of a character (an escape such as \\ud83d without its pair); remove it"
            ) from None
    return Row(value, where)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _read_parquet(path: Path) -> Iterator[Row]:
    number = 0
    with _parquet(path) as file:
        checked_names(file.schema_arrow.names, path)
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
            for values in batch.to_pylist():
                number += 1
                yield Row(values, f"{path.name}, row {number}")


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path.name}: not a readable Parquet file ({reason}); write it again") from None


@contextmanager
def _write_jsonl(path: Path, columns: list[str]) -> Iterator[Write]:
    with open(path, "w", encoding="utf-8", newline="") as handle:

        def write(values: Mapping[str, Any]) -> None:
            handle.write(_json_object(values, columns) + "\n")

        yield write


@contextmanager
def _write_json(path: Path, columns: list[str]) -> Iterator[Write]:
    with open(path, "w", encoding="utf-8", newline="") as handle:
        handle.write("[")
        before = "\n"

        def write(values: Mapping[str, Any]) -> None:
            nonlocal before
            handle.write(before + _json_object(values, columns))
            before = ",\n"

        yield write
        handle.write("\n]\n")


def _json_object(values: Mapping[str, Any], columns: list[str]) -> str:
    return json_text({name: values[name] for name in columns if name in values})


@contextmanager
def _write_parquet(path: Path, columns: list[str]) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables: list[Any] = []
    rows: list[Mapping[str, Any]] = []

    def flush() -> None:
        tables.append(pa.table({name: pa.array([row.get(name) for row in rows]) for name in columns}))
        rows.clear()

    def write(values: Mapping[str, Any]) -> None:
        rows.append(dict(values))
        if len(rows) >= _ROWS_AT_ONCE:
            flush()

    try:
        yield write
        flush()
        pq.write_table(pa.concat_tables(tables, promote_options="permissive"), path)
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise DataError(f"the rows do not fit Parquet's typed columns ({reason}); write .jsonl instead") from None


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": read_delimited,
    ".tsv": read_delimited,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}

_Begin = Callable[[Path, list[str]], AbstractContextManager[Write]]
_WRITERS: dict[str, _Begin] = {
    ".csv": partial(write_delimited, delimiter=DELIMITERS[".csv"]),
    ".tsv": partial(write_delimited, delimiter=DELIMITERS[".tsv"]),
    ".json": _write_json,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}

ENDINGS = tuple(_READERS)
"""The extensions of the files that can be read and written."""
