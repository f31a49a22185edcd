"""``softprompt benchmark speed classes``: training steps of the recipes ``guide`` and ``default`` with 151 classes.

``guide``       ``softprompt train --recipe guide``: the loss of the correct label's tokens.
``softprompt``  ``softprompt train --recipe default``: cross-entropy over all labels.

The labels are those of ``intents.py``. The gradient of one row is checked against plain forward calls, one per label.
PEFT has no such loss, so it is not measured, whatever the value of ``--against``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....config.options import DataOptions, TrainOptions
from ....data.sources import load_splits
from ....data.tokenize import Encoder, default_end_token_id
from ....inference.classifier import Classes, classes_of
from ....models.families import context_length
from ....training.recipes import apply_recipe, build_task
from ....types import Example
from .. import plain_forward, softprompt_calls
from ..base_models import initial_prompt
from ..catalog import OURS
from ..inputs import require_classes
from ..settings import SpeedOptions
from ..workload import Implementation, Workload
from .intents import intents
from .training_step import compare_steps

Pair = tuple[Example, Example]
"""A row, encoded for ``guide`` and for ``default``."""


class ManyClasses(Workload):
    """Loss of a batch with many classes, and gradient of the prompt."""

    name = "classes"

    def __init__(self, options: SpeedOptions) -> None:
        super().__init__(options)
        self.prompt = initial_prompt(self.base, options.num_virtual_tokens)

    def make_batches(self) -> list[Any]:
        """Batches of pairs."""
        guide, _ = self._encoded("guide")
        default, self.classes = self._encoded("default")
        size = self.options.per_device_train_batch_size
        batches = replace(self.inputs, examples=guide).batches(size, self.num_batches)
        return [list(zip(batch, default[i * size :], strict=False)) for i, batch in enumerate(batches)]

    def _encoded(self, recipe: str) -> tuple[list[Example], Classes]:
        """The rows with intents as labels, encoded for a recipe."""
        options, count = self.options, len(self.inputs.examples)
        rows = load_splits(options.model_copy(update={"max_train_samples": count}))
        names = intents()
        given = options.model_dump(include=set(DataOptions.model_fields), exclude_none=True)
        chosen = TrainOptions(**given, recipe=recipe, output_dir=Path("unused"))
        chosen = apply_recipe(chosen, is_classification=True, num_rows=count)
        end_token_id = default_end_token_id(self.tokenizer)
        task = build_task(chosen, list(rows.train[0].fields), names, end_token_id)
        room = context_length(self.base.config)
        encoder = Encoder(self.tokenizer, task, num_virtual_tokens=options.num_virtual_tokens, context_length=room)
        labelled = [
            replace(row, fields={**row.fields, task.label_column: names[7 * i % len(names)]})
            for i, row in enumerate(rows.train)
        ]
        return encoder.encode_all(labelled), require_classes(replace(self.inputs, classes=classes_of(task, encoder)))

    def make_implementation(self, name: str) -> Implementation:
        """See ``Workload``."""
        if name == OURS:
            return DefaultStep(self.base, self.prompt, self.classes)
        return GuideStep(self.base, self.prompt)

    def agreement(self, implementations: dict[str, Implementation]) -> dict[str, Any]:
        """Differences in loss and gradient of one row from its labels computed one by one."""
        pair = self.batches[0][0]
        gold = self.classes.names.index(str(pair[1].label))
        loss, gradient = plain_forward.candidate_loss_and_gradient(
            self.alone, self.prompt, pair[1].input_ids, self.classes.ids, gold
        )
        return compare_steps([implementations[OURS].run([pair])], loss, gradient, self.tolerance)

    def more(self, times: Sequence[float]) -> dict[str, Any]:
        """Number of classes, and of tokens and positions with logits in a step."""
        size = softprompt_calls.size_of_candidates([default for _, default in self.batches[0]], self.classes)
        return {"num_classes": len(self.classes.ids), "tokens_per_step": size[0], "positions_per_step": size[1]}


class GuideStep(Implementation):
    """The language-model loss."""

    def __init__(self, base: Any, prompt: Tensor) -> None:
        self._runner, self._prompt = softprompt_calls.runner_of(base), torch.nn.Parameter(prompt.clone())

    def run(self, prepared: Sequence[Pair]) -> tuple[float, Tensor]:
        """Loss and gradient ``[P, D]``."""
        self._prompt.grad = None
        loss, _ = softprompt_calls.train_step(self._runner, self._prompt, [guide for guide, _ in prepared])
        gradient: Tensor | None = self._prompt.grad
        assert gradient is not None
        return loss, gradient


class DefaultStep(Implementation):
    """Cross-entropy over the labels."""

    def __init__(self, base: Any, prompt: Tensor, classes: Classes) -> None:
        self._runner, self._classes = softprompt_calls.runner_of(base), classes
        self._prompt = torch.nn.Parameter(prompt.clone())

    def run(self, prepared: Sequence[Pair]) -> tuple[float, Tensor]:
        """Loss and gradient ``[P, D]``."""
        self._prompt.grad = None
        loss = softprompt_calls.classes_step(
            self._runner, self._prompt, [default for _, default in prepared], self._classes
        )
        gradient: Tensor | None = self._prompt.grad
        assert gradient is not None
        return loss, gradient
