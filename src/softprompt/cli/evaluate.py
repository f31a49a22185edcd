"""``softprompt evaluate --adapter DIR --test_file F``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config.options import DataOptions, ModelOptions, build_options
from ..data.template import listed
from ..errors import ConfigError, DataError, MissingExtraError, SoftPromptError
from .arguments import takes
from .common import Adapter, load
from .progress import progress_bar
from .show import console, metrics_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..data.task import Task
    from ..inference.pipeline import Prompted
    from ..storage.record import Metrics
    from ..types import Row

SOURCE = ("dataset_name", "dataset_config_name", "test_split", "test_file")
COLUMNS = ("text_column", "label_column", "column_names", "template")


@takes(
    ModelOptions, DataOptions, only=(*ModelOptions.model_fields, *SOURCE, *COLUMNS, "max_length", "max_eval_samples")
)
def command(
    adapter: Adapter,
    output_dir: Annotated[
        Path | None, typer.Option("--output_dir", help="Folder for metrics.json [default: the adapter's].")
    ] = None,
    batch_size: Annotated[int, typer.Option("--per_device_eval_batch_size", min=1, help="Rows at a time.")] = 32,
    generate: Annotated[
        bool, typer.Option("--generate", help="Also write freely: exact matches, ROUGE-L, BLEU.")
    ] = False,
    after: Annotated[
        str | None,
        typer.Option("--exact_match_after", help="Match only what follows this mark in both texts, such as '####'."),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max_new_tokens", min=1, help="Most tokens to write [default: 64 if there is room]."),
    ] = None,
    **given: Any,
) -> None:
    """Score an adapter on labelled rows."""
    from ..inference.pipeline import fetch_adapter, read_task

    if not generate and (after or max_new_tokens):
        raise ConfigError("--exact_match_after and --max_new_tokens are for --generate; add it, or leave them out")
    if output_dir is not None and output_dir.is_file():
        raise ConfigError(f"output_dir {output_dir} is a file; give a folder")
    fetch_adapter(adapter)
    known = read_task(adapter)
    values = {name: value for name, value in given.items() if name in DataOptions.model_fields}
    if known is not None:
        values = {"text_column": list(known.text_columns), "label_column": known.label_column, **values}
    options = build_options(DataOptions, values)

    from ..data.sources import load_splits, new_labels
    from ..training.data_summary import alike_note, empty_note

    splits = load_splits(options, need_train=False)
    split, rows = ("test", splits.test) if splits.test else ("validation", splits.validation)
    task = task_for(known, options, rows)
    for note in (empty_note(splits.num_empty), alike_note(task) if known is None else None):
        if note:
            console.print(note, markup=False, soft_wrap=True)
    if new := new_labels(rows, task):
        names, count = listed(list(new)), sum(new.values())
        console.print(f"{count} of {len(rows)} rows count as wrong, since training has not seen their label: {names}")
    gold = [task.label_of(row.fields, row.where) for row in rows]
    if after and (missing := [row.where for row, text in zip(rows, gold, strict=True) if after not in text]):
        raise DataError(f"{missing[0]}: the right answer lacks the mark {after!r} of --exact_match_after")
    prompted = load(adapter, given)

    from ..data.tokenize import default_end_token_id
    from ..inference.evaluate import evaluate

    if known is None:  # an adapter of PEFT's: labels end as softprompt would end them
        task = replace(task, end_token_id=default_end_token_id(prompted.tokenizer))
    encoder = prompted.encoder(task)
    examples = encoder.encode_all(rows)
    if cut := sum(1 for example in examples if example.num_cut):
        console.print(f"cut to fit max_length: {cut} of {len(examples)} rows")
    with progress_bar() as progress:
        bar = progress.add_task("scoring", total=len(examples))
        metrics = evaluate(
            prompted.model,
            examples,
            prompted.classes(encoder),
            batch_size=batch_size,
            split=split,
            progress=lambda done: progress.update(bar, advance=done),
        )
    if generate:
        metrics = replace(metrics, **_written(prompted, task, rows, gold, batch_size, max_new_tokens, after))
    console.print(metrics_table(metrics))
    if output_dir is not None or Path(adapter).is_dir():  # else it is one of the Hub: no place to write to
        _save(metrics, output_dir or Path(adapter))


def _written(
    prompted: Prompted,
    task: Task,
    rows: Sequence[Row],
    gold: Sequence[str],
    batch_size: int,
    max_new_tokens: int | None,
    after: str | None,
) -> dict[str, Any]:
    """How near the model comes to the labels, writing freely."""
    from .. import metrics as measures
    from ..inference.predict import predict

    with progress_bar() as progress:
        bar, written = progress.add_task("writing", total=len(rows)), []
        how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
        for _, answer in predict(prompted, task, rows, generate=True, **how):
            written.append(answer.text)
            progress.update(bar, advance=1)
    found = {"exact_match": measures.exact_match(gold, written, after=after)}
    if task.is_classification:
        return found
    try:
        return {**found, "rouge_l": measures.rouge_l(gold, written), "bleu": measures.bleu(gold, written)}
    except MissingExtraError as missing:
        typer.echo(f"softprompt: {missing}", err=True)
        return found


def task_for(known: Task | None, options: DataOptions, rows: Any) -> Task:
    """The adapter's task with what the options change; made from the rows when the adapter has none."""
    from ..data.sources import Splits, make_task
    from ..data.template import renamed, resolve_template

    if known is None:
        return make_task(Splits(rows, [], []), options, end_token_id=None)
    changes: dict[str, Any] = {"text_columns": tuple(options.text_column), "label_column": options.label_column}
    template, columns = options.template, changes["text_columns"]
    if template is None and columns != known.text_columns:
        if len(columns) != len(known.text_columns):
            raise ConfigError(
                f"the adapter reads {len(known.text_columns)} text columns ({', '.join(known.text_columns)}); name so "
                "many with text_column, or give a template"
            )
        template = renamed(known.template, dict(zip(known.text_columns, columns, strict=True)))
    elif template is not None:
        changes["answer_prefix"] = ""
    if template is not None:
        changes["template"] = resolve_template(template, options.text_column, list(rows[0].fields))
        if known.label_prefix and changes.get("answer_prefix") == "":
            changes["label_prefix"] = "" if changes["template"][-1:].isspace() else " "
    if options.max_length is not None:
        changes["max_length"] = options.max_length
    return replace(known, **changes)


def _save(metrics: Metrics, folder: Path) -> None:
    """Write ``metrics.json``; training's own figures, which may stand there, are kept under another name."""
    from ..storage.record import METRICS_NAME, STATE_NAME, TRAIN_METRICS_NAME, TrainerState

    own, kept = folder / METRICS_NAME, folder / TRAIN_METRICS_NAME
    if own.is_file() and (folder / STATE_NAME).is_file() and not kept.exists():
        try:
            by_training = TrainerState.load(folder).tested is not False
        except SoftPromptError:  # another program's state: whose figures these are is not known, so they are kept
            by_training = True
        if by_training:
            own.rename(kept)
    metrics.save(folder)
    console.print(f"\nmetrics     {own}", soft_wrap=True)
