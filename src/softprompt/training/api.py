"""``softprompt.train``: checks options and rows, which may be in memory, then runs ``pipeline.train``."""

from __future__ import annotations

import os
from typing import Any

from ..config.options import TrainOptions, build_options
from ..data.in_memory import Rows
from ..data.sources import Role, load_training_splits
from .callbacks import Callback
from .pipeline import TrainResult
from .pipeline import train as run


def train(
    *,
    train_dataset: Rows | None = None,
    validation_dataset: Rows | None = None,
    test_dataset: Rows | None = None,
    unlabeled_dataset: Rows | None = None,
    callback: Callback | None = None,
    **options: Any,
) -> TrainResult | None:
    """Train a soft prompt, evaluate it, and write the adapter folder.

    Args:
        train_dataset, validation_dataset, test_dataset, unlabeled_dataset: rows in memory, in place of the options
            ``train_file`` and so on: pairs (text, label), dictionaries of columns, a pandas ``DataFrame`` or a
            ``datasets.Dataset``; or the path of a file. Unlabeled rows may be plain texts.
        callback: receives messages, warnings, steps and validation scores; by default, only warnings are shown.
        **options: those of ``softprompt train`` (``output_dir`` is required), with the same names and defaults.

    Returns:
        The output folder, the training history, and the metrics if there are test rows; ``None`` after a dry run.

    Raises:
        ConfigError: an option is unknown or invalid, or the output folder holds another run.
        DataError: a file, column, row, label or template is wrong.
        BaseModelError: the base model cannot be found or loaded.
        TrainingError: the loss is not finite.
    """
    given: dict[Role, Rows | None] = {
        "train": train_dataset,
        "validation": validation_dataset,
        "test": test_dataset,
        "unlabeled": unlabeled_dataset,
    }
    in_memory: dict[Role, Rows] = {}
    for role, rows in given.items():
        if isinstance(rows, (str, os.PathLike)):
            options[f"{role}_file"] = rows
        elif rows is not None:
            in_memory[role] = rows
    checked = build_options(TrainOptions, options)
    return run(checked, callback, load_training_splits(checked, in_memory))
