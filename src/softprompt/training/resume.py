"""Saving and resuming a run: its checkpoints, and the state it starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..storage.adapter import WEIGHTS_NAME, read_prompt
from ..storage.record import TrainerState
from .checkpoint import check_checkpoint, read_checkpoint, remove_old_checkpoints, write_checkpoint
from .run import Run


def check_resumable(run: Run) -> None:
    """Refuse the checkpoint of another run, before anything is written.

    Raises:
        AdapterError: a file of the checkpoint is missing or damaged.
        ConfigError: its rows, options or base model differ.
    """
    if run.resume_from is not None:
        check_checkpoint(run.resume_from, run.prompt, run.fingerprint, run.config.prompt_placement)


def initial_state(run: Run, optimizer: torch.optim.Optimizer) -> TrainerState:
    """The state of a new run; or that of the checkpoint to resume, whose prompt and moments are then loaded."""
    new = TrainerState(
        global_step=0,
        epoch=0.0,
        max_steps=run.max_steps,
        num_train_epochs=run.num_train_epochs,
        metric_for_best_model=run.metric,
        num_train_examples=len(run.examples),
        fingerprint=run.fingerprint,
    )
    if run.resume_from is None:
        return new
    saved = read_checkpoint(run.resume_from, run.prompt, optimizer, run.fingerprint, run.config.prompt_placement)
    run.callback.on_message(f"resuming from {run.resume_from.name}, step {saved.global_step} of {run.max_steps}")
    return replace(
        saved,
        max_steps=new.max_steps,
        num_train_epochs=new.num_train_epochs,
        num_train_examples=new.num_train_examples,
        fingerprint=new.fingerprint,
        finished=False,
    )


def best_prompt(run: Run, state: TrainerState) -> Tensor | None:
    """The best prompt of an interrupted run, from its checkpoint."""
    if run.resume_from is None or state.best_model_checkpoint is None:
        return None
    path = run.resume_from.parent / state.best_model_checkpoint / WEIGHTS_NAME
    if not path.is_file():
        return None
    return read_prompt(path, run.config.prompt_placement).to(run.prompt.device)


def save_checkpoint(run: Run, state: TrainerState, optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint, and remove the oldest ones beyond ``save_total_limit``."""
    save_state(run, state, optimizer)
    remove_old_checkpoints(run.options.output_dir, run.options.save_total_limit, state.best_model_checkpoint)


def save_state(run: Run, state: TrainerState, optimizer: torch.optim.Optimizer) -> Path:
    """Write a checkpoint; returns its folder."""
    return write_checkpoint(
        run.options.output_dir,
        config=replace(run.config, inference_mode=True),
        prompt=run.prompt,
        optimizer=optimizer,
        state=state,
        task=run.task,
    )
