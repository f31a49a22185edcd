"""``softprompt bench tasks``: sixteen prompts, and their rows mixed in one stream.

``peft guide``  rows grouped by task; for each, ``set_adapter`` and the guide's evaluation, padded to ``max_length``.
``peft best``   the same, each group padded to its longest row.
``softprompt``  label scoring of the whole stream, each row under its own prompt.

A stream has a full batch of rows for each task, so PEFT's groups are as large as the guide's batches.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...types import Example
from . import ours, reference
from .evaluation import compare_scores
from .inputs import left_padded, need_classes
from .measure import COMPARED_ROWS, Side, Subject
from .models import start_prompt
from .names import OURS, PEFT_BEST
from .settings import BenchOptions
from .theirs import guide_evaluation, peft_model

NUM_TASKS = 16
STREAMS = 2

Entry = tuple[int, Example]
"""A task's number and one of its rows."""


class MixedTasks(Subject):
    """Rows of many prompts."""

    name = "tasks"

    def __init__(self, options: BenchOptions) -> None:
        super().__init__(options)
        self.labels = need_classes(self.work).ids
        self.prompts = [start_prompt(self.base, options.num_virtual_tokens, seed) for seed in range(NUM_TASKS)]

    def lay_out(self) -> list[Any]:
        """Streams in a shuffled order; two tasks may have the same row, one task has each row once."""
        size = self.options.per_device_train_batch_size
        self.work.batches(size, 1)  # refuses too few rows
        rows = self.work.examples
        shuffle = random.Random(0).shuffle
        streams = []
        for number in range(STREAMS):
            places = [(task, (number * NUM_TASKS + task) * size + k) for task in range(NUM_TASKS) for k in range(size)]
            stream: list[Entry] = [(task, rows[place % len(rows)]) for task, place in places]
            shuffle(stream)
            streams.append(stream)
        return streams

    def make_side(self, name: str) -> Side:
        """PEFT or ours, by name."""
        if name == OURS:
            return OneStream(self.base, self.prompts, self.labels)
        model = peft_model(self.stock, self.prompts).eval()
        return AdapterByAdapter(model, self.tokenizer, None if name == PEFT_BEST else self.work.width)

    def agreement(self, sides: dict[str, Side]) -> dict[str, Any]:
        """Label probabilities of a stream's rows, against those of each row alone under its prompt."""
        stream = self.batches[0][:COMPARED_ROWS]
        alone = [
            reference.label_scores(self.alone, self.prompts[task], [example.input_ids], self.labels)[0]
            for task, example in stream
        ]
        return {"num_tasks": NUM_TASKS, **compare_scores(sides[OURS].run(stream), torch.stack(alone), self.tolerance)}


class AdapterByAdapter(Side):
    """PEFT: the groups and their padded batches lie ready."""

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


class OneStream(Side):
    """The engine; prompts are computed once, before, and rows are grouped under the clock."""

    def __init__(self, base: Any, prompts: Sequence[Tensor], labels: Sequence[Sequence[int]]) -> None:
        self._base, self._labels = base, labels
        self._prompts = [ours.prefilled(base, prompt) for prompt in prompts]

    def run(self, prepared: Sequence[Entry]) -> Tensor:
        """Label log-probabilities ``[B, C]``, in the stream's order."""
        tasks, examples = zip(*prepared, strict=True)
        texts = [example.input_ids for example in examples]
        return ours.score_stream(self._base, self._prompts, tasks, texts, self._labels)
