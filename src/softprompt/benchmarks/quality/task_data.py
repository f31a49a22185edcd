"""The rows of a task: a fixed sample of test rows, and a sample of training rows for each seed. No torch."""

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
"""Seed of the sample of test rows, the same for all methods, seeds and numbers of training rows."""


@dataclass(frozen=True)
class TaskData:
    """A task's rows.

    Attributes:
        options: the source of the rows, and the instruction.
        task: template and labels, without an end token, which depends on the tokenizer.
        train: all training rows; samples are drawn from them.
        test: the test rows, at most ``max_test_rows``.
        gold: index of the correct label of each test row.
    """

    name: str
    options: TaskOptions
    task: Task
    train: tuple[Row, ...]
    test: tuple[Row, ...]
    gold: tuple[int, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in order."""
        return self.task.labels

    def draw(self, shots: int, seed: int) -> list[Row]:
        """The training rows of a seed, in the order of ``random.Random(seed).sample`` over their positions.

        Raises:
            DataError: there are fewer than ``shots`` rows.
        """
        if shots > len(self.train):
            raise DataError(f"task {self.name}: shots={shots}, but there are only {len(self.train)} training rows")
        return [self.train[i] for i in random.Random(seed).sample(range(len(self.train)), shots)]

    def labels_of(self, rows: Sequence[Row]) -> list[int]:
        """Index of the label of each row."""
        return [self.labels.index(self.task.label_of(row.fields, row.where)) for row in rows]

    def texts_of(self, rows: Sequence[Row]) -> list[str]:
        """The text of each row; several columns are joined by line breaks."""
        columns = self.task.text_columns
        return ["\n".join(to_text(row.fields[name], name, row.where) for name in columns) for row in rows]

    def fingerprint(self, rows: Sequence[Row]) -> str:
        """SHA-256 of everything in the task that determines a result: rows, labels, template and instruction."""
        contents = [self.texts_of(rows), self.labels_of(rows), self.texts_of(self.test), self.gold]
        settings = [self.labels, self.task.template, self.task.max_length, self.options.instruction]
        return hashlib.sha256(json.dumps([contents, settings]).encode()).hexdigest()


def read_task(name: str, options: TaskOptions, max_test_rows: int | None) -> TaskData:
    """Read and check the rows of a task.

    Raises:
        ConfigError: no source is given, or options contradict each other.
        DataError: a source, column, label or template is invalid, there are no test rows, or the targets are free text.
    """
    splits = load_splits(options)
    if not splits.test:
        raise DataError(f"task {name} has no test rows; give test_file")
    task = make_task(splits, options, end_token_id=None)
    if not task.is_classification:
        raise DataError(f"task {name}: labels do not repeat, so they are not classes; give another label_column")
    test = _sample(splits.test, max_test_rows)
    check_labels(splits.train, task.labels, options)
    check_labels(splits.test, task.labels, options)
    gold = tuple(task.labels.index(task.label_of(row.fields, row.where)) for row in test)
    return TaskData(name, options, task, tuple(splits.train), tuple(test), gold)


def _sample(rows: Sequence[Row], most: int | None) -> list[Row]:
    """A fixed sample, in the order of the file."""
    if most is None or most >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(random.Random(TEST_SEED).sample(range(len(rows)), most))]
