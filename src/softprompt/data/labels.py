"""Labels of a classification task: which there are, which rows have others, and what tells them apart in tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from ..config.options import DataOptions, nearest
from ..errors import DataError
from ..types import Row
from .task import Task
from .template import listed

MOST_CLASSES = 100
"""With more distinct labels, a task is generation unless it is declared a classification."""


def labels_repeat(counts: Mapping[str, int]) -> bool:
    """Whether more than half of the rows share their label with another row, as in a classification.

    Args:
        counts: label -> number of rows.
    """
    return 2 * sum(rows for rows in counts.values() if rows > 1) > sum(counts.values())


def labels_alike(labels: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of labels that differ only in case or whitespace, which are probably mistakes."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault("".join(label.split()).casefold(), []).append(label)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def alike_note(labels: Iterable[str]) -> str | None:
    """A line for the user on labels that are probably the same; ``None`` without any."""
    groups = [" and ".join(map(repr, group)) for group in labels_alike(labels)]
    return f"labels that differ only in case or blanks are separate classes: {'; '.join(groups)}" if groups else None


def check_labels(rows: Iterable[Row], labels: Sequence[str], options: DataOptions) -> None:
    """Check that every row has one of the labels; without labels (generation), any text is valid.

    Args:
        options: name the label column, and ``max_train_samples``, which may be the reason that a label is unknown.

    Raises:
        DataError: a row has no label, or one that is not in the training rows.
    """
    for row, label in _unknown(rows, labels, Task((), options.label_column, "")):
        remedy = nearest(label, labels) or "; if it is correct, list all labels in the option labels"
        raise DataError(
            f"{row.where}: the label {label!r} is not in the training rows, whose labels are {listed(labels)}"
            f"{remedy}{only_the_first(options.max_train_samples)}"
        )


def new_labels(rows: Iterable[Row], task: Task) -> dict[str, int]:
    """Labels that are not in the training rows, and the number of rows with each; empty for a generation task.

    A rare class may be absent from a few dozen training rows. A label that nearly equals a known one is a typing error.

    Raises:
        DataError: a row has no label, or one that nearly equals a label of the task.
    """
    found: Counter[str] = Counter()
    for row, label in _unknown(rows, task.labels, task):
        if meant := nearest(label, task.labels, least=0.8) or nearest(label.lower(), task.labels, least=0.8):
            raise DataError(f"{row.where}: the label {label!r} is not in the training rows{meant}")
        found[label] += 1
    return dict(found)


def only_the_first(max_train_samples: int | None) -> str:
    """A hint for error messages that ``max_train_samples`` may be why a label is absent; empty without the option."""
    if max_train_samples is None:
        return ""
    return f" (max_train_samples={max_train_samples} reads only the first rows; shuffle the file or raise it)"


def unique_prefixes(labels: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """The shortest prefix of each label, in tokens, that no other label starts with."""
    return tuple(
        next(
            label[:n]
            for n in range(1, len(label) + 1)
            if n == len(label) or all(other[:n] != label[:n] for j, other in enumerate(labels) if j != i)
        )
        for i, label in enumerate(labels)
    )


def check_distinct(token_ids: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse labels with equal tokens, and labels whose tokens are a prefix of another label's.

    A prefix is never less probable than the whole, so the shorter label would always win.

    Args:
        token_ids: label -> its tokens.

    Raises:
        DataError: there are such labels.
    """
    seen: dict[tuple[int, ...], str] = {}
    for label, ids in token_ids.items():
        if ids in seen:
            raise DataError(
                f"the labels {seen[ids]!r} and {label!r} have the same tokens, so the model cannot tell them apart; "
                "rename one"
            )
        seen[ids] = label
    for shorter, longer in pairwise(sorted(seen)):  # in sorted order, a prefix directly precedes what starts with it
        if longer[: len(shorter)] == shorter:
            raise DataError(
                f"in tokens the label {seen[longer]!r} starts with all of {seen[shorter]!r}, which would always win; "
                "rename one, or use a tokenizer with an end token"
            )


def _unknown(rows: Iterable[Row], labels: Sequence[str], task: Task) -> Iterator[tuple[Row, str]]:
    """Rows whose label is not one of ``labels``, with that label; none without labels (generation)."""
    known = set(labels)
    for row in rows:
        label = task.label_of(row.fields, row.where)
        if known and label not in known:
            yield row, label
