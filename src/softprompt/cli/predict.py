"""``softprompt predict --adapter DIR --text "..."``, or ``--input_file F --output_file G``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config.options import DataOptions, ModelOptions, build_options
from ..errors import ConfigError, DataError
from ..types import Row
from .arguments import takes
from .common import Adapter, load, need_task
from .progress import progress_bar
from .show import console

if TYPE_CHECKING:
    from ..data.empty_rows import RowsWithContent
    from ..data.task import Task
    from ..inference.pipeline import Prompted
    from ..inference.predict import Answer

    Load = Callable[[], Prompted]

LABEL, PROBABILITY, WRITTEN = "predicted_label", "probability", "generated_text"
RAFT_ID, RAFT_LABEL = "ID", "Label"


@dataclass(frozen=True)
class _Source:
    """A file of rows to label; ``column_names`` if it has no header."""

    path: Path
    column_names: list[str] | None

    def rows(self) -> RowsWithContent:
        """The rows of the file, from the start."""
        from ..data.empty_rows import RowsWithContent
        from ..data.formats import read_rows

        return RowsWithContent(read_rows(self.path, self.column_names))


@takes(ModelOptions, DataOptions, only=(*ModelOptions.model_fields, "column_names"))
def command(
    adapter: Adapter,
    text: Annotated[list[str] | None, typer.Option(help="A text to label; may be given several times.")] = None,
    input_file: Annotated[
        Path | None, typer.Option("--input_file", help="Rows to label: .csv, .tsv, .json, ...")
    ] = None,
    output_file: Annotated[Path | None, typer.Option("--output_file", help="Where the labelled rows go.")] = None,
    raft_output: Annotated[
        Path | None,
        typer.Option("--raft_output", help="Write the columns ID and Label, as the RAFT benchmark wants them."),
    ] = None,
    generate: Annotated[bool, typer.Option("--generate", help="Write freely instead of choosing a label.")] = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max_new_tokens", min=1, help="Most tokens to write [default: 64 if there is room]."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--per_device_eval_batch_size", min=1, help="Rows at a time.")] = 32,
    **given: Any,
) -> None:
    """Label a text, or a file of them."""
    if bool(text) == bool(input_file):
        raise ConfigError("give either --text, or --input_file with --output_file")
    if bool(input_file) != bool(output_file or raft_output):
        raise ConfigError("--input_file and --output_file (or --raft_output) go together")
    names = build_options(DataOptions, {"column_names": given.get("column_names")}).column_names
    if names and not input_file:
        raise ConfigError("--column_names is for --input_file; leave it out")
    task = need_task(adapter)
    how = {"generate": generate, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    if raft_output and (generate or not task.is_classification):
        raise ConfigError("--raft_output wants labels, so the task needs classes, and not --generate")
    if input_file:
        source = _Source(input_file, names)
        _label_file(lambda: load(adapter, given), task, source, output_file, raft_output, how)
    else:
        _label_texts(lambda: load(adapter, given), task, text or [], how)


def _label_texts(load: Load, task: Task, texts: list[str], how: dict[str, Any]) -> None:
    if len(task.text_columns) != 1:
        raise ConfigError(f"this adapter reads the columns {', '.join(task.text_columns)}; give them in --input_file")
    rows = [Row({task.text_columns[0]: text}, f"text {i}") for i, text in enumerate(texts, 1)]
    for row in rows:
        task.check_text(row.fields, row.where)
    prompted = load()

    from ..inference.predict import predict

    for row, answer in predict(prompted, task, rows, **how):
        probability = "" if answer.probability is None else f"  {answer.probability:.4f}"
        console.print(f"{answer.text}{probability}", markup=False, soft_wrap=True)
        if answer.cut:
            typer.echo(f"softprompt: {row.where} was cut to fit max_length", err=True)


def _label_file(
    load: Load, task: Task, source: _Source, target: Path | None, raft: Path | None, how: dict[str, Any]
) -> None:
    from ..data.formats import columns_of, open_writer

    chooses = task.is_classification and not how["generate"]
    new = [LABEL, PROBABILITY] if chooses else [WRITTEN]
    columns = columns_of(source.path, source.column_names)
    _check_columns(source.path, columns, task, new if target else [])
    targets = [each for each in (target, raft) if each]
    if len({each.resolve() for each in (source.path, *targets)}) <= len(targets):
        raise ConfigError("the output files must differ from input_file and from each other")
    if raft and RAFT_ID not in columns:
        raise DataError(f"{source.path}: --raft_output needs the column {RAFT_ID!r}, which RAFT's files have")
    total = _check_texts(source, task, need_all=raft is None)
    cut = 0
    with ExitStack() as stack:
        writer = stack.enter_context(open_writer(target, [*columns, *new])) if target else None
        submission = stack.enter_context(open_writer(raft, [RAFT_ID, RAFT_LABEL])) if raft else None
        prompted = load()

        from ..inference.predict import predict

        with progress_bar() as progress:
            bar = progress.add_task("labelling", total=total)
            for row, answer in predict(prompted, task, source.rows(), **how):
                if writer:
                    writer.write({**row.fields, **_values(answer, chooses)})
                if submission:
                    submission.write({RAFT_ID: row.fields[RAFT_ID], RAFT_LABEL: answer.text})
                cut += answer.cut
                progress.update(bar, advance=1)
    if cut:
        typer.echo(f"softprompt: {cut} of {total} texts were cut to fit max_length", err=True)
    console.print(f"{total} rows written to {' and '.join(map(str, targets))}", soft_wrap=True, markup=False)


def _check_texts(source: _Source, task: Task, *, need_all: bool) -> int:
    """Check that all rows have a text, before anything is computed, and count them.

    Args:
        need_all: refuse rows without a text; otherwise only report their number.

    Raises:
        DataError: a row has no text.
    """
    from ..training.data_summary import empty_note

    rows = source.rows()
    total = without = 0
    for row in rows:
        total += 1
        try:
            task.check_text(row.fields, row.where)
        except DataError:
            if need_all:
                raise
            without += 1
    if without:
        typer.echo(f"softprompt: rows without a text, labelled all the same for RAFT: {without}", err=True)
    if note := empty_note(rows.num_empty):
        typer.echo(f"softprompt: {note}", err=True)
    return total


def _check_columns(source: Path, columns: list[str], task: Task, new: list[str]) -> None:
    """The text is there, and the answers overwrite nothing."""
    from ..data.template import Template, unknown_column

    for name in Template(task.template, task.text_columns).fields:
        if name not in columns:
            raise DataError(f"{source}: the adapter reads the column {name!r}, but {unknown_column(name, columns)}")
    taken = [name for name in new if name in columns]
    if taken:
        raise ConfigError(f"{source} has a column {taken[0]!r} already, which the answers would overwrite; rename it")


def _values(answer: Answer, chooses: bool) -> dict[str, Any]:
    return {LABEL: answer.text, PROBABILITY: round(answer.probability or 0.0, 6)} if chooses else {WRITTEN: answer.text}
