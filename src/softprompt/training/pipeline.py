"""A whole training run: load, train, fit the classifier, test, write. The command and ``api.train`` call it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config.options import TrainOptions
from ..data.sources import Splits, find_labels, load_training_splits
from ..data.tokenize import Encoder, default_end_token_id, show_example
from ..engine.surgery.capture import check_layers
from ..engine.text_cache import TextCache
from ..inference.classifier import Classes, classes_of
from ..models.embeddings import embedding_rms
from ..models.families import context_length
from ..models.loading import Base, load_base, load_config, load_tokenizer
from ..storage.record import Metrics, TrainerState
from ..types import Example, Row
from .baselines import score_test_rows
from .callbacks import Callback
from .data_summary import report_rows
from .fit_classifier import fit_classifier
from .loop import fit
from .output_dir import check_output_dir, make_output_dir, write_initial_files, write_results
from .prompt_init import add_prompt
from .recipes import apply_recipe, build_task
from .resume import check_resumable
from .run import Run
from .validation import make_validator, validation_metrics

NUM_SHOWN = 3
"""Rows that a dry run shows."""
MAX_UNLABELED = 150
"""Unlabeled rows that are used; each costs as much as a labeled one."""


@dataclass(frozen=True, repr=False)
class TrainResult:
    """The result of a training run.

    Attributes:
        output_dir: the adapter folder.
        state: content of ``trainer_state.json``: steps, epochs, losses and validation scores.
        metrics: scores on the test rows; ``None`` if there are none.
    """

    output_dir: Path
    state: TrainerState
    metrics: Metrics | None

    def __repr__(self) -> str:
        return f"TrainResult(output_dir={str(self.output_dir)!r}, metrics={self.metrics!r})"


@dataclass(frozen=True)
class EncodedRows:
    """The rows of a run as token ids."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    unlabeled: list[Example]


def train(options: TrainOptions, callback: Callback | None = None, splits: Splits | None = None) -> TrainResult | None:
    """Train a soft prompt as the options say, evaluate it and write everything into ``output_dir``.

    Args:
        splits: the rows, if they have been read already, as by ``load_training_splits(options)``.

    Returns:
        The result; ``None`` after a dry run.

    Raises:
        SoftPromptError: bad options, data or base model, before anything is trained; or a run that cannot go on.
    """
    callback = callback or Callback()
    splits = splits or load_training_splits(options)
    labels = find_labels(splits, options)
    options = apply_recipe(options, is_classification=bool(labels), num_rows=len(splits.train))
    resume_from = None if options.dry_run else check_output_dir(options)
    context = context_length(load_config(options))  # the config first: its errors say best what is not a base model
    tokenizer = load_tokenizer(options)
    task = build_task(options, list(splits.train[0].fields), labels, default_end_token_id(tokenizer))
    encoder = Encoder(tokenizer, task, num_virtual_tokens=options.num_virtual_tokens, context_length=context)
    rows, classes = _encode(splits, encoder, options, callback), classes_of(task, encoder)
    if options.dry_run:
        _show(rows.train[:NUM_SHOWN], tokenizer, options, callback)
        return None

    base = load_base(options)
    if options.linear_probe:
        check_layers(base.model)  # before training, not after it
    model = add_prompt(options, base, task)
    texts = _text_cache(options, base)
    run = Run(
        model=model,
        options=options,
        task=task,
        examples=rows.train,
        validate=None,
        callback=callback,
        resume_from=resume_from,
        texts=texts,
        classes=classes,
        embedding_rms=embedding_rms(base.model.get_input_embeddings()),
        unlabeled=rows.unlabeled,
    )
    run.validate = make_validator(run, rows.validation)
    check_resumable(run)
    make_output_dir(options)  # removes the files of an older run; nothing above has touched them
    initial_prompt = write_initial_files(options, model.prompt.detach().clone())

    with texts or nullcontext():
        state = fit(run)
        if classes is not None:
            classes, seconds = _fit_rest(run, base, classes, rows.validation)
            state = replace(state, seconds=state.seconds + seconds)
    metrics = None
    if rows.test:
        metrics = score_test_rows(run, rows.test, classes, initial_prompt)
    state = replace(state, finished=True, tested=metrics is not None)
    write_results(run, classes, state, metrics)
    return TrainResult(options.output_dir, state, metrics)


def _encode(splits: Splits, encoder: Encoder, options: TrainOptions, callback: Callback) -> EncodedRows:
    """Encode the rows of a run, and report what was read."""
    parts = {name: encoder.encode_all(getattr(splits, name)) for name in ("train", "validation", "test")}
    parts["unlabeled"] = encoder.encode_all(_sample(splits.unlabeled, options.seed), with_label=False)
    report_rows(options, splits, encoder.task, parts, callback)
    if len(splits.unlabeled) > MAX_UNLABELED:
        callback.on_message(f"using a sample of {MAX_UNLABELED} of {len(splits.unlabeled)} unlabeled rows")
    return EncodedRows(**parts)


def _sample(rows: Sequence[Row], seed: int) -> list[Row]:
    return random.Random(seed).sample(rows, min(len(rows), MAX_UNLABELED))


def _show(examples: Sequence[Example], tokenizer: Any, options: TrainOptions, callback: Callback) -> None:
    """Show encoded rows, for a dry run."""
    for example in examples:
        callback.on_message(show_example(tokenizer, example))
    if options.prompt_placement == "suffix":
        callback.on_message("the prompt stands between input and label (prompt_placement suffix)")


def _text_cache(options: TrainOptions, base: Base) -> TextCache | None:
    """KV cache of the texts before suffix prompts; ``None`` if there are prefix prompts only."""
    if options.prompt_placement == "prefix" and not options.num_folds:
        return None
    return TextCache(base.model, int(options.text_cache_memory * 2**30), options.output_dir)


def _fit_rest(run: Run, base: Base, classes: Classes, validation: Sequence[Example]) -> tuple[Classes, float]:
    """Fit linear probe and fold prompts, and report the validation scores of the whole classifier.

    Validation during training leaves the fold prompts out, since they are not trained yet.

    Returns:
        The classes, and the seconds of training.
    """
    started = time.perf_counter()
    classes = fit_classifier(run, base.tokenizer, classes)
    seconds = time.perf_counter() - started
    if run.validate is not None and classes.ensemble is not None:
        found = validation_metrics(run, validation, classes)
        run.callback.on_message(
            f"validation, whole classifier: accuracy {found.accuracy:.4f}, macro-F1 {found.macro_f1:.4f}"
        )
    return classes, seconds
