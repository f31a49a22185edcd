"""Stopping and going on: a run's checkpoints, and where it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..storage.adapter import WEIGHTS_NAME, read_prompt
from ..storage.record import TrainerState
from .checkpoint import check_checkpoint, read_checkpoint, remove_old, write_checkpoint
from .run import Run


def check_resumable(run: Run) -> None:
    """Refuse to go on with another run's checkpoint, before anything is written.

    Raises:
        AdapterError: a file of the checkpoint is missing or damaged.
        ConfigError: its rows, options or base model were others.
    """
    if run.resume_from is not None:
        check_checkpoint(run.resume_from, run.model.prompt, run.fingerprint, run.config.prompt_placement)


def begin(run: Run, optimizer: torch.optim.Optimizer) -> TrainerState:
    """The state to start from: that of a new run, or of the checkpoint to resume."""
    fresh = TrainerState(
        global_step=0,
        epoch=0.0,
        max_steps=run.max_steps,
        num_train_epochs=run.num_train_epochs,
        metric_for_best_model=run.metric,
        num_train_examples=len(run.examples),
        fingerprint=run.fingerprint,
    )
    state = fresh
    if run.resume_from is not None:
        state = replace(
            read_checkpoint(run.resume_from, run.model.prompt, optimizer, run.fingerprint, run.config.prompt_placement),
            max_steps=fresh.max_steps,
            num_train_epochs=fresh.num_train_epochs,
            num_train_examples=fresh.num_train_examples,
            fingerprint=fresh.fingerprint,
            finished=False,
        )
        run.callback.note(f"resuming from {run.resume_from.name}, step {state.global_step} of {run.max_steps}")
    run.callback.begin(state, run.task.is_classification)
    return state


def best_prompt(run: Run, state: TrainerState) -> Tensor | None:
    """The best prompt of an interrupted run, from its checkpoint."""
    if run.resume_from is None or state.best_model_checkpoint is None:
        return None
    path = run.resume_from.parent / state.best_model_checkpoint / WEIGHTS_NAME
    if not path.is_file():
        return None
    return read_prompt(path, run.config.prompt_placement).to(run.model.prompt.device)


def save(run: Run, state: TrainerState, optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint, and remove those that are too many."""
    write(run, state, optimizer)
    remove_old(run.options.output_dir, run.options.save_total_limit, state.best_model_checkpoint)


def write(run: Run, state: TrainerState, optimizer: torch.optim.Optimizer) -> Path:
    """Write a checkpoint; returns its folder."""
    return write_checkpoint(
        run.options.output_dir,
        config=replace(run.config, inference_mode=True),
        prompt=run.model.prompt,
        optimizer=optimizer,
        state=state,
        task=run.task,
    )
