"""The rows of a run and the task they make: all that can be checked before torch is there."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.options import DataOptions
from ..data.labels import check_labels
from ..data.sources import Splits, load_splits, make_task
from ..data.task import Task


@dataclass(frozen=True)
class TaskRows:
    """Rows, checked against the task that the training rows make (its end token is not known yet)."""

    splits: Splits
    task: Task


def read_task_rows(options: DataOptions) -> TaskRows:
    """Read and check the rows of a run.

    Raises:
        ConfigError: no source is given, or options that exclude each other.
        DataError: a source, column, label or template is wrong.
    """
    splits = load_splits(options)
    task = make_task(splits, options, end_token_id=None)
    for rows in (splits.train, splits.validation, splits.test):
        check_labels(rows, task, max_train_samples=options.max_train_samples)
    return TaskRows(splits, task)
