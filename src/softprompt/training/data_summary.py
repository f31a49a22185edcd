"""A summary of the rows for the user, before training: counts, and what looks like a mistake."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ..config.options import DataOptions
from ..data.labels import alike_note, labels_repeat
from ..data.non_empty_rows import empty_note
from ..data.sources import Splits
from ..data.task import Task
from ..data.template import is_missing
from ..types import Example
from .callbacks import Callback

_MAX_NAMED = 6


def report_rows(
    options: DataOptions, splits: Splits, task: Task, parts: Mapping[str, Sequence[Example]], callback: Callback
) -> None:
    """Report what was read, what was skipped, and what looks like a mistake.

    Args:
        parts: the encoded rows of each split, to count those that were cut.
    """
    callback.on_message(f"rows: {_counts({name: len(rows) for name, rows in parts.items()})} ({_kind(task)})")
    cut = {name: sum(1 for example in rows if example.num_cut) for name, rows in parts.items()}
    notes = (
        empty_note(splits.num_empty),
        _gaps_note(splits, task),
        any(cut.values())
        and f"cut to fit max_length: {_counts(cut, {n: len(rows) for n, rows in parts.items()})} rows",
        _free_text_note(options, task, [str(example.label) for example in parts["train"]]),
        None if options.labels else alike_note(task.labels),
    )
    for note in notes:
        if note:
            callback.on_warning(note)


def _kind(task: Task) -> str:
    if not task.labels:
        return "free text"
    more = ", ..." if len(task.labels) > _MAX_NAMED else ""
    return f"{len(task.labels)} classes: {', '.join(task.labels[:_MAX_NAMED])}{more}"


def _counts(numbers: Mapping[str, int], of: Mapping[str, int] | None = None) -> str:
    return ", ".join(f"{n} of {of[name]} {name}" if of else f"{n} {name}" for name, n in numbers.items() if n)


def _gaps_note(splits: Splits, task: Task) -> str | None:
    """A note on text columns that are empty in some rows; a row without any text is an error earlier."""
    rows = [*splits.train, *splits.validation, *splits.test, *splits.unlabeled]
    gaps = {name: sum(is_missing(row.fields.get(name)) for row in rows) for name in task.text_columns}
    found = [f"{name!r} in {number}" for name, number in gaps.items() if number]
    return f"empty cells in text columns: {', '.join(found)} of {len(rows)} rows" if found else None


def _free_text_note(options: DataOptions, task: Task, labels: Sequence[str]) -> str | None:
    """A note on why labels were not taken for classes: too many labels, or too few rows of each."""
    if options.task != "auto" or task.labels:
        return None
    why = "labels repeat, but there are too many" if labels_repeat(Counter(labels)) else "most labels occur only once"
    return f"{why}, so they are treated as free text; if they are classes, use --task classification"
