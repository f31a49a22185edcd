"""The training loop: batch, forward, loss, backward, finite check, step, validate, save."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..adapter import WEIGHTS_NAME, read_prompt
from ..checkpoint import read_checkpoint, remove_checkpoint, remove_old, write_checkpoint
from ..config import PromptTuningConfig
from ..engine.loss import token_losses
from ..errors import TrainingError
from ..evaluate import plan_examples
from ..model import PeftModelForCausalLM
from ..options import TrainOptions
from ..record import EpochRecord, LogWriter, Metrics, TrainerState
from ..task import Task
from ..types import Example
from .listener import Listener
from .schedule import learning_rate


@dataclass
class Run:
    """Everything the loop works on."""

    model: PeftModelForCausalLM
    options: TrainOptions
    task: Task
    examples: Sequence[Example]
    validate: Callable[[], Metrics] | None
    listener: Listener
    resume_from: Path | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass over the rows."""
        return math.ceil(len(self.examples) / self.rows_per_step)

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimiser step."""
        return self.options.per_device_train_batch_size * self.options.gradient_accumulation_steps

    @property
    def max_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.steps_per_epoch * self.options.num_train_epochs

    @property
    def metric(self) -> str | None:
        """What decides which prompt is best; ``None`` when nothing is validated."""
        if self.validate is None:
            return None
        return self.options.metric_for_best_model or ("macro_f1" if self.task.is_classification else "eval_loss")


def fit(run: Run) -> TrainerState:
    """Train the active prompt; the model ends with the best or the last one.

    The order of rows depends on the seed and the epoch alone, and the learning rate on the step, so a
    resumed run goes through the same numbers as one that was never interrupted.

    Raises:
        TrainingError: a loss or gradient is not finite; nothing of that step reaches the prompt.
    """
    options, model = run.options, run.model
    optimizer = torch.optim.AdamW(
        [model.prompt],
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        weight_decay=options.weight_decay,
    )
    state = _begin(run, optimizer)
    best, good = _best_prompt(run, state), _Snapshot.of(model.prompt, optimizer, state)
    seen_loss, seen_tokens, epoch_started = 0.0, 0, time.perf_counter()
    with LogWriter(options.output_dir, resume_step=state.global_step if run.resume_from else None) as log:
        for step in range(state.global_step, run.max_steps):
            batches = batches_of_step(run, step)
            optimizer.param_groups[0]["lr"] = rate = learning_rate(step, run.max_steps, options)
            loss, tokens = _backward(run, batches)
            if what := _not_finite(loss, model.prompt):
                _stop(run, what, state, optimizer, good)
            good = _Snapshot.of(model.prompt, optimizer, state)
            if options.max_grad_norm:
                torch.nn.utils.clip_grad_norm_([model.prompt], options.max_grad_norm)
            if what := _step(optimizer):
                _stop(run, what, state, optimizer, good)
            done = step + 1
            seen_loss, seen_tokens = seen_loss + loss * tokens, seen_tokens + tokens
            run.listener.step(done, loss)
            if done % options.logging_steps == 0 or done == run.max_steps:
                log.write(step=done, epoch=done / run.steps_per_epoch, loss=loss, learning_rate=rate)
            ends_epoch = done % run.steps_per_epoch == 0
            state = replace(state, global_step=done, epoch=done / run.steps_per_epoch)
            is_best = False
            if ends_epoch or _due(options.eval_strategy, options.eval_steps, done, False):
                record = EpochRecord(
                    epoch=state.epoch, step=done, learning_rate=rate, train_loss=seen_loss / seen_tokens
                )
                record = _validated(run, record, ends_epoch)
                record = replace(record, seconds=time.perf_counter() - epoch_started)
                is_best = _is_best(run, record, state.history)
                state = _with(state, run, record, is_best)
                best = model.prompt.detach().clone() if is_best else best
                run.listener.epoch(record, is_best)
                log.write(**{name: value for name, value in asdict(record).items() if value is not None})
                seen_loss, seen_tokens, epoch_started = 0.0, 0, time.perf_counter()
            if _due(options.save_strategy, options.save_steps, done, ends_epoch) or (
                is_best and options.save_strategy != "no"
            ):
                state = _save(run, state, optimizer)
    if options.load_best_model_at_end and best is not None:
        with torch.no_grad():
            model.prompt.copy_(best)
    return state


def batches_of_step(run: Run, step: int) -> list[list[Example]]:
    """The batches of one optimiser step; rows come in a new order each epoch."""
    epoch, index = divmod(step, run.steps_per_epoch)
    order = torch.randperm(
        len(run.examples), generator=torch.Generator().manual_seed(run.options.seed * 65_537 + epoch)
    )
    rows = order[index * run.rows_per_step : (index + 1) * run.rows_per_step].tolist()
    size = run.options.per_device_train_batch_size
    return [[run.examples[row] for row in rows[i : i + size]] for i in range(0, len(rows), size)]


def _backward(run: Run, batches: Sequence[Sequence[Example]]) -> tuple[float, int]:
    """Gradient of the mean loss over all supervised tokens of the step; returns that loss and their number."""
    prompt, device = run.model.prompt, run.model.prompt.device
    plans = [plan_examples(batch, len(prompt), device) for batch in batches]
    tokens = sum(len(plan.targets) for plan in plans)
    total = 0.0
    for plan in plans:
        loss = token_losses(run.model.base_model, plan, prompt).sum() / tokens
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total, tokens


@dataclass(frozen=True)
class _Snapshot:
    """A run as it was before a step: the prompt, AdamW's moments and the state."""

    prompt: Tensor
    moments: dict[str, Any]
    state: TrainerState

    @classmethod
    def of(cls, prompt: Tensor, optimizer: torch.optim.Optimizer, state: TrainerState) -> _Snapshot:
        """A copy, of kilobytes."""
        return cls(prompt.detach().clone(), copy.deepcopy(optimizer.state_dict()), state)


def _not_finite(loss: float, prompt: Tensor) -> str | None:
    """What is not finite, in words, before a step."""
    if not math.isfinite(loss):
        return f"loss is {loss}"
    if prompt.grad is None or not bool(torch.isfinite(prompt.grad).all()):
        return "gradient has numbers that are not finite"
    return None


def _step(optimizer: torch.optim.Optimizer) -> str | None:
    """One optimiser step; says in words what went wrong with it."""
    try:
        optimizer.step()
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        return "learning rate is more than AdamW can count with"
    finally:
        optimizer.zero_grad()
    moved = optimizer.param_groups[0]["params"][0]
    return None if bool(torch.isfinite(moved).all()) else "prompt has numbers that are not finite"


def _stop(run: Run, what: str, state: TrainerState, optimizer: torch.optim.Optimizer, good: _Snapshot) -> NoReturn:
    """Go back to ``good``, the last prompt whose loss was finite, and write it.

    Raises:
        TrainingError: always.
    """
    with torch.no_grad():
        run.model.prompt.copy_(good.prompt)
    optimizer.load_state_dict(good.moments)
    if good.state.global_step < state.global_step:  # a checkpoint of the step in between holds what failed
        remove_checkpoint(run.options.output_dir, state.global_step)
    kept = _write(run, good.state, optimizer)
    raise TrainingError(
        f"training stopped at step {state.global_step + 1} of {run.max_steps}: the {what}. Lower learning_rate "
        f"(it is {run.options.learning_rate:g}) or set max_grad_norm=1; the last good prompt is in {kept}"
    )


def _begin(run: Run, optimizer: torch.optim.Optimizer) -> TrainerState:
    fresh = TrainerState(
        global_step=0,
        epoch=0.0,
        max_steps=run.max_steps,
        num_train_epochs=run.options.num_train_epochs,
        metric_for_best_model=run.metric,
        num_train_examples=len(run.examples),
    )
    state = fresh
    if run.resume_from is not None:
        saved = read_checkpoint(run.resume_from, run.model.prompt, optimizer)
        state = replace(saved, max_steps=fresh.max_steps, num_train_epochs=fresh.num_train_epochs, finished=False)
        run.listener.note(f"resuming from {run.resume_from.name}, step {state.global_step} of {run.max_steps}")
    run.listener.begin(state, run.task.is_classification)
    return state


def _best_prompt(run: Run, state: TrainerState) -> Tensor | None:
    """The best prompt of an interrupted run, from its checkpoint."""
    if run.resume_from is None or state.best_model_checkpoint is None:
        return None
    path = run.resume_from.parent / state.best_model_checkpoint / WEIGHTS_NAME
    return read_prompt(path).to(run.model.prompt.device) if path.is_file() else None


def _due(strategy: str, every: int | None, done: int, ends_epoch: bool) -> bool:
    return ends_epoch if strategy == "epoch" else strategy == "steps" and every is not None and done % every == 0


def _validated(run: Run, record: EpochRecord, ends_epoch: bool) -> EpochRecord:
    due = _due(run.options.eval_strategy, run.options.eval_steps, record.step, ends_epoch)
    if run.validate is None or not due:
        return record
    found = run.validate()
    return replace(record, eval_loss=found.eval_loss, accuracy=found.accuracy, macro_f1=found.macro_f1)


def _is_best(run: Run, record: EpochRecord, history: Sequence[EpochRecord]) -> bool:
    """Whether no earlier record is as good; among equal scores the lower loss is better."""
    rank = None if run.metric is None else _rank(run.metric, record)
    if run.metric is None or rank is None:
        return False
    return all(earlier is None or rank > earlier for earlier in (_rank(run.metric, each) for each in history))


def _rank(metric: str, record: EpochRecord) -> tuple[float, float] | None:
    """More is better; ``None`` where nothing was measured. A loss that is not finite is worse than any other."""
    if getattr(record, metric) is None:
        return None
    loss = -record.eval_loss if record.eval_loss is not None and math.isfinite(record.eval_loss) else -math.inf
    return (loss, 0.0) if metric == "eval_loss" else (getattr(record, metric), loss)


def _with(state: TrainerState, run: Run, record: EpochRecord, is_best: bool) -> TrainerState:
    state = replace(state, history=(*state.history, record), seconds=state.seconds + record.seconds)
    if not is_best or run.metric is None:
        return state
    saves = run.options.save_strategy != "no"
    return replace(
        state,
        best_metric=getattr(record, run.metric),
        best_step=record.step,
        best_model_checkpoint=f"checkpoint-{record.step}" if saves else None,
    )


def _save(run: Run, state: TrainerState, optimizer: torch.optim.Optimizer) -> TrainerState:
    _write(run, state, optimizer)
    remove_old(run.options.output_dir, run.options.save_total_limit, state.best_model_checkpoint)
    return state


def _write(run: Run, state: TrainerState, optimizer: torch.optim.Optimizer) -> Path:
    config = run.model.active_peft_config
    assert isinstance(config, PromptTuningConfig)
    return write_checkpoint(
        run.options.output_dir,
        config=replace(config, inference_mode=True),
        prompt=run.model.prompt,
        optimizer=optimizer,
        state=state,
        task=run.task,
    )
