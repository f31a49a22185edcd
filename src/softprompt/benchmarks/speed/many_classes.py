"""``softprompt bench classes``: training steps of the recipes ``guide`` and ``default`` on 151 classes.

``guide``       ``softprompt train --recipe guide``: the loss of the right label's tokens.
``softprompt``  ``softprompt train --recipe default``: cross-entropy between all labels.

The texts are those of the rows, the labels those of ``intents.py``. The gradient of one row is checked against plain
forward calls, one per label. PEFT has no such loss and is not measured, whatever ``--against`` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config.options import DataOptions, TrainOptions
from ...data.sources import load_splits, make_task
from ...data.tokenize import Encoder, default_end_token_id
from ...inference.classifier import Classes, classes_of
from ...models.families import context_length
from ...training.recipes import follow
from ...types import Example
from . import ours, reference
from .inputs import need_classes
from .intents import intents
from .measure import Side, Subject
from .models import start_prompt
from .names import OURS
from .settings import BenchOptions
from .training_step import compare_steps

Pair = tuple[Example, Example]
"""A row, encoded for ``guide`` and for ``default``."""


class ManyClasses(Subject):
    """Loss and gradient of the prompt for a batch of rows with one of many labels."""

    name = "classes"

    def __init__(self, options: BenchOptions) -> None:
        super().__init__(options)
        self.prompt = start_prompt(self.base, options.num_virtual_tokens)

    def lay_out(self) -> list[Any]:
        """Batches of pairs."""
        guide, _ = self._encoded("guide")
        default, self.classes = self._encoded("default")
        size = self.options.per_device_train_batch_size
        batches = replace(self.work, examples=guide).batches(size, self.num_batches)
        return [list(zip(batch, default[i * size :], strict=False)) for i, batch in enumerate(batches)]

    def _encoded(self, recipe: str) -> tuple[list[Example], Classes]:
        """The rows with intents as labels, encoded for a recipe."""
        options, count = self.options, len(self.work.examples)
        rows = load_splits(options.model_copy(update={"max_train_samples": count}))
        names = intents()
        task = make_task(rows, options, end_token_id=default_end_token_id(self.tokenizer))
        given = options.model_dump(include=set(DataOptions.model_fields), exclude_none=True)
        chosen = TrainOptions(**given, recipe=recipe, output_dir=Path("unused"))
        _, task = follow(chosen, replace(task, labels=tuple(names)), count)
        room = context_length(self.base.config)
        encoder = Encoder(self.tokenizer, task, num_virtual_tokens=options.num_virtual_tokens, context_length=room)
        labelled = [
            replace(row, fields={**row.fields, task.label_column: names[7 * i % len(names)]})
            for i, row in enumerate(rows.train)
        ]
        return encoder.encode_all(labelled), need_classes(replace(self.work, classes=classes_of(task, encoder)))

    def make_side(self, name: str) -> Side:
        """A recipe's step, by name."""
        if name == OURS:
            return DefaultStep(self.base, self.prompt, self.classes)
        return GuideStep(self.base, self.prompt)

    def agreement(self, sides: dict[str, Side]) -> dict[str, Any]:
        """Loss and gradient of one row, compared with those of its labels computed one by one."""
        pair = self.batches[0][0]
        gold = self.classes.names.index(str(pair[1].label))
        loss, gradient = reference.candidate_loss_and_gradient(
            self.alone, self.prompt, pair[1].input_ids, self.classes.ids, gold
        )
        return compare_steps([sides[OURS].run([pair])], loss, gradient, self.tolerance)

    def more(self, times: Sequence[float]) -> dict[str, Any]:
        """Numbers of classes, and of tokens and positions with logits in a step."""
        size = ours.size_of_candidates([right for _, right in self.batches[0]], self.classes)
        return {"num_classes": len(self.classes.ids), "tokens_per_step": size[0], "positions_per_step": size[1]}


class GuideStep(Side):
    """The language-model loss."""

    def __init__(self, base: Any, prompt: Tensor) -> None:
        self._base, self._prompt = base, torch.nn.Parameter(prompt.clone())

    def run(self, prepared: Sequence[Pair]) -> tuple[float, Tensor]:
        """Loss and gradient ``[P, D]``."""
        self._prompt.grad = None
        loss, _ = ours.train_step(self._base, self._prompt, [left for left, _ in prepared])
        gradient: Tensor | None = self._prompt.grad
        assert gradient is not None
        return loss, gradient


class DefaultStep(Side):
    """Cross-entropy between the labels."""

    def __init__(self, base: Any, prompt: Tensor, classes: Classes) -> None:
        self._base, self._prompt, self._classes = base, torch.nn.Parameter(prompt.clone()), classes

    def run(self, prepared: Sequence[Pair]) -> tuple[float, Tensor]:
        """Loss and gradient ``[P, D]``."""
        self._prompt.grad = None
        loss = ours.classes_step(self._base, self._prompt, [right for _, right in prepared], self._classes)
        gradient: Tensor | None = self._prompt.grad
        assert gradient is not None
        return loss, gradient
