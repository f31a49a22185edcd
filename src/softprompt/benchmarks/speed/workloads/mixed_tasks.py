"""``softprompt benchmark speed tasks``: label scoring of rows that are mixed from sixteen prompts.

``peft guide``  rows grouped by task; for each group, ``set_adapter`` and the guide's evaluation, padded to
                ``max_length``.
``peft best``   the same, each group padded to its longest row.
``softprompt``  label scoring of all rows in one run, each with its own prompt.

Every task has a full batch of rows, so PEFT's groups are as large as the guide's batches.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ....types import Example
from .. import plain_forward, softprompt_calls
from ..base_models import initial_prompt
from ..catalog import OURS, PEFT_BEST
from ..inputs import left_padded, require_classes
from ..peft_calls import guide_evaluation, peft_model
from ..settings import SpeedOptions
from ..workload import COMPARED_ROWS, Implementation, Workload
from .evaluation import compare_scores

NUM_TASKS = 16
STREAMS = 2

Entry = tuple[int, Example]
"""Index of a task, and one of its rows."""


class MixedTasks(Workload):
    """Rows of many prompts, mixed."""

    name = "tasks"

    def __init__(self, options: SpeedOptions) -> None:
        super().__init__(options)
        self.labels = require_classes(self.inputs).ids
        self.prompts = [initial_prompt(self.base, options.num_virtual_tokens, seed) for seed in range(NUM_TASKS)]

    def make_batches(self) -> list[Any]:
        """Shuffled streams of rows; two tasks may share a row, but no task has a row twice."""
        size = self.options.per_device_train_batch_size
        self.inputs.batches(size, 1)  # raises if there are too few rows
        rows = self.inputs.examples
        shuffle = random.Random(0).shuffle
        streams = []
        for number in range(STREAMS):
            places = [(task, (number * NUM_TASKS + task) * size + k) for task in range(NUM_TASKS) for k in range(size)]
            stream: list[Entry] = [(task, rows[place % len(rows)]) for task, place in places]
            shuffle(stream)
            streams.append(stream)
        return streams

    def make_implementation(self, name: str) -> Implementation:
        """See ``Workload``."""
        if name == OURS:
            return MixedScoring(self.base, self.prompts, self.labels)
        model = peft_model(self.stock, self.prompts).eval()
        return AdapterByAdapter(model, self.tokenizer, None if name == PEFT_BEST else self.inputs.width)

    def agreement(self, implementations: dict[str, Implementation]) -> dict[str, Any]:
        """Differences in label probabilities from rows computed one by one with their prompts."""
        stream = self.batches[0][:COMPARED_ROWS]
        alone = [
            plain_forward.label_scores(self.alone, self.prompts[task], [example.input_ids], self.labels)[0]
            for task, example in stream
        ]
        return {
            "num_tasks": NUM_TASKS,
            **compare_scores(implementations[OURS].run(stream), torch.stack(alone), self.tolerance),
        }


class AdapterByAdapter(Implementation):
    """PEFT with ``set_adapter`` per group; groups and padded batches are prepared before the clock starts."""

    def __init__(self, model: Any, tokenizer: Any, width: int | None) -> None:
        self._model, self._tokenizer, self._width = model, tokenizer, width

    def prepare(self, batch: Sequence[Entry]) -> list[tuple[str, dict[str, Tensor]]]:
        """Adapter and padded batch of each task."""
        groups: dict[int, list[Example]] = {}
        for task, example in batch:
            groups.setdefault(task, []).append(example)
        device = self._model.device
        return [(f"task{task}", left_padded(rows, self._width, device)) for task, rows in groups.items()]

    def run(self, prepared: list[tuple[str, dict[str, Tensor]]]) -> list[tuple[float, list[str]]]:
        """Loss and texts of each group."""
        found = []
        for adapter, batch in prepared:
            self._model.set_adapter(adapter)
            found.append(guide_evaluation(self._model, self._tokenizer, batch))
        return found


class MixedScoring(Implementation):
    """One run of the engine; prompts are prefilled before the clock starts, rows are grouped after."""

    def __init__(self, base: Any, prompts: Sequence[Tensor], labels: Sequence[Sequence[int]]) -> None:
        self._runner, self._labels = softprompt_calls.runner_of(base), labels
        self._prompts = [softprompt_calls.prefilled(self._runner, prompt) for prompt in prompts]

    def run(self, prepared: Sequence[Entry]) -> Tensor:
        """Label log-probabilities ``[B, C]``, in the stream's order."""
        rows = [(self._prompts[task], example) for task, example in prepared]
        return softprompt_calls.score_mixed(self._runner, rows, self._labels)
