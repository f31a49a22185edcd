"""``softprompt evaluate --adapter DIR --test_file F``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from ..options import DataOptions, ModelOptions, build_options
from .common import Adapter, load
from .options import takes
from .show import console, metrics_table
from .watch import progress_bar

if TYPE_CHECKING:
    from ..record import Metrics
    from ..task import Task

DATA = ("dataset_name", "dataset_config_name", "test_split", "test_file", "text_column", "label_column", "template")


@takes(ModelOptions, DataOptions, only=(*ModelOptions.model_fields, *DATA, "max_length", "max_eval_samples"))
def command(
    adapter: Adapter,
    output_dir: Annotated[
        Path | None, typer.Option("--output_dir", help="Folder for metrics.json [default: the adapter's].")
    ] = None,
    batch_size: Annotated[int, typer.Option("--per_device_eval_batch_size", min=1)] = 16,
    **given: Any,
) -> None:
    """Score an adapter on labelled rows."""
    from ..loading import fetch_adapter, read_task

    if output_dir is not None and output_dir.is_file():
        raise ConfigError(f"output_dir {output_dir} is a file; give a folder")
    fetch_adapter(adapter)
    known = read_task(adapter)
    values = {name: value for name, value in given.items() if name in DataOptions.model_fields}
    if known is not None:
        values = {"text_column": list(known.text_columns), "label_column": known.label_column, **values}
    options = build_options(DataOptions, values)

    from ..data import check_labels, load_splits

    splits = load_splits(options, need_train=False)
    rows = splits.test or splits.validation
    task = task_for(known, options, rows)
    check_labels(rows, task)
    prompted = load(adapter, given)

    from ..evaluate import evaluate
    from ..train.job import classes_of

    encoder = prompted.encoder(task)
    examples = encoder.encode_all(rows)
    if cut := sum(1 for example in examples if example.num_cut):
        console.print(f"cut to fit max_length: {cut} of {len(examples)} rows")
    with progress_bar() as progress:
        bar = progress.add_task("scoring", total=len(examples))
        metrics = evaluate(
            prompted.model,
            examples,
            classes_of(task, encoder),
            batch_size=batch_size,
            progress=lambda done: progress.update(bar, advance=done),
        )
    console.print(metrics_table(metrics))
    _save(metrics, output_dir or Path(adapter))


def task_for(known: Task | None, options: DataOptions, rows: Any) -> Task:
    """The adapter's task with what the options change; made from the rows when the adapter has none."""
    from dataclasses import replace

    from ..data import Splits, make_task
    from ..template import resolve_template

    if known is None:
        return make_task(Splits(rows, [], []), options, end_token_id=None)
    changes: dict[str, Any] = {"text_columns": tuple(options.text_column), "label_column": options.label_column}
    if options.template is not None or changes["text_columns"] != known.text_columns:
        changes["template"] = resolve_template(options.template, options.text_column, list(rows[0].fields))
    if options.max_length is not None:
        changes["max_length"] = options.max_length
    return replace(known, **changes)


def _save(metrics: Metrics, folder: Path) -> None:
    if folder.is_dir() or not (folder.parts and len(folder.parts) == 2 and not folder.parent.exists()):
        metrics.save(folder)
        console.print(f"\nmetrics     {folder / 'metrics.json'}", soft_wrap=True)
