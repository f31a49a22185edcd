"""Templates: they turn the columns of a row into the text that the model reads, in training and inference.

A template is text with ``{column}`` fields. A field is a column name, which may contain spaces, without
attribute, index, conversion or format, so a template from an untrusted file can only insert columns.
``{{`` and ``}}`` stand for braces. Values are inserted unchanged and are not parsed as templates.

Two short forms make a template independent of the name of the text column:

==================  ==================================================================================
``{text}``          the content of the text column, unless the data have a column of that name, or the
                    template names its text column too
``{text_column}``   the name of the text column, unless the data have a column of that name
==================  ==================================================================================

``resolve_template`` replaces both by column names, so that a stored template needs no further
information. In a template from the user, ``\\n`` is a line break, ``\\t`` a tab and ``\\\\`` a backslash, since a
shell passes them on literally; the stored template contains the characters themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..config.options import nearest
from ..errors import DataError

DEFAULT_TEMPLATE = "{text_column} : {text} Label : "
"""The template of the guide, for one text column; several have ``name : value`` each."""

_PIECES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}
_MOST_LISTED = 20


class Piece(NamedTuple):
    """Literal text, or a field (``is_field``): the name of its column or, in a rendered row, its content."""

    text: str
    is_field: bool


class Template:
    """A parsed template.

    Attributes:
        source: the template as given.
        fields: the columns that it contains, in order, without repetition.

    Raises:
        DataError: an unmatched brace, an empty field, or a missing text column.
    """

    def __init__(self, template: str, text_columns: Sequence[str]) -> None:
        self.source = template
        self.text_columns = _checked_columns(text_columns)
        self._pieces = _parse(template)
        self._short = _short_forms(self._pieces, self.text_columns, known=self.text_columns)
        plain = [self._short.get(p.text, p) if p.is_field else p for p in self._pieces]
        self.fields = _fields(plain)
        _check_reads_text(self)

    def __repr__(self) -> str:
        return f"Template({self.source!r}, {list(self.text_columns)!r})"

    def render(self, values: Mapping[str, Any], where: str) -> str:
        """The text of one row. Missing values become empty text.

        Args:
            values: the columns of the row; others than the template's are ignored.
            where: origin of the row, for error messages.

        Raises:
            DataError: a column is missing, or its value is not a text or a number.
        """
        return "".join(piece.text for piece in self.pieces(values, where))

    def pieces(self, values: Mapping[str, Any], where: str) -> list[Piece]:
        """The pieces that ``render`` joins: literal text, merged where adjacent, and the contents of columns."""
        found: list[Piece] = []
        for piece in self._pieces:
            if piece.is_field and piece.text not in values:
                piece = self._short.get(piece.text, piece)
            if piece.is_field:
                found.append(Piece(self._value(piece.text, values, where), True))
            elif found and not found[-1].is_field:
                found[-1] = Piece(found[-1].text + piece.text, False)
            else:
                found.append(piece)
        return found

    def _value(self, column: str, values: Mapping[str, Any], where: str) -> str:
        if column not in values:
            problem = _unknown_field(column, list(values))
            raise DataError(f"{where}: the template {_shown(self.source)} reads {{{column}}}, but {problem}")
        return to_text(values[column], column, where)


def resolve_template(template: str | None, text_columns: Sequence[str], columns: Iterable[str] | None = None) -> str:
    """The template as it is stored: every field is the name of a column.

    Args:
        template: as the user gave it, with ``\\n`` for a line break and so on; ``None`` for the default.
        text_columns: the columns that hold the text, at least one.
        columns: all columns of the data, which the fields are checked against; ``None`` for no check.

    Raises:
        DataError: the template is malformed, contains an unknown column, or lacks a text column.
    """
    names = _checked_columns(text_columns)
    if template is None:
        return _default(names)
    known = names if columns is None else tuple(columns)
    pieces = [p if p.is_field else Piece(_unescaped(p.text), False) for p in _parse(template)]
    short = _short_forms(pieces, names, known=known)
    pieces = [short.get(p.text, p) if p.is_field else p for p in pieces]
    if columns is not None:
        for field in _fields(pieces):
            if field not in known:
                problem = _unknown_field(field, known)
                raise DataError(f"the template {_shown(template)} reads {{{field}}}, but {problem}")
    unread = [name for name in names if name not in _fields(pieces)]
    if unread:
        raise DataError(_never_reads(template, unread[0]))
    return _join(pieces)


def renamed(template: str, names: Mapping[str, str]) -> str:
    """A stored template with some of its columns renamed."""
    pieces = _parse(template)
    return _join(Piece(names.get(p.text, p.text), p.is_field) if p.is_field else p for p in pieces)


def _unescaped(text: str) -> str:
    return re.sub(r"\\[nt\\]", lambda found: _ESCAPES[found.group()], text)


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: ``None``, NaN, NaT, pandas' ``NA``, or blank text.

    Text such as ``"NA"`` or ``"None"`` is not missing.
    """
    if value is None or isinstance(value, str):
        return not (value and value.strip())
    try:
        return bool(value != value)  # NaN and NaT
    except (TypeError, ValueError, ArithmeticError):  # NA; an array; a decimal's signalling NaN
        return type(value).__name__ in ("NAType", "Decimal")


def to_text(value: Any, column: str, where: str) -> str:
    """The text of one cell: empty for a missing value, the usual form of numbers and dates.

    Raises:
        DataError: the cell contains a list, an object, bytes, or half of a surrogate pair.
    """
    if not isinstance(value, str) and is_missing(value):
        return ""
    if isinstance(value, (bytes, bytearray, Mapping, Sequence, set)) and not isinstance(value, str):
        kind = type(value).__name__
        raise DataError(f"{where}: the column {column!r} holds a {kind}; it must be one text or number")
    text = str(value)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise DataError(
            f"{where}: the column {column!r} contains half of a character ({half}, a lone surrogate); remove it"
        ) from None
    return text


def unknown_column(name: str, columns: Iterable[str]) -> str:
    """``"there is no column 'x'; the columns are 'a' and 'b'; did you mean 'a'?"``."""
    known = [str(column) for column in columns]
    there_are = "the only column is" if len(known) == 1 else "the columns are"
    return f"there is no column {name!r}; {there_are} {listed(known) or 'none'}{nearest(name, known)}"


def listed(names: Iterable[str]) -> str:
    """Names for a message, quoted; of many, the first ones and the number of the others."""
    quoted = [repr(name) for name in names]
    if len(quoted) > _MOST_LISTED:
        return f"{', '.join(quoted[:_MOST_LISTED])} and {len(quoted) - _MOST_LISTED} more"
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else "".join(quoted)


def _parse(template: str) -> list[Piece]:
    pieces = []
    end = 0
    for match in _PIECES.finditer(template):
        pieces.append(Piece(template[end : match.start()], False))
        end = match.end()
        found = match.group()
        if found in ("{{", "}}"):
            pieces.append(Piece(found[0], False))
        elif match.group(1) is None:
            raise DataError(
                f"the template {_shown(template)} has a single {found!r} at character {match.start() + 1}; "
                f"write {found * 2!r} for a brace, or {{column}} for a field"
            )
        elif not match.group(1).strip():
            raise DataError(f"the template {_shown(template)} has an empty field {found!r}; name a column in it")
        else:
            pieces.append(Piece(match.group(1), True))
    pieces.append(Piece(template[end:], False))
    return [piece for piece in pieces if piece.text]


def _short_forms(pieces: Sequence[Piece], text_columns: tuple[str, ...], known: Sequence[str]) -> dict[str, Piece]:
    """The short forms in this template, and what they stand for; those that are columns are omitted."""
    fields = _fields(pieces)
    used = [name for name in ("text", "text_column") if name in fields and name not in known]
    if used and len(text_columns) > 1:
        instead = " ".join(f"{{{name}}}" for name in text_columns)
        raise DataError(
            f"{{{used[0]}}} in a template stands for the only text column, but there are {len(text_columns)}; "
            f"name the columns instead: {instead}"
        )
    forms = {"text": Piece(text_columns[0], True), "text_column": Piece(text_columns[0], False)}
    # In a template that names its text column, {text} is another column. So a stored template is never ambiguous, even
    # if the data at inference lack that other column.
    if text_columns[0] in fields:
        del forms["text"]
    return {name: form for name, form in forms.items() if name in used}


def _checked_columns(text_columns: Sequence[str]) -> tuple[str, ...]:
    names = (text_columns,) if isinstance(text_columns, str) else tuple(text_columns)
    if not names:
        raise DataError("a template needs at least one text column; name it with text_column")
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise DataError(f"text_column names {repeated[0]!r} twice; name each column once")
    braced = [name for name in names if "{" in name or "}" in name]
    if braced:
        raise DataError(
            f"the text column {braced[0]!r} has a brace in its name, which a template cannot hold; rename it"
        )
    return names


def _check_reads_text(template: Template) -> None:
    for column in template.text_columns:
        if column not in template.fields:
            raise DataError(_never_reads(template.source, column))


def _never_reads(template: str, column: str) -> str:
    return (
        f"the template {_shown(template)} never reads the text column {column!r}; "
        f"add {{{column}}} to it, or leave that column out of text_column"
    )


def _unknown_field(field: str, columns: Sequence[str]) -> str:
    problem = unknown_column(field, columns)
    head = re.split(r"[.\[!:]", field, maxsplit=1)[0]
    if head != field:
        problem += " (a field is the plain name of a column: no attribute, index, conversion or format)"
    return problem


def _default(text_columns: tuple[str, ...]) -> str:
    return " ".join(f"{name} : {{{name}}}" for name in text_columns) + " Label : "


def _fields(pieces: Iterable[Piece]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(piece.text for piece in pieces if piece.is_field))


def _join(pieces: Iterable[Piece]) -> str:
    return "".join(f"{{{p.text}}}" if p.is_field else p.text.replace("{", "{{").replace("}", "}}") for p in pieces)


def _shown(template: str) -> str:
    return repr(template) if len(template) <= 80 else repr(template[:77] + "...")
