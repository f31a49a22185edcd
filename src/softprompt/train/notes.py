"""What a person should know of the rows before anything is learned from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ..data import Splits, labels_alike, labels_repeat
from ..options import DataOptions
from ..task import Task
from ..template import is_missing
from ..types import Example
from .listener import Listener

_MOST_NAMED = 6


def tell_rows(
    options: DataOptions, splits: Splits, task: Task, parts: Mapping[str, Sequence[Example]], listener: Listener
) -> None:
    """Say what was read, what was left out, and what looks like a slip.

    Args:
        parts: the encoded rows by name, for how many were cut.
    """
    listener.note(f"rows: {_counts({name: len(rows) for name, rows in parts.items()})} ({_kind(task)})")
    cut = {name: sum(1 for example in rows if example.num_cut) for name, rows in parts.items()}
    notes = (
        empty_note(splits.num_empty),
        _gaps_note(splits, task),
        any(cut.values())
        and f"cut to fit max_length: {_counts(cut, {n: len(rows) for n, rows in parts.items()})} rows",
        _free_text_note(options, task, [str(example.label) for example in parts["train"]]),
        None if options.labels else alike_note(task),
    )
    for note in notes:
        if note:
            listener.note(note)


def empty_note(num_empty: int) -> str | None:
    """A line on rows that were left out."""
    return f"rows left out, since they are empty in all columns: {num_empty}" if num_empty else None


def alike_note(task: Task) -> str | None:
    """A line on labels that may be the same one, written in several ways."""
    groups = [" and ".join(map(repr, group)) for group in labels_alike(task.labels)]
    if not groups:
        return None
    return f"labels that differ only by case or blanks are classes of their own: {'; '.join(groups)}"


def _kind(task: Task) -> str:
    if not task.labels:
        return "free text"
    more = ", ..." if len(task.labels) > _MOST_NAMED else ""
    return f"{len(task.labels)} classes: {', '.join(task.labels[:_MOST_NAMED])}{more}"


def _counts(numbers: Mapping[str, int], of: Mapping[str, int] | None = None) -> str:
    return ", ".join(f"{n} of {of[name]} {name}" if of else f"{n} {name}" for name, n in numbers.items() if n)


def _gaps_note(splits: Splits, task: Task) -> str | None:
    """Of several text columns, those without content in some rows; a row without any is an error before."""
    rows = [*splits.train, *splits.validation, *splits.test, *splits.unlabeled]
    gaps = {name: sum(is_missing(row.fields.get(name)) for row in rows) for name in task.text_columns}
    found = [f"{name!r} in {number}" for name, number in gaps.items() if number]
    return f"text columns that are empty: {', '.join(found)} of {len(rows)} rows" if found else None


def _free_text_note(options: DataOptions, task: Task, labels: Sequence[str]) -> str | None:
    """Why labels were not taken for classes, which few rows of each make hard to see."""
    if options.task != "auto" or task.labels:
        return None
    why = "labels repeat, but there are too many" if labels_repeat(Counter(labels)) else "most labels occur only once"
    return f"{why}, so they are taken for free text; if they are classes, give --task classification"
