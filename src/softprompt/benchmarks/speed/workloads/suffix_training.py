"""``softprompt benchmark speed suffix``: training steps of a suffix prompt, on texts of 30 or more tokens.

``prefix``      ``softprompt train`` with a prefix prompt.
``softprompt``  ``softprompt train --prompt_placement suffix``. The text cache is filled before the clock starts, so a
                step computes prompt and label only. Filling it is paid once for all epochs and reported separately.

PEFT has no suffix prompts, so it is not measured, whatever the value of ``--against``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ....engine.text_cache import TextCache
from ....types import Example
from .. import plain_forward, softprompt_calls
from ..base_models import initial_prompt
from ..catalog import OURS, PREFIX
from ..settings import SpeedOptions
from ..timing import seconds_of
from ..workload import COMPARED_ROWS, Implementation, Workload
from .training_step import TrainingStep, compare_steps


class SuffixTraining(Workload):
    """Loss of a batch, and gradient of a suffix prompt."""

    name = "suffix"
    min_tokens = 30

    def __init__(self, options: SpeedOptions) -> None:
        super().__init__(options)
        self.prompt = initial_prompt(self.base, options.num_virtual_tokens)
        self._filling: dict[str, Any] = {}

    def make_implementation(self, name: str) -> Implementation:
        """See ``Workload``."""
        return TrainingStep(self.base, self.prompt) if name == PREFIX else self._suffix()

    def agreement(self, implementations: dict[str, Implementation]) -> dict[str, Any]:
        """Differences in loss and gradient from rows computed one by one as text, prompt, label."""
        batch = self.batches[0][:COMPARED_ROWS]
        loss, gradient = plain_forward.loss_and_gradient(self.alone, self.prompt, batch, suffix=True)
        return compare_steps(
            [implementations[OURS].run(implementations[OURS].prepare(batch))], loss, gradient, self.tolerance
        )

    def more(self, times: Sequence[float]) -> dict[str, Any]:
        """Time to fill the text cache."""
        return self._filling

    def _suffix(self) -> Implementation:
        texts = softprompt_calls.empty_text_cache(self.base)
        inputs = {example.input_ids for batch in self.batches for example in batch}
        texts.get(min(inputs))  # warms up; not kept
        seconds = seconds_of(texts.read, inputs, self.device)
        self._filling = {"read_texts_seconds": seconds, "texts_read": len(inputs)}
        return SuffixStep(self.prompt, texts)


class SuffixStep(Implementation):
    """A step of suffix training on cached texts, including building its plans."""

    def __init__(self, prompt: Tensor, texts: TextCache) -> None:
        self._texts = texts
        self._prompt = torch.nn.Parameter(prompt.clone())

    def run(self, prepared: Sequence[Example]) -> tuple[float, Tensor]:
        """Loss and gradient ``[P, D]``."""
        self._prompt.grad = None
        loss = softprompt_calls.suffix_train_step(self._prompt, prepared, self._texts)
        gradient: Tensor | None = self._prompt.grad
        assert gradient is not None
        return loss, gradient
