"""``softprompt predict --adapter DIR --text "..."``, or ``--input_file F --output_file G``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..config.options import DataOptions, ModelOptions, build_options
from ..data.task import Task
from ..errors import ConfigError
from ..inference.adapter_files import RAW_TASK, WITHOUT_TASK, fetch_adapter, read_task
from ..inference.predict_file import InputFile, predict_file
from ..types import Row
from .arguments import takes
from .common import Adapter, load
from .show import console
from .terminal import Terminal


@takes(ModelOptions, DataOptions, only=(*ModelOptions.model_fields, "column_names"))
def command(
    adapter: Adapter,
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
    fetch_adapter(adapter)
    task = read_task(adapter)
    if task is None:
        terminal.on_warning(f"{adapter}: {WITHOUT_TASK}")
    how: dict[str, Any] = {"generate": generate, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    if input_file is None:
        _predict_texts(adapter, given, task or RAW_TASK, text or [], how, terminal)
        return
    source = InputFile(input_file, names)
    files: dict[str, Any] = {"output_file": output_file, "raft_output": raft_output}
    total = predict_file(lambda: load(adapter, given), task or RAW_TASK, source, **files, **how, callback=terminal)
    written = " and ".join(str(file) for file in files.values() if file)
    console.print(f"{total} rows written to {written}", soft_wrap=True, markup=False)


def _predict_texts(
    adapter: str, given: dict[str, Any], task: Task, texts: list[str], how: dict[str, Any], terminal: Terminal
) -> None:
    if len(task.text_columns) != 1:
        raise ConfigError(f"this adapter reads the columns {', '.join(task.text_columns)}; give them in --input_file")
    rows = [Row({task.text_columns[0]: text}, f"text {i}") for i, text in enumerate(texts, 1)]
    for row in rows:
        task.check_text(row.fields, row.where)
    predictor = load(adapter, given)

    from ..inference.predict import predict_rows

    for row, answer in predict_rows(predictor, predictor.task, rows, **how):
        probability = "" if answer.probability is None else f"  {answer.probability:.4f}"
        console.print(f"{answer.text}{probability}", markup=False, soft_wrap=True)
        if answer.truncated:
            terminal.on_warning(f"{row.where} was cut to fit max_length")
