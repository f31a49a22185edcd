"""``softprompt bench train``: training steps, forward and backward, of the same rows.

``peft guide``  PEFT as the guide uses it: left-padded to ``max_length``, logits at all positions.
``peft best``   PEFT padded to the longest row of the batch.
``drop-in``     our ``get_peft_model`` on the guide's padded batches: only the import changed.
``softprompt``  what ``softprompt train`` does: rows straight to the engine.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import TrainingError
from ...types import Example
from . import ours, reference
from .inputs import left_padded
from .measure import COMPARED_ROWS, Side, Subject
from .models import start_prompt
from .names import DROP_IN, OURS, PEFT_BEST
from .roofline import Bound
from .settings import BenchOptions
from .theirs import peft_model, prompt_of


class Training(Subject):
    """Loss and gradient of the prompt for a batch."""

    name = "train"

    def __init__(self, options: BenchOptions) -> None:
        super().__init__(options)
        self.prompt = start_prompt(self.base, options.num_virtual_tokens)
        self._engine = OnEngine(self.base, self.prompt)
        self._bound = Bound(self.base, [ours.size_of(batch, options.num_virtual_tokens) for batch in self.batches])

    def make_side(self, name: str) -> Side:
        """PEFT or ours, by name."""
        if name == OURS:
            return self._engine
        width = None if name == PEFT_BEST else self.work.width
        if name == DROP_IN:
            model = ours.drop_in(self.base, self.prompt)
            return OnPaddedRows(model, model.prompt, width)
        model = peft_model(self.stock, [self.prompt])
        model.train()  # as in the guide
        return OnPaddedRows(model, prompt_of(model), width)

    def agreement(self, sides: dict[str, Side]) -> dict[str, Any]:
        """Loss and gradient of a batch, ours against those of its rows alone."""
        batch = self.batches[0][:COMPARED_ROWS]
        loss, gradient = reference.loss_and_gradient(self.alone, self.prompt, batch)
        found = [sides[name].run(sides[name].prepare(batch)) for name in (OURS, DROP_IN) if name in sides]
        return compare_steps(found, loss, gradient, self.tolerance)

    def after_round(self) -> None:
        """Time the bare matrix products of a step."""
        self._bound.measure()

    def more(self, times: Sequence[float]) -> dict[str, Any]:
        """The bound, and what plans cost."""
        planning = statistics.median(self._engine.planning[-len(times) :]) / statistics.median(times)
        return {**self._bound.figures(times), "plan_seconds_fraction": planning}


class OnEngine(Side):
    """Rows straight to the engine; plans are built under the clock."""

    def __init__(self, base: Any, prompt: Tensor) -> None:
        self._base = base
        self._prompt = torch.nn.Parameter(prompt.clone())
        self.planning: list[float] = []

    def run(self, prepared: Sequence[Example]) -> tuple[float, Tensor]:
        """Loss and gradient ``[P, D]``."""
        self._prompt.grad = None
        loss, planning = ours.train_step(self._base, self._prompt, prepared)
        self.planning.append(planning)
        gradient: Tensor | None = self._prompt.grad
        assert gradient is not None
        return loss, gradient


class OnPaddedRows(Side):
    """``model(**batch).loss.backward()``, PEFT's or ours; the padded batch lies ready, as a data loader has it."""

    def __init__(self, model: Any, prompt: Tensor, width: int | None) -> None:
        self._model, self._prompt, self._width = model, prompt, width

    def prepare(self, batch: Sequence[Example]) -> dict[str, Tensor]:
        """The guide's batch."""
        return left_padded(batch, self._width, self._prompt.device)

    def run(self, prepared: dict[str, Tensor]) -> tuple[float, Tensor]:
        """Loss and gradient ``[P, D]``."""
        self._prompt.grad = None
        loss = self._model(**prepared).loss
        loss.backward()
        gradient: Tensor | None = self._prompt.grad
        assert gradient is not None
        return loss.item(), gradient


def compare_steps(
    found: Sequence[tuple[float, Tensor]], loss: float, gradient: Tensor, tolerance: float
) -> dict[str, Any]:
    """How far losses and gradients are, at most, from those of the rows alone.

    Raises:
        TrainingError: so far that speed would mean nothing.
    """
    losses = [abs(own - loss) / abs(loss) for own, _ in found]
    gradients = [float((own - gradient).norm() / gradient.norm()) for _, own in found]
    worst = max(gradients)
    if not all(each < tolerance for each in gradients):  # NaN is not
        raise TrainingError(
            f"our gradient differs from that of each row alone by {worst:.1e}; speed would mean nothing"
        )
    return {"max_relative_loss_difference": max(losses), "max_relative_gradient_difference": worst}
