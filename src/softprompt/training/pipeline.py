"""A whole run: options in, a finished adapter folder out."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from .. import metrics as measures
from ..config.adapter_config import PromptTuningConfig, PromptTuningInit, TaskType
from ..config.options import EMBEDDED_MODEL, TrainOptions
from ..data.task import Task
from ..data.tokenize import Encoder, default_end_token_id, show_example
from ..engine.surgery.capture import check_layers
from ..engine.text_cache import TextCache
from ..errors import MissingExtraError
from ..inference.classifier import Classes, classes_of
from ..inference.evaluate import evaluate_examples
from ..models.device import seed_everything
from ..models.embeddings import embedding_rms
from ..models.families import context_length
from ..models.loading import Base, load_base, load_config, load_tokenizer
from ..peft.factory import get_peft_model
from ..peft.model import PeftModelForCausalLM
from ..reporting.folder import write_card
from ..reporting.plots import plot_confusion_matrix, plot_loss
from ..storage.adapter import START_NAME, read_prompt, write_prompt
from ..storage.atomic import write_text
from ..storage.record import (
    CONFUSION_PICTURE,
    ENSEMBLE_NAME,
    LOSS_PICTURE,
    METRICS_NAME,
    OLD_PROBE_NAME,
    OPTIONS_NAME,
    PROBE_NAME,
    TRAIN_METRICS_NAME,
    Metrics,
    TrainerState,
)
from ..types import Example, Row
from .callbacks import Callback
from .classifier import as_it_decides, with_members
from .loop import fit
from .notes import tell_rows
from .output_dir import check_output_dir, make_output_dir
from .recipes import follow
from .resume import check_resumable
from .run import Run, read_texts
from .task_rows import TaskRows, read_task_rows

UNTUNED = "untuned prompt"
MAJORITY = "majority class"
NUM_SHOWN = 3
MOST_UNLABELED = 150
"""Rows without labels that are learned from; each costs as much as one with a label."""


@dataclass(frozen=True)
class Result:
    """What a run has come to: its folder, its course, and its test figures if there were test rows."""

    output_dir: Path
    state: TrainerState
    metrics: Metrics | None


@dataclass(frozen=True)
class Prepared:
    """A run's rows as the model will see them."""

    task: Task
    classes: Classes | None
    train: list[Example]
    validation: list[Example]
    test: list[Example]
    unlabeled: list[Example]


def train(options: TrainOptions, callback: Callback | None = None, rows: TaskRows | None = None) -> Result | None:
    """Train a soft prompt as the options say, evaluate it and write everything into ``output_dir``.

    Args:
        rows: what ``read_task_rows(options)`` gave, if it has been called already.

    Returns:
        The result; ``None`` after a dry run.

    Raises:
        SoftPromptError: bad options, data or base model, before anything is trained; or a run that cannot go on.
    """
    callback = callback or Callback()
    rows = rows or read_task_rows(options)
    options, task = follow(options, rows.task, len(rows.splits.train))
    resume_from = None if options.dry_run else check_output_dir(options)
    context = context_length(load_config(options))  # the config first: it says best what is no base model
    tokenizer = load_tokenizer(options)
    prepared = prepare(options, replace(rows, task=task), tokenizer, context, callback)
    if options.dry_run:
        for example in prepared.train[:NUM_SHOWN]:
            callback.note(show_example(tokenizer, example))
        if options.prompt_placement == "suffix":
            callback.note("the prompt stands between input and label (prompt_placement suffix)")
        return None
    base = load_base(options)
    if options.linear_probe:
        check_layers(base.model)  # now, not when everything is trained
    model = start_model(options, base, prepared.task)
    texts = _texts(options, base)
    run = Run(
        model=model,
        options=options,
        task=prepared.task,
        examples=prepared.train,
        validate=_validator(options, model, prepared, callback, texts),
        callback=callback,
        resume_from=resume_from,
        texts=texts,
        classes=prepared.classes,
        embedding_rms=embedding_rms(base.model.get_input_embeddings()),
        unlabeled=prepared.unlabeled,
    )
    check_resumable(run)
    make_output_dir(options)  # from here on an older run is gone; nothing above has touched it
    start = _write_start(options, model.prompt.detach().clone())
    with texts or nullcontext():
        state = fit(run)
        if prepared.classes is not None:
            started = time.perf_counter()
            prepared = replace(prepared, classes=with_members(run, base.tokenizer, prepared.classes))
            state = replace(state, seconds=state.seconds + time.perf_counter() - started)
            _say_how_all_do(run, prepared)
    metrics = _test(options, model, prepared, start, callback) if prepared.test else None
    return _finish(options, model, prepared, state, metrics, callback)


def prepare(options: TrainOptions, rows: TaskRows, tokenizer: Any, context: int | None, callback: Callback) -> Prepared:
    """Encode the rows of a run."""
    task = replace(rows.task, end_token_id=default_end_token_id(tokenizer))
    encoder = Encoder(tokenizer, task, num_virtual_tokens=options.num_virtual_tokens, context_length=context)
    parts = {name: encoder.encode_all(getattr(rows.splits, name)) for name in ("train", "validation", "test")}
    unlabeled = rows.splits.unlabeled
    parts["unlabeled"] = encoder.encode_all(_sample(unlabeled, options.seed), with_label=False)
    tell_rows(options, rows.splits, task, parts, callback)
    if len(unlabeled) > MOST_UNLABELED:
        callback.note(f"of {len(unlabeled)} unlabeled rows a sample of {MOST_UNLABELED} is learned from")
    return Prepared(task=task, classes=classes_of(task, encoder), **parts)


def _sample(rows: Sequence[Row], seed: int) -> list[Row]:
    return random.Random(seed).sample(rows, min(len(rows), MOST_UNLABELED))


def start_model(options: TrainOptions, base: Base, task: Task) -> PeftModelForCausalLM:
    """The base with a new prompt, seeded."""
    seed_everything(options.seed, full_determinism=options.full_determinism)
    if options.gradient_checkpointing:
        base.model.gradient_checkpointing_enable()
    is_text = options.prompt_tuning_init == PromptTuningInit.TEXT
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=options.num_virtual_tokens,
        prompt_tuning_init=options.prompt_tuning_init,
        prompt_tuning_init_text=(options.prompt_tuning_init_text or default_init_text(task)) if is_text else None,
        tokenizer_name_or_path=base.name if is_text else None,
        revision=options.revision,
        prompt_placement=options.prompt_placement,
    )
    model = get_peft_model(base.model, config, tokenizer=base.tokenizer)
    folder = Path(base.name)
    # A folder is named so that it is found from anywhere; anything else is a Hub id or the embedded model.
    config.base_model_name_or_path = (
        str(folder.resolve()) if folder.exists() and base.name != EMBEDDED_MODEL else base.name
    )
    return model


def _texts(options: TrainOptions, base: Base) -> TextCache | None:
    """Where to keep what is known of texts that stand before a prompt; ``None`` for those behind it."""
    if options.prompt_placement == "prefix" and not options.num_folds:
        return None
    return TextCache(base.model, int(options.text_cache_memory * 2**30), options.output_dir)


def default_init_text(task: Task) -> str:
    """An instruction made of what the task says of itself."""
    columns = " and ".join(column.replace("_", " ") for column in task.text_columns)
    if not task.is_classification:
        return f"Write the {task.label_column.replace('_', ' ')} of the {columns}:"
    *others, last = task.labels
    return f"Classify the {columns} as {', '.join(others) + ' or ' if others else ''}{last}:"


def _validator(
    options: TrainOptions,
    model: PeftModelForCausalLM,
    prepared: Prepared,
    callback: Callback,
    texts: TextCache | None,
) -> Callable[[], Metrics] | None:
    if not prepared.validation or options.eval_strategy == "no":
        return None
    told = False

    def validate() -> Metrics:
        nonlocal told
        classes = prepared.classes
        if classes is not None:
            classes = as_it_decides(model, prepared.train, classes, options, callback)
        if texts is not None and options.prompt_placement == "suffix" and not options.linear_probe:
            read_texts(texts, (example.input_ids for example in prepared.validation), callback)
        with callback.rows("validating", len(prepared.validation)) as progress:
            metrics = evaluate_examples(
                model.prompted,
                prepared.validation,
                classes,
                batch_size=options.per_device_eval_batch_size,
                split="validation",
                progress=progress,
                text_cache=texts,
            )
        if not told and metrics.eval_loss is not None and not math.isfinite(metrics.eval_loss):
            told = True
            callback.note(
                "validation: scores that are not finite count as wrong; training goes on. If the base is in float16, "
                "try --dtype bfloat16 or float32"
            )
        return metrics

    return validate


def _say_how_all_do(run: Run, prepared: Prepared) -> None:
    """Report the validation scores of the whole classifier; those of the epochs leave out the prompts of folds."""
    if run.validate is None or prepared.classes is None or prepared.classes.ensemble is None:
        return
    size = run.options.per_device_eval_batch_size
    with run.callback.rows("validating", len(prepared.validation)) as progress:
        found = evaluate_examples(
            run.model.prompted,
            prepared.validation,
            prepared.classes,
            batch_size=size,
            split="validation",
            progress=progress,
        )
    run.callback.note(f"validation, whole classifier: accuracy {found.accuracy:.4f}, macro-F1 {found.macro_f1:.4f}")


def _test(
    options: TrainOptions, model: PeftModelForCausalLM, prepared: Prepared, start: torch.Tensor, callback: Callback
) -> Metrics:
    """Figures on the test rows, beside what they must beat."""
    size = options.per_device_eval_batch_size
    with callback.rows("testing", len(prepared.test)) as progress:
        metrics = evaluate_examples(model.prompted, prepared.test, prepared.classes, batch_size=size, progress=progress)
    if not options.baselines:
        return metrics
    tuned = model.prompt.detach().clone()
    with torch.no_grad(), callback.rows("testing the untuned prompt", len(prepared.test)) as progress:
        model.prompt.copy_(start)
        classes = prepared.classes and replace(prepared.classes, linear_probe=None, ensemble=None)
        untuned = evaluate_examples(model.prompted, prepared.test, classes, batch_size=size, progress=progress)
        model.prompt.copy_(tuned)
    baselines = {UNTUNED: _row(untuned)}
    if prepared.classes is not None:
        baselines = {MAJORITY: _majority(prepared.train, prepared.test, prepared.classes.names), **baselines}
    return replace(metrics, baselines=baselines)


def _row(metrics: Metrics) -> dict[str, float | None]:
    return {"accuracy": metrics.accuracy, "macro_f1": metrics.macro_f1, "eval_loss": metrics.eval_loss}


def _majority(train: Sequence[Example], test: Sequence[Example], names: Sequence[str]) -> dict[str, float | None]:
    """The score of always answering the most frequent label of the training rows."""
    guess = measures.majority([names.index(str(example.label)) for example in train], len(names))
    gold = [names.index(str(example.label)) for example in test]
    matrix = measures.confusion_matrix(gold, [guess] * len(gold), len(names))
    return {"accuracy": measures.accuracy(matrix), "macro_f1": measures.macro_f1(matrix), "eval_loss": None}


def _write_start(options: TrainOptions, start: torch.Tensor) -> torch.Tensor:
    """Write the resolved options and the prompt's start, which ``inspect`` measures the way from.

    Returns:
        The start; that of the first run when a run is resumed.
    """
    values = options.model_dump(mode="json", exclude={"dry_run", "overwrite_output_dir", "resume_from_checkpoint"})
    write_text(options.output_dir / OPTIONS_NAME, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    kept = options.output_dir / START_NAME
    if options.resume_from_checkpoint and kept.is_file():
        return read_prompt(kept).to(start)
    write_prompt(options.output_dir, start, name=START_NAME)
    return start


def _finish(
    options: TrainOptions,
    model: PeftModelForCausalLM,
    prepared: Prepared,
    state: TrainerState,
    metrics: Metrics | None,
    callback: Callback,
) -> Result:
    """Write the finished folder; the weights come last, so a folder that has them is complete."""
    folder = options.output_dir
    state = replace(state, finished=True, tested=metrics is not None)
    if options.resume_from_checkpoint:  # figures and pictures of the prompt as it was, evaluate's among them
        for name in (METRICS_NAME, TRAIN_METRICS_NAME, CONFUSION_PICTURE, PROBE_NAME, OLD_PROBE_NAME, ENSEMBLE_NAME):
            (folder / name).unlink(missing_ok=True)
    if metrics is not None:
        metrics.save(folder)
    try:
        plot_loss(state.history, folder / LOSS_PICTURE, best_step=state.best_step)
        if metrics is not None and metrics.confusion_matrix and metrics.labels:
            plot_confusion_matrix(metrics.confusion_matrix, metrics.labels, folder / CONFUSION_PICTURE)
    except MissingExtraError as missing:
        callback.note(f"no pictures: {missing}")
    prepared.task.save(folder)
    state.save(folder)
    for member in (prepared.classes.linear_probe, prepared.classes.ensemble) if prepared.classes else ():
        if member is not None:
            member.save(folder)
    config = model.active_peft_config
    assert isinstance(config, PromptTuningConfig)
    replace(config, inference_mode=True).save_pretrained(folder)
    write_card(folder)
    write_prompt(folder, model.prompt, placement=config.prompt_placement)
    return Result(folder, state, metrics)
