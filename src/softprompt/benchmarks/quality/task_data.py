"""The rows of a task: read once, tested on a fixed sample, drawn anew for each seed. No torch here."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from ...data.labels import check_labels
from ...data.sources import load_splits, make_task
from ...data.task import Task
from ...data.template import to_text
from ...errors import DataError
from ...types import Row
from .specification import TaskOptions

TEST_SEED = 0
"""Seed of the sample of test rows: the same for all methods, seeds and shots."""


@dataclass(frozen=True)
class TaskData:
    """A task's rows.

    Attributes:
        options: where they came from.
        task: template and labels; its end token is not known yet.
        train: all rows to draw from.
        test: the rows to be scored on, ``max_test_rows`` of them.
        gold: index of the right label of each test row.
    """

    name: str
    options: TaskOptions
    task: Task
    train: tuple[Row, ...]
    test: tuple[Row, ...]
    gold: tuple[int, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in order."""
        return self.task.labels

    def draw(self, shots: int, seed: int) -> list[Row]:
        """Training rows of a seed: ``random.Random(seed).sample`` over their positions, as they come.

        Raises:
            DataError: there are fewer rows.
        """
        if shots > len(self.train):
            raise DataError(f"task {self.name}: shots={shots}, but there are only {len(self.train)} training rows")
        return [self.train[i] for i in random.Random(seed).sample(range(len(self.train)), shots)]

    def labels_of(self, rows: Sequence[Row]) -> list[int]:
        """Index of the label of each row."""
        return [self.labels.index(self.task.label_of(row.fields, row.where)) for row in rows]

    def texts_of(self, rows: Sequence[Row]) -> list[str]:
        """The text of each row; of several columns, one a line."""
        columns = self.task.text_columns
        return ["\n".join(to_text(row.fields[name], name, row.where) for name in columns) for row in rows]

    def fingerprint(self, rows: Sequence[Row]) -> str:
        """SHA-256 of all that the task contributes to a cell: drawn and test rows, labels, template, instruction."""
        shown = [self.texts_of(rows), self.labels_of(rows), self.texts_of(self.test), self.gold]
        told = [self.labels, self.task.template, self.task.max_length, self.options.instruction]
        return hashlib.sha256(json.dumps([shown, told]).encode()).hexdigest()


def read_task(name: str, options: TaskOptions, max_test_rows: int | None) -> TaskData:
    """Read and check the rows of a task.

    Raises:
        ConfigError: no source is given, or options that exclude each other.
        DataError: a source, column, label or template is wrong, there are no test rows, or only free targets.
    """
    splits = load_splits(options)
    if not splits.test:
        raise DataError(f"task {name} has no test rows; give test_file")
    task = make_task(splits, options, end_token_id=None)
    if not task.is_classification:
        raise DataError(f"task {name}: labels do not repeat, so it is no classification; a benchmark needs classes")
    test = _sample(splits.test, max_test_rows)
    check_labels(splits.train, task, max_train_samples=options.max_train_samples)
    check_labels(splits.test, task, max_train_samples=options.max_train_samples)
    gold = tuple(task.labels.index(task.label_of(row.fields, row.where)) for row in test)
    return TaskData(name, options, task, tuple(splits.train), tuple(test), gold)


def _sample(rows: Sequence[Row], most: int | None) -> list[Row]:
    """A fixed sample in the order of the file."""
    if most is None or most >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(random.Random(TEST_SEED).sample(range(len(rows)), most))]
