"""``softprompt predict --adapter DIR --text "..."``, or ``--input_file F --output_file G``; also several adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config.options import DataOptions, ModelOptions, build_options
from ..data.task import Task
from ..errors import ConfigError
from ..inference.adapter_files import RAW_TASK, WITHOUT_TASK, fetch_adapter, named_adapters, read_task
from ..inference.predict_file import InputFile, predict_file
from ..inference.predict_several import predict_with_several
from ..storage.atomic import expand
from ..types import Row
from .arguments import takes
from .common import load, model_options
from .show import console, working
from .terminal import Terminal

if TYPE_CHECKING:
    from ..inference.library import PromptLibrary


@takes(ModelOptions, DataOptions, only=(*ModelOptions.model_fields, "column_names"))
def command(
    adapter: Annotated[
        list[str],
        typer.Option(
            "--adapter",
            help="A folder, or a Hub id (owner/name). Several, as NAME=DIR or without names, share a base model.",
            callback=lambda given: [expand(each) for each in given],
        ),
    ],
    text: Annotated[list[str] | None, typer.Option(help="A text; may be given several times.")] = None,
    input_file: Annotated[
        Path | None, typer.Option("--input_file", help="Rows to predict: .csv, .tsv, .json, .jsonl or .parquet.")
    ] = None,
    output_file: Annotated[
        Path | None, typer.Option("--output_file", help="File for the rows with their predictions.")
    ] = None,
    raft_output: Annotated[
        Path | None,
        typer.Option("--raft_output", help="File for the columns ID and Label, as the RAFT benchmark needs them."),
    ] = None,
    generate: Annotated[
        bool, typer.Option("--generate", help="Generate a text instead of predicting a label.")
    ] = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max_new_tokens", min=1, help="Most tokens to generate [default: 64, less in a short context]."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--per_device_eval_batch_size", min=1, help="Rows per forward pass.")] = 32,
    **given: Any,
) -> None:
    """Predict the label of a text, or of every row of a file."""
    if bool(text) == bool(input_file):
        raise ConfigError("give either --text, or --input_file with --output_file")
    if bool(input_file) != bool(output_file or raft_output):
        raise ConfigError("--input_file and --output_file (or --raft_output) go together")
    names = build_options(DataOptions, {"column_names": given.get("column_names")}).column_names
    if names and not input_file:
        raise ConfigError("--column_names is for --input_file; leave it out")
    terminal = Terminal(warnings_to_stderr=True)
    source = None if input_file is None else InputFile(input_file, names)
    if len(adapter) > 1:
        if generate or raft_output or max_new_tokens:
            raise ConfigError("--generate, --max_new_tokens and --raft_output are for a single adapter; leave them out")
        _predict_with_several(named_adapters(adapter), given, text or [], source, output_file, batch_size, terminal)
        return
    name, task = adapter[0], _task_of(adapter[0], terminal)
    how: dict[str, Any] = {"generate": generate, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    if source is None:
        _predict_texts(name, given, task, text or [], how, terminal)
        return
    files: dict[str, Any] = {"output_file": output_file, "raft_output": raft_output}
    total = predict_file(lambda: load(name, given), task, source, **files, **how, callback=terminal)
    _print_total(total, [file for file in files.values() if file])


def _print_total(total: int, files: Sequence[Path]) -> None:
    console.print(f"{total} rows written to {' and '.join(map(str, files))}", soft_wrap=True, markup=False)


def _task_of(adapter: str, terminal: Terminal) -> Task:
    fetch_adapter(adapter)
    task = read_task(adapter)
    if task is None:
        terminal.on_warning(f"{adapter}: {WITHOUT_TASK}")
    return task or RAW_TASK


def _predict_with_several(
    adapters: Mapping[str, str],
    given: dict[str, Any],
    texts: Sequence[str],
    source: InputFile | None,
    output_file: Path | None,
    batch_size: int,
    terminal: Terminal,
) -> None:
    tasks = {name: _task_of(folder, terminal) for name, folder in adapters.items()}

    def open_library() -> PromptLibrary:
        with working("loading the base model ..."):
            from ..inference.library import PromptLibrary

            return PromptLibrary.from_options(adapters, model_options(given))

    if source is not None and output_file is not None:
        total = predict_with_several(open_library, tasks, source, output_file, batch_size=batch_size, callback=terminal)
        _print_total(total, [output_file])
        return
    for task in tasks.values():
        _text_rows(task, texts)
    library, width = open_library(), max(map(len, adapters))
    for text in texts:
        for name, answer in library.predict_all(text, list(adapters)).items():
            shown = answer if isinstance(answer, str) else f"{answer.label}  {answer.probability:.4f}"
            console.print(f"{name:<{width}}  {shown}", markup=False, soft_wrap=True)


def _text_rows(task: Task, texts: Sequence[str]) -> list[Row]:
    """Texts from the command line as rows of a task with one text column."""
    if len(task.text_columns) != 1:
        raise ConfigError(f"this adapter reads the columns {', '.join(task.text_columns)}; give them in --input_file")
    rows = [Row({task.text_columns[0]: text}, f"text {i}") for i, text in enumerate(texts, 1)]
    for row in rows:
        task.check_text(row.fields, row.where)
    return rows


def _predict_texts(
    adapter: str, given: dict[str, Any], task: Task, texts: list[str], how: dict[str, Any], terminal: Terminal
) -> None:
    rows = _text_rows(task, texts)
    predictor = load(adapter, given)

    from ..inference.predict import predict_rows

    for row, answer in predict_rows(predictor, predictor.task, rows, **how):
        probability = "" if answer.probability is None else f"  {answer.probability:.4f}"
        console.print(f"{answer.text}{probability}", markup=False, soft_wrap=True)
        if answer.truncated:
            terminal.on_warning(f"{row.where} was cut to fit max_length")
