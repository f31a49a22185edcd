"""The training loop: batch, forward, loss, backward, finite check, step, validate, save."""

from __future__ import annotations

import time
from dataclasses import asdict, replace

import torch

from ..storage.record import EpochRecord, LogWriter, PartialEpoch, TrainerState
from .resume import best_prompt, initial_state, save_checkpoint
from .rollback import Snapshot, roll_back
from .run import Run, batches_of_step, fill_text_cache
from .step import NonFiniteError, forward_backward, make_optimizer, update_prompt
from .validation import is_best


def fit(run: Run) -> TrainerState:
    """Train the active prompt. Afterwards the model holds the best prompt, or the last one.

    The order of rows depends on the seed and the epoch alone, and the learning rate on the step; a checkpoint
    holds the prompt, AdamW's moments and the sums of the current epoch. So a resumed run computes the same
    values as an uninterrupted one, and reports the same losses.

    Raises:
        TrainingError: a loss or gradient is not finite; nothing of that step reaches the prompt.
        ConfigError: the checkpoint to resume from was written with other rows, options or another base model.
    """
    options, prompt = run.options, run.prompt
    optimizer = make_optimizer(prompt, options)
    state = initial_state(run, optimizer)
    run.callback.on_train_begin(state, run.task.is_classification)
    if run.texts is not None and not run.objective.shares_prompt:
        fill_text_cache(run.texts, (example.input_ids for example in run.examples), run.callback)
    best, good = best_prompt(run, state), Snapshot.of(prompt, optimizer, state)
    sums = state.partial_epoch or PartialEpoch()
    epoch_started = time.perf_counter() - sums.seconds
    with LogWriter(options.output_dir, resume_step=state.global_step if run.resume_from else None) as log:
        for step in range(state.global_step, run.max_steps):
            optimizer.param_groups[0]["lr"] = rate = run.learning_rate(step)
            try:
                loss, count = forward_backward(run.objective, prompt, batches_of_step(run, step))
                good = Snapshot.of(prompt, optimizer, state)  # this prompt's loss and gradient are finite
                update_prompt(prompt, optimizer, options.max_grad_norm)
            except NonFiniteError as error:
                raise roll_back(run, good, error, state, optimizer) from None
            done = step + 1
            sums = sums.plus(loss, count, time.perf_counter() - epoch_started)
            run.callback.on_step_end(done, loss)
            if done % options.logging_steps == 0 or done == run.max_steps:
                log.write(step=done, epoch=done / run.steps_per_epoch, loss=loss, learning_rate=rate)
            ends_epoch = done % run.steps_per_epoch == 0 or done == run.max_steps
            state = replace(state, global_step=done, epoch=done / run.steps_per_epoch, partial_epoch=sums)
            improved = False
            if ends_epoch or _is_due(options.eval_strategy, options.eval_steps, done, ends_epoch=False):
                record = EpochRecord(epoch=state.epoch, step=done, learning_rate=rate, train_loss=sums.loss)
                record = _validated(run, record, ends_epoch)
                record = replace(record, seconds=time.perf_counter() - epoch_started)
                improved = is_best(run.metric, record, state.history)
                state = _with_record(state, run, record, improved)
                best = prompt.detach().clone() if improved else best
                run.callback.on_log(record, improved)
                log.write(**{name: value for name, value in asdict(record).items() if value is not None})
                sums, epoch_started = PartialEpoch(), time.perf_counter()
            due = _is_due(options.save_strategy, options.save_steps, done, ends_epoch=ends_epoch)
            if due or (improved and options.save_strategy != "no"):
                save_checkpoint(run, state, optimizer)
    if options.load_best_model_at_end and best is not None:
        with torch.no_grad():
            prompt.copy_(best)
    return state


def _is_due(strategy: str, every: int | None, done: int, *, ends_epoch: bool) -> bool:
    """Whether an evaluation or a checkpoint is due after ``done`` steps."""
    return ends_epoch if strategy == "epoch" else strategy == "steps" and every is not None and done % every == 0


def _validated(run: Run, record: EpochRecord, ends_epoch: bool) -> EpochRecord:
    """The record with validation metrics, if a validation is due."""
    due = _is_due(run.options.eval_strategy, run.options.eval_steps, record.step, ends_epoch=ends_epoch)
    if run.validate is None or not due:
        return record
    found = run.validate()
    return replace(record, eval_loss=found.eval_loss, accuracy=found.accuracy, macro_f1=found.macro_f1)


def _with_record(state: TrainerState, run: Run, record: EpochRecord, improved: bool) -> TrainerState:
    """The state after a line of the training table."""
    state = replace(state, history=(*state.history, record), seconds=state.seconds + record.seconds, partial_epoch=None)
    if not improved or run.metric is None:
        return state
    saves = run.options.save_strategy != "no"
    return replace(
        state,
        best_metric=getattr(record, run.metric),
        best_step=record.step,
        best_model_checkpoint=f"checkpoint-{record.step}" if saves else None,
    )
