"""Going back to the last finite prompt when a loss, gradient or update is not finite."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import TrainingError
from ..storage.record import TrainerState
from .checkpoint import remove_checkpoint
from .resume import save_state
from .run import Run
from .step import NonFiniteError


@dataclass(frozen=True)
class Snapshot:
    """A run before a step: the prompt, AdamW's moments and the trainer state."""

    prompt: Tensor
    moments: dict[str, Any]
    state: TrainerState

    @classmethod
    def of(cls, prompt: Tensor, optimizer: torch.optim.Optimizer, state: TrainerState) -> Snapshot:
        """A copy; it takes kilobytes."""
        return cls(prompt.detach().clone(), copy.deepcopy(optimizer.state_dict()), state)


def roll_back(
    run: Run, good: Snapshot, error: NonFiniteError, state: TrainerState, optimizer: torch.optim.Optimizer
) -> TrainingError:
    """Restore the last prompt whose loss was finite and save it as a checkpoint.

    Returns:
        The error to raise.
    """
    with torch.no_grad():
        run.prompt.copy_(good.prompt)
    optimizer.load_state_dict(good.moments)
    if good.state.global_step < state.global_step:  # a checkpoint of the step in between holds the prompt that failed
        remove_checkpoint(run.options.output_dir, state.global_step)
    saved = save_state(run, good.state, optimizer)
    rate, scaled = run.options.learning_rate, run.options.scale_learning_rate
    shown = f"{rate * run.learning_rate_unit:g}" + (f", {rate:g} times the size of the embeddings" if scaled else "")
    return TrainingError(
        f"training stopped at step {state.global_step + 1} of {run.max_steps}: the {error}. Lower learning_rate "
        f"(it is {shown}) or set max_grad_norm=1; the last good prompt is in {saved}"
    )
