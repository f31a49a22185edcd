"""``softprompt.evaluate``: an adapter scored on labelled rows. Rows are checked before torch is imported."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .. import metrics as measures
from ..config.options import DataOptions, ModelOptions, build_options, check_counts
from ..data.in_memory import Rows
from ..data.labels import alike_note, new_labels
from ..data.non_empty_rows import empty_note
from ..data.sources import Splits, load_splits, make_task
from ..data.task import Task
from ..data.template import listed, renamed, resolve_template
from ..errors import ConfigError, DataError, MissingExtraError, SoftPromptError
from ..storage.atomic import expand
from ..storage.record import METRICS_NAME, STATE_NAME, TRAIN_METRICS_NAME, Metrics, TrainerState
from ..types import Row
from .adapter_files import fetch_adapter, read_task

if TYPE_CHECKING:
    from .pipeline import Predictor

DATA_OPTIONS = (
    *("dataset_name", "dataset_config_name", "test_split", "test_file"),
    *("text_column", "label_column", "column_names", "template", "max_length", "max_eval_samples"),
)
"""Options of ``DataOptions`` that an evaluation takes."""


class ProgressCallback(Protocol):
    """Receives the warnings and the progress of a call; ``softprompt.Callback`` is one."""

    def on_warning(self, text: str) -> None:
        """A line on a possible mistake, such as the number of rows that were cut."""

    def progress(self, description: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """A pass over ``total`` rows; the function takes the number just done. 0 if the total is not known."""


class _Warnings:
    """Python's warnings; progress is not shown."""

    def on_warning(self, text: str) -> None:
        warnings.warn(text, stacklevel=4)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda done: None


def evaluate(
    adapter: str | os.PathLike[str] | Predictor,
    rows: Rows | None = None,
    *,
    batch_size: int = 32,
    generate: bool = False,
    exact_match_after: str | None = None,
    max_new_tokens: int | None = None,
    callback: ProgressCallback | None = None,
    **options: Any,
) -> Metrics:
    """Score an adapter on labelled rows.

    Args:
        adapter: a folder, a Hub id, or the result of ``softprompt.load``.
        rows: pairs (text, label), dictionaries of columns, a pandas ``DataFrame``, a ``datasets.Dataset``, or the path
            of a file. Without it, the rows that the options name (``test_file``, ``dataset_name``, ...).
        batch_size: rows per forward pass.
        generate: also generate a text for each row: exact matches and, for a generation task, ROUGE-L and BLEU.
        exact_match_after: compare only what follows this mark in both texts, such as ``"####"``.
        max_new_tokens: most tokens to generate; by default 64, or a quarter of a shorter context.
        callback: receives warnings and progress; by default, warnings are Python's.
        **options: of ``softprompt evaluate``: ``text_column``, ``label_column``, ``template``, ``max_length``, ... and,
            unless the adapter is loaded already, the options of ``softprompt.load``.

    Raises:
        ConfigError: an option is invalid, or a count is less than 1.
        DataError: a row lacks its text or label, or a file cannot be read.
        AdapterError: the adapter is missing, damaged or does not fit the base model.
        BaseModelError: the base model cannot be found or loaded.
    """
    callback = callback or _Warnings()
    check_counts(batch_size=batch_size, max_new_tokens=max_new_tokens)
    if not generate and (exact_match_after or max_new_tokens):
        raise ConfigError("exact_match_after and max_new_tokens need generate; add it, or leave them out")
    if isinstance(adapter, os.PathLike):
        adapter = os.fspath(adapter)
    loading, reading = _options(options, is_loaded=not isinstance(adapter, str))
    if isinstance(adapter, str):
        adapter = expand(adapter)
        fetch_adapter(adapter)
        saved_task = read_task(adapter)
    else:
        saved_task = adapter.saved_task
    split, found, task = _read(rows, reading, saved_task, callback)
    gold = _gold(found, task, exact_match_after, callback)
    if isinstance(adapter, str):
        with callback.progress("loading the base model", 0):
            from .pipeline import load_predictor

            predictor = load_predictor(adapter, loading)
    else:
        predictor = adapter
    task = replace(task, end_token_id=predictor.task.end_token_id)
    metrics = _score(predictor, task, found, batch_size, split, callback)
    if generate:
        how = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
        metrics = replace(metrics, **_generated(predictor, task, found, gold, exact_match_after, callback, how))
    return metrics


def save_metrics(metrics: Metrics, folder: Path) -> Path:
    """Write ``metrics.json``, and return its path; the metrics that training wrote there are kept as another file."""
    own, kept = folder / METRICS_NAME, folder / TRAIN_METRICS_NAME
    if own.is_file() and (folder / STATE_NAME).is_file() and not kept.exists():
        try:
            by_training = TrainerState.load(folder).tested is not False
        except SoftPromptError:  # the state of another program; its metrics are kept too
            by_training = True
        if by_training:
            own.rename(kept)
    metrics.save(folder)
    return own


def _options(given: Mapping[str, Any], *, is_loaded: bool) -> tuple[ModelOptions, dict[str, Any]]:
    """Options of the base model, and those of the rows.

    Raises:
        ConfigError: an option is unknown, or one of the base model although that is loaded already.
    """
    loading = {name: value for name, value in given.items() if name in ModelOptions.model_fields}
    reading = {name: value for name, value in given.items() if name not in loading}
    if unknown := next((name for name in reading if name not in DATA_OPTIONS), None):
        raise ConfigError(f"unknown option {unknown!r}; evaluate takes {', '.join(DATA_OPTIONS)}")
    if is_loaded and loading:
        raise ConfigError(f"{next(iter(loading))} has no effect on a loaded adapter; give it to softprompt.load")
    return build_options(ModelOptions, loading), reading


def _read(
    rows: Rows | None, reading: dict[str, Any], saved: Task | None, callback: ProgressCallback
) -> tuple[str, list[Row], Task]:
    """The split's name, its rows, and the task to read them by."""
    if saved is not None:
        reading = {"text_column": list(saved.text_columns), "label_column": saved.label_column, **reading}
    if isinstance(rows, (str, os.PathLike)):
        options = build_options(DataOptions, {**reading, "test_file": os.fspath(rows)})
        splits = load_splits(options, need_train=False)
    else:
        options = build_options(DataOptions, reading)
        splits = load_splits(options, need_train=False, in_memory={} if rows is None else {"test": rows})
    split, found = ("test", splits.test) if splits.test else ("validation", splits.validation)
    if note := empty_note(splits.num_empty):
        callback.on_warning(note)
    task = task_for(saved, options, found)
    if saved is None and (note := alike_note(task.labels)):
        callback.on_warning(note)
    return split, found, task


def _gold(rows: Sequence[Row], task: Task, after: str | None, callback: ProgressCallback) -> list[str]:
    """The label of each row."""
    if new := new_labels(rows, task):
        names, count = listed(list(new)), sum(new.values())
        callback.on_warning(
            f"{count} of {len(rows)} rows count as wrong: their labels are not among the adapter's: {names}"
        )
    gold = [task.label_of(row.fields, row.where) for row in rows]
    if after and (missing := [row.where for row, text in zip(rows, gold, strict=True) if after not in text]):
        raise DataError(f"{missing[0]}: the label lacks the mark {after!r} of exact_match_after")
    return gold


def _score(
    predictor: Predictor, task: Task, rows: Sequence[Row], batch_size: int, split: str, callback: ProgressCallback
) -> Metrics:
    from .evaluate import evaluate_examples

    encoder = predictor.encoder(task)
    examples = encoder.encode_all(rows)
    if cut := sum(1 for example in examples if example.num_cut):
        callback.on_warning(f"cut to fit max_length: {cut} of {len(examples)} rows")
    classes = predictor.classes(encoder)
    with callback.progress("scoring", len(examples)) as progress:
        return evaluate_examples(
            predictor.model, examples, classes, batch_size=batch_size, split=split, progress=progress
        )


def _generated(
    predictor: Predictor,
    task: Task,
    rows: Sequence[Row],
    gold: Sequence[str],
    after: str | None,
    callback: ProgressCallback,
    how: Mapping[str, Any],
) -> dict[str, Any]:
    """Metrics of generated texts against the labels."""
    from .predict import predict_rows

    texts = []
    with callback.progress("generating", len(rows)) as progress:
        for _, answer in predict_rows(predictor, task, rows, generate=True, **how):
            texts.append(answer.text)
            progress(1)
    found = {"exact_match": measures.exact_match(gold, texts, after=after)}
    if task.is_classification:
        return found
    try:
        return {**found, "rouge_l": measures.rouge_l(gold, texts), "bleu": measures.bleu(gold, texts)}
    except MissingExtraError as missing:
        callback.on_warning(str(missing))
        return found


def task_for(saved: Task | None, options: DataOptions, rows: Sequence[Row]) -> Task:
    """The adapter's task with the columns, template and ``max_length`` of the options; without one, that of the rows.

    Raises:
        ConfigError: another number of text columns, without a template.
        DataError: the template does not fit the columns.
    """
    if saved is None:
        return make_task(Splits(list(rows), [], []), options, end_token_id=None)
    changes: dict[str, Any] = {"text_columns": tuple(options.text_column), "label_column": options.label_column}
    template, columns = options.template, changes["text_columns"]
    if template is None and columns != saved.text_columns:
        if len(columns) != len(saved.text_columns):
            raise ConfigError(
                f"the adapter reads {len(saved.text_columns)} text columns ({', '.join(saved.text_columns)}); name "
                "the same number with text_column, or give a template"
            )
        template = renamed(saved.template, dict(zip(saved.text_columns, columns, strict=True)))
    elif template is not None:
        changes["answer_prefix"] = ""
    if template is not None:
        changes["template"] = resolve_template(template, options.text_column, list(rows[0].fields))
        if saved.label_prefix and changes.get("answer_prefix") == "":
            changes["label_prefix"] = "" if changes["template"][-1:].isspace() else " "
    if options.max_length is not None:
        changes["max_length"] = options.max_length
    return replace(saved, **changes)
