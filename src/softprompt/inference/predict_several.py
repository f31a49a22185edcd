"""Predictions of several adapters for one file, in one pass: a column for each adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.formats import open_writer
from ..data.task import Task
from .evaluate_adapter import ProgressCallback
from .predict_file import InputFile, check_columns, check_targets, check_texts

if TYPE_CHECKING:
    from .library import PromptLibrary
    from .pipeline import Prediction


def predict_with_several(
    open_library: Callable[[], PromptLibrary],
    tasks: Mapping[str, Task],
    source: InputFile,
    output_file: Path,
    *,
    batch_size: int,
    callback: ProgressCallback,
) -> int:
    """Predict every row of a file with several adapters.

    Args:
        open_library: loads the adapters; called once the file has been checked.
        tasks: of the adapters, by name.
        output_file: receives the rows, with a column for each adapter, named like it: a label or a generated text.
        batch_size: rows that are computed together.

    Returns:
        The number of rows.

    Raises:
        ConfigError: the output file overwrites the source or one of its columns.
        DataError: a file cannot be read or written, or a row has no text.
    """
    columns, names = source.columns(), list(tasks)
    for task in tasks.values():
        check_columns(source.path, columns, task, names)
    check_targets(source.path, columns, output_file, None)
    total = check_texts(source, tasks.values(), need_texts=True, callback=callback)
    with open_writer(output_file, [*columns, *names]) as writer:
        library, rows = open_library(), iter(source.rows())
        with callback.progress("predicting", total) as progress:
            while chunk := list(islice(rows, batch_size)):
                found = library.predict([row.fields for row in chunk for _ in names], names * len(chunk))
                answers = iter(found)
                for row in chunk:
                    writer.write({**row.fields, **{name: _text(next(answers)) for name in names}})
                progress(len(chunk))
    return total


def _text(answer: Prediction | str) -> str:
    return answer if isinstance(answer, str) else answer.label
