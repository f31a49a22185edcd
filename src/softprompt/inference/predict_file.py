"""Predictions for a file of rows, written to another file. Rows are checked before torch is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.formats import columns_of, open_writer, read_rows
from ..data.non_empty_rows import NonEmptyRows, empty_note
from ..data.task import Task
from ..data.template import Template, unknown_column
from ..errors import ConfigError, DataError
from .evaluate_adapter import ProgressCallback

if TYPE_CHECKING:
    from .pipeline import Predictor
    from .predict import Answer

LABEL, PROBABILITY, GENERATED = "predicted_label", "probability", "generated_text"
RAFT_ID, RAFT_LABEL = "ID", "Label"


@dataclass(frozen=True)
class InputFile:
    """A file of rows to predict; ``column_names`` if it has no header."""

    path: Path
    column_names: list[str] | None = None

    def rows(self) -> NonEmptyRows:
        """The rows of the file, from the start."""
        return NonEmptyRows(read_rows(self.path, self.column_names))

    def columns(self) -> list[str]:
        """The columns of the file."""
        return columns_of(self.path, self.column_names)


def predict_file(
    load: Callable[[], Predictor],
    task: Task,
    source: InputFile,
    *,
    output_file: Path | None,
    raft_output: Path | None = None,
    generate: bool = False,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    callback: ProgressCallback,
) -> int:
    """Predict every row of a file.

    Args:
        load: loads the adapter; called once the file has been checked.
        task: of the adapter.
        output_file: receives the rows with the columns ``predicted_label`` and ``probability``, or ``generated_text``.
        raft_output: receives the columns ``ID`` and ``Label``, as submissions to the RAFT benchmark have them.
        generate, max_new_tokens, batch_size: as for ``predict_rows``.

    Returns:
        The number of rows.

    Raises:
        ConfigError: output files that overwrite the source, one of its columns or each other; ``raft_output`` without
            labels.
        DataError: a file cannot be read or written, or a row has no text.
    """
    labelled = task.is_classification and not generate
    if raft_output and not labelled:
        raise ConfigError("--raft_output needs labels: the task must be a classification, and --generate is not for it")
    columns, new = source.columns(), [LABEL, PROBABILITY] if labelled else [GENERATED]
    check_columns(source.path, columns, task, new if output_file else [])
    check_targets(source.path, columns, output_file, raft_output)
    total = check_texts(source, [task], need_texts=raft_output is None, callback=callback)
    truncated = 0
    with ExitStack() as stack:
        writer = stack.enter_context(open_writer(output_file, [*columns, *new])) if output_file else None
        submission = stack.enter_context(open_writer(raft_output, [RAFT_ID, RAFT_LABEL])) if raft_output else None
        predictor = load()

        from .predict import predict_rows

        how: dict[str, Any] = {"generate": generate, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
        with callback.progress("predicting", total) as progress:
            for row, answer in predict_rows(predictor, predictor.task, source.rows(), **how):
                if writer:
                    writer.write({**row.fields, **_values(answer, labelled)})
                if submission:
                    submission.write({RAFT_ID: row.fields[RAFT_ID], RAFT_LABEL: answer.text})
                truncated += answer.truncated
                progress(1)
    if truncated:
        callback.on_warning(f"{truncated} of {total} texts were cut to fit max_length")
    return total


def check_columns(source: Path, columns: Sequence[str], task: Task, new: Sequence[str]) -> None:
    """Check that the template's columns exist, and that the new ones do not."""
    for name in Template(task.template, task.text_columns).fields:
        if name not in columns:
            raise DataError(f"{source}: the adapter reads the column {name!r}, but {unknown_column(name, columns)}")
    taken = [name for name in new if name in columns]
    if taken:
        raise ConfigError(f"{source} has a column {taken[0]!r}, which the predictions would overwrite; rename it")


def check_targets(source: Path, columns: Sequence[str], target: Path | None, raft: Path | None) -> None:
    """Check that the output files differ from the source and from each other, and that RAFT's column exists."""
    targets = [each for each in (target, raft) if each]
    if len({each.resolve() for each in (source, *targets)}) <= len(targets):
        raise ConfigError("the output files must differ from input_file and from each other")
    if raft and RAFT_ID not in columns:
        raise DataError(f"{source}: --raft_output needs the column {RAFT_ID!r}, which RAFT's files have")


def check_texts(source: InputFile, tasks: Iterable[Task], *, need_texts: bool, callback: ProgressCallback) -> int:
    """Check that every row has a text for each task, and return the number of rows.

    Args:
        need_texts: refuse rows without a text; otherwise only report their number.

    Raises:
        DataError: a row has no text.
    """
    rows = source.rows()
    total = without = 0
    for row in rows:
        total += 1
        try:
            for task in tasks:
                task.check_text(row.fields, row.where)
        except DataError:
            if need_texts:
                raise
            without += 1
    if without:
        callback.on_warning(f"rows without a text, labelled anyway since RAFT needs every ID: {without}")
    if note := empty_note(rows.num_empty):
        callback.on_warning(note)
    return total


def _values(answer: Answer, labelled: bool) -> dict[str, Any]:
    if labelled:
        return {LABEL: answer.text, PROBABILITY: round(answer.probability or 0.0, 6)}
    return {GENERATED: answer.text}
