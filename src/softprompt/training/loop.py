"""The training loop: batch, forward, loss, backward, finite check, step, validate, save."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch

from ..engine.accumulate import mean_loss
from ..engine.plans import plan_examples
from ..storage.record import EpochRecord, LogWriter, PartialEpoch, TrainerState
from ..types import Example
from .best import is_best
from .finite_check import Snapshot, back_to, not_finite, take_step
from .objectives import backward_classes, packs_of_candidates
from .packs import backward_suffix, prefix_packs, suffix_packs
from .resume import begin, best_prompt, save
from .run import Run, batches_of_step, read_texts


def fit(run: Run) -> TrainerState:
    """Train the active prompt; the model ends with the best or the last one.

    The order of rows depends on the seed and the epoch alone, and the learning rate on the step; a checkpoint
    holds the prompt, AdamW's moments and what the current epoch has summed up. So a resumed run goes through
    the same numbers as one that was never interrupted, and reports the same losses.

    Raises:
        TrainingError: a loss or gradient is not finite; nothing of that step reaches the prompt.
        ConfigError: the checkpoint to resume is of other rows, options or another base model.
    """
    options, model = run.options, run.model
    optimizer = torch.optim.AdamW(
        [model.prompt],
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        weight_decay=options.weight_decay,
    )
    state = begin(run, optimizer)
    if run.texts is not None and run.suffix:
        read_texts(run.texts, (example.input_ids for example in run.examples), run.callback)
    best, good = best_prompt(run, state), Snapshot.of(model.prompt, optimizer, state)
    seen = state.partial_epoch or PartialEpoch()
    epoch_started = time.perf_counter() - seen.seconds
    with LogWriter(options.output_dir, resume_step=state.global_step if run.resume_from else None) as log:
        for step in range(state.global_step, run.max_steps):
            optimizer.param_groups[0]["lr"] = rate = run.learning_rate(step)
            loss, tokens = _backward(run, batches_of_step(run, step))
            if what := not_finite(loss, model.prompt):
                raise back_to(good, run, what, state, optimizer)
            good = Snapshot.of(model.prompt, optimizer, state)
            if options.max_grad_norm:
                torch.nn.utils.clip_grad_norm_([model.prompt], options.max_grad_norm)
            if what := take_step(optimizer):
                raise back_to(good, run, what, state, optimizer)
            done = step + 1
            seen = seen.plus(loss, tokens, time.perf_counter() - epoch_started)
            run.callback.step(done, loss)
            if done % options.logging_steps == 0 or done == run.max_steps:
                log.write(step=done, epoch=done / run.steps_per_epoch, loss=loss, learning_rate=rate)
            ends_epoch = done % run.steps_per_epoch == 0 or done == run.max_steps
            state = replace(state, global_step=done, epoch=done / run.steps_per_epoch, partial_epoch=seen)
            better = False
            if ends_epoch or _due(options.eval_strategy, options.eval_steps, done, False):
                record = EpochRecord(epoch=state.epoch, step=done, learning_rate=rate, train_loss=seen.loss)
                record = _validated(run, record, ends_epoch)
                record = replace(record, seconds=time.perf_counter() - epoch_started)
                better = is_best(run.metric, record, state.history)
                state = _with(state, run, record, better)
                best = model.prompt.detach().clone() if better else best
                run.callback.epoch(record, better)
                log.write(**{name: value for name, value in asdict(record).items() if value is not None})
                seen, epoch_started = PartialEpoch(), time.perf_counter()
            if _due(options.save_strategy, options.save_steps, done, ends_epoch) or (
                better and options.save_strategy != "no"
            ):
                save(run, state, optimizer)
    if options.load_best_model_at_end and best is not None:
        with torch.no_grad():
            model.prompt.copy_(best)
    return state


def _backward(run: Run, batches: Sequence[Sequence[Example]]) -> tuple[float, int]:
    """Gradient of the mean loss over all supervised tokens of the step; returns that loss and their number.

    Of ``objective=classes``, the mean is over the rows.
    """
    base, prompt = run.model.base_model, run.model.prompt
    if run.options.objective == "classes":
        assert run.classes is not None
        rows = [example for batch in batches for example in batch]
        given = run.classes, len(prompt), int(run.suffix), run.tokens_per_pack
        candidates = [pack for batch in batches for pack in packs_of_candidates(batch, *given)]
        found = backward_classes(
            base, prompt, candidates, run.classes, run.texts, suffix=run.suffix, weights=run.class_weights
        )
        return found, len(rows)
    tokens = sum(len(example.label_ids) for batch in batches for example in batch)
    if run.suffix:
        packs = [pack for batch in batches for pack in suffix_packs(batch, len(prompt), run.tokens_per_pack)]
        return backward_suffix(base, prompt, packs, run.texts), tokens
    packs = [pack for batch in batches for pack in prefix_packs(batch, run.tokens_per_pack)]
    plans = [plan_examples(pack, len(prompt), prompt.device) for pack in packs]
    loss = mean_loss(base, plans, prompt, tokens)  # the prompt is computed once for all packs
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), tokens


def _due(strategy: str, every: int | None, done: int, ends_epoch: bool) -> bool:
    return ends_epoch if strategy == "epoch" else strategy == "steps" and every is not None and done % every == 0


def _validated(run: Run, record: EpochRecord, ends_epoch: bool) -> EpochRecord:
    due = _due(run.options.eval_strategy, run.options.eval_steps, record.step, ends_epoch)
    if run.validate is None or not due:
        return record
    found = run.validate()
    return replace(record, eval_loss=found.eval_loss, accuracy=found.accuracy, macro_f1=found.macro_f1)


def _with(state: TrainerState, run: Run, record: EpochRecord, better: bool) -> TrainerState:
    """The state after a line of the table."""
    state = replace(state, history=(*state.history, record), seconds=state.seconds + record.seconds, partial_epoch=None)
    if not better or run.metric is None:
        return state
    saves = run.options.save_strategy != "no"
    return replace(
        state,
        best_metric=getattr(record, run.metric),
        best_step=record.step,
        best_model_checkpoint=f"checkpoint-{record.step}" if saves else None,
    )
