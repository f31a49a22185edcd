"""Numbers that are not finite: noticing them, and going back to the prompt before them."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import TrainingError
from ..storage.record import TrainerState
from .checkpoint import remove_checkpoint
from .resume import write
from .run import Run


@dataclass(frozen=True)
class Snapshot:
    """A run as it was before a step: the prompt, AdamW's moments and the state."""

    prompt: Tensor
    moments: dict[str, Any]
    state: TrainerState

    @classmethod
    def of(cls, prompt: Tensor, optimizer: torch.optim.Optimizer, state: TrainerState) -> Snapshot:
        """A copy, of kilobytes."""
        return cls(prompt.detach().clone(), copy.deepcopy(optimizer.state_dict()), state)


def not_finite(loss: float, prompt: Tensor) -> str | None:
    """What is not finite, in words, before a step."""
    if not math.isfinite(loss):
        return f"loss is {loss}"
    if prompt.grad is None or not bool(torch.isfinite(prompt.grad).all()):
        return "gradient has numbers that are not finite"
    return None


def take_step(optimizer: torch.optim.Optimizer) -> str | None:
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


def back_to(
    good: Snapshot, run: Run, what: str, state: TrainerState, optimizer: torch.optim.Optimizer
) -> TrainingError:
    """Go back to ``good``, the last prompt whose loss was finite, and write it; returns the error to raise."""
    with torch.no_grad():
        run.model.prompt.copy_(good.prompt)
    optimizer.load_state_dict(good.moments)
    if good.state.global_step < state.global_step:  # a checkpoint of the step in between holds what failed
        remove_checkpoint(run.options.output_dir, state.global_step)
    kept = write(run, good.state, optimizer)
    rate, scaled = run.options.learning_rate, run.options.scale_learning_rate
    meant = f"{rate * run.learning_rate_unit:g}" + (f", {rate:g} times the embeddings' size" if scaled else "")
    return TrainingError(
        f"training stopped at step {state.global_step + 1} of {run.max_steps}: the {what}. Lower learning_rate "
        f"(it is {meant}) or set max_grad_norm=1; the last good prompt is in {kept}"
    )
