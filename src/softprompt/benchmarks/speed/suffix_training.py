"""``softprompt bench suffix``: training steps with the prompt behind the text; rows with texts of 30 tokens or more.

``prefix``      ``softprompt train``, the prompt before the text.
``softprompt``  ``softprompt train --prompt_placement suffix``: each text was read once, before the clock, so a step
                computes prompt and label alone. What the reading took is told apart: it is paid once for all epochs.

PEFT has no such thing, so it has no side here, whatever ``--against`` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...engine.text_cache import TextCache
from ...types import Example
from . import ours, reference
from .measure import COMPARED_ROWS, Side, Subject, seconds_of
from .models import start_prompt
from .names import OURS, PREFIX
from .settings import BenchOptions
from .training_step import OnEngine, compare_steps


class SuffixTraining(Subject):
    """Loss and gradient of a prompt behind the texts."""

    name = "suffix"
    least_tokens = 30

    def __init__(self, options: BenchOptions) -> None:
        super().__init__(options)
        self.prompt = start_prompt(self.base, options.num_virtual_tokens)
        self._reading: dict[str, Any] = {}

    def make_side(self, name: str) -> Side:
        """The prompt before the texts or behind them, by name."""
        return OnEngine(self.base, self.prompt) if name == PREFIX else self._suffix()

    def agreement(self, sides: dict[str, Side]) -> dict[str, Any]:
        """Loss and gradient of a batch, against those of its rows alone, each of text, prompt and label."""
        batch = self.batches[0][:COMPARED_ROWS]
        loss, gradient = reference.loss_and_gradient(self.alone, self.prompt, batch, suffix=True)
        return compare_steps([sides[OURS].run(sides[OURS].prepare(batch))], loss, gradient, self.tolerance)

    def more(self, times: Sequence[float]) -> dict[str, Any]:
        """What reading the texts of all batches took."""
        return self._reading

    def _suffix(self) -> Side:
        texts = ours.texts_of(self.base)
        inputs = {example.input_ids for batch in self.batches for example in batch}
        texts.get(min(inputs))  # warms up, and is not kept
        seconds = seconds_of(texts.read, inputs, self.device)
        self._reading = {"read_texts_seconds": seconds, "texts_read": len(inputs)}
        return BehindKnownTexts(self.base, self.prompt, texts)


class BehindKnownTexts(Side):
    """Rows straight to the engine, which knows their texts; plans are built under the clock."""

    def __init__(self, base: Any, prompt: Tensor, texts: TextCache) -> None:
        self._base, self._texts = base, texts
        self._prompt = torch.nn.Parameter(prompt.clone())

    def run(self, prepared: Sequence[Example]) -> tuple[float, Tensor]:
        """Loss and gradient ``[P, D]``."""
        self._prompt.grad = None
        loss = ours.train_step_suffix(self._base, self._prompt, prepared, self._texts)
        gradient: Tensor | None = self._prompt.grad
        assert gradient is not None
        return loss, gradient
