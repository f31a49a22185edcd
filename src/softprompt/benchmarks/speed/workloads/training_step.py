"""``softprompt benchmark speed train``: training steps (forward and backward) on the same rows.

``peft guide``  PEFT as the guide uses it: left-padded to ``max_length``, logits at all positions.
``peft best``   PEFT padded to the longest row of the batch.
``drop-in``     softprompt's ``get_peft_model`` on the guide's padded batches: only the import changed.
``softprompt``  a step of ``softprompt train``.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ....errors import TrainingError
from ....types import Example
from .. import plain_forward, softprompt_calls
from ..base_models import initial_prompt
from ..catalog import DROP_IN, OURS, PEFT_BEST
from ..inputs import left_padded
from ..peft_calls import peft_model, prompt_of
from ..roofline import Roofline
from ..settings import SpeedOptions
from ..workload import COMPARED_ROWS, Implementation, Workload


class Training(Workload):
    """Loss of a batch, and gradient of the prompt."""

    name = "train"

    def __init__(self, options: SpeedOptions) -> None:
        super().__init__(options)
        self.prompt = initial_prompt(self.base, options.num_virtual_tokens)
        self._step = TrainingStep(self.base, self.prompt)
        self._roofline = Roofline(
            self.base, [softprompt_calls.size_of(batch, options.num_virtual_tokens) for batch in self.batches]
        )

    def make_implementation(self, name: str) -> Implementation:
        """See ``Workload``."""
        if name == OURS:
            return self._step
        width = None if name == PEFT_BEST else self.inputs.width
        if name == DROP_IN:
            model = softprompt_calls.drop_in(self.base, self.prompt)
            return PaddedStep(model, model.prompt, width)
        model = peft_model(self.stock, [self.prompt])
        model.train()  # as in the guide
        return PaddedStep(model, prompt_of(model), width)

    def agreement(self, implementations: dict[str, Implementation]) -> dict[str, Any]:
        """Differences in loss and gradient from rows computed one by one."""
        batch = self.batches[0][:COMPARED_ROWS]
        loss, gradient = plain_forward.loss_and_gradient(self.alone, self.prompt, batch)
        compared = [implementations[name] for name in (OURS, DROP_IN) if name in implementations]
        found = [each.run(each.prepare(batch)) for each in compared]
        return compare_steps(found, loss, gradient, self.tolerance)

    def after_round(self) -> None:
        """Time the matrix products of a step."""
        self._roofline.measure()

    def more(self, times: Sequence[float]) -> dict[str, Any]:
        """The roofline, and the share of time spent on plans."""
        planning = statistics.median(self._step.planning[-len(times) :]) / statistics.median(times)
        return {**self._roofline.figures(times), "plan_seconds_fraction": planning}


class TrainingStep(Implementation):
    """A step of ``softprompt train``, including building its plans."""

    def __init__(self, base: Any, prompt: Tensor) -> None:
        self._runner = softprompt_calls.runner_of(base)
        self._prompt = torch.nn.Parameter(prompt.clone())
        self.planning: list[float] = []

    def run(self, prepared: Sequence[Example]) -> tuple[float, Tensor]:
        """Loss and gradient ``[P, D]``."""
        self._prompt.grad = None
        loss, planning = softprompt_calls.train_step(self._runner, self._prompt, prepared)
        self.planning.append(planning)
        gradient: Tensor | None = self._prompt.grad
        assert gradient is not None
        return loss, gradient


class PaddedStep(Implementation):
    """``model(**batch).loss.backward()`` of PEFT or softprompt, on a padded batch from a data loader."""

    def __init__(self, model: Any, prompt: Tensor, width: int | None) -> None:
        self._model, self._prompt, self._width = model, prompt, width

    def prepare(self, batch: Sequence[Example]) -> dict[str, Tensor]:
        """The padded batch."""
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
    """Largest relative differences in loss and gradient from rows computed one by one.

    Raises:
        TrainingError: a difference is larger than the tolerance.
    """
    losses = [abs(own - loss) / abs(loss) for own, _ in found]
    gradients = [float((own - gradient).norm() / gradient.norm()) for _, own in found]
    worst = max(gradients)
    if not all(each < tolerance for each in gradients):  # also false for NaN
        raise TrainingError(
            f"the gradient differs by {worst:.1e} from that of rows computed one by one; the measurement is invalid"
        )
    return {"max_relative_loss_difference": max(losses), "max_relative_gradient_difference": worst}
