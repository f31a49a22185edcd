"""What one training run works on, and which rows each of its steps takes."""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..config.adapter_config import PromptTuningConfig
from ..config.options import TrainOptions
from ..data.task import Task
from ..engine.plans import default_tokens_per_pack
from ..engine.text_cache import TextCache
from ..inference.classifier import Classes
from ..inference.probe import class_weights
from ..peft.model import PeftModelForCausalLM
from ..storage.record import Metrics
from ..types import Example
from .callbacks import Callback
from .schedule import learning_rate


@dataclass
class Run:
    """Everything the loop works on.

    Attributes:
        texts: knows the rows' texts where these stand before the prompt.
        classes: between which the prompt is to choose, for ``objective=classes``.
        embedding_rms: size of the base's input embeddings, of which learning rates may be multiples.
        unlabeled: rows without labels, for prompts of an ensemble to learn from each other.
    """

    model: PeftModelForCausalLM
    options: TrainOptions
    task: Task
    examples: Sequence[Example]
    validate: Callable[[], Metrics] | None
    callback: Callback
    resume_from: Path | None = None
    texts: TextCache | None = None
    classes: Classes | None = None
    embedding_rms: float = 1.0
    unlabeled: Sequence[Example] = ()

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass over the rows."""
        return math.ceil(len(self.examples) / self.rows_per_step)

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimiser step."""
        return self.options.per_device_train_batch_size * self.options.gradient_accumulation_steps

    @property
    def max_steps(self) -> int:
        """Optimiser steps of the prompt."""
        if self.options.max_steps > 0:
            return self.options.max_steps
        return math.ceil(self.steps_per_epoch * self.options.num_train_epochs)

    @property
    def num_train_epochs(self) -> int:
        """Passes over the rows, counting a partial last one."""
        return math.ceil(self.max_steps / self.steps_per_epoch)

    @property
    def fold_steps(self) -> int:
        """Optimiser steps of the prompts of folds, at most ``max_steps``."""
        steps = self.options.fold_epochs * self.steps_per_epoch
        return min(steps, self.options.max_steps) if self.options.max_steps > 0 else steps

    @property
    def learning_rate_unit(self) -> float:
        """What the option ``learning_rate`` is a multiple of."""
        return self.embedding_rms if self.options.scale_learning_rate else 1.0

    def learning_rate(self, step: int) -> float:
        """Learning rate of an optimiser step (0-based)."""
        return self.learning_rate_unit * learning_rate(step, self.max_steps, self.options)

    @property
    def metric(self) -> str | None:
        """What decides which prompt is best; ``None`` when nothing is validated."""
        if self.validate is None:
            return None
        return self.options.metric_for_best_model or ("macro_f1" if self.task.is_classification else "eval_loss")

    @property
    def tokens_per_pack(self) -> int:
        """Tokens that are computed at once: enough to keep the machine busy, if nobody has asked for less."""
        return self.options.tokens_per_pack or default_tokens_per_pack(self.model.prompt.device)

    @property
    def suffix(self) -> bool:
        """Whether the prompt stands behind the text."""
        return self.model.prompt_placement == "suffix"

    @property
    def config(self) -> PromptTuningConfig:
        """The config of the prompt that is trained."""
        config = self.model.active_peft_config
        assert isinstance(config, PromptTuningConfig)
        return config

    @property
    def _class_ids(self) -> Sequence[Sequence[int]]:
        return self.classes.ids if self.classes else ()

    @cached_property
    def class_weights(self) -> Tensor | None:
        """How much a row of each class counts, ``[C]``; ``None`` for 1."""
        if self.options.class_weights == "none" or self.classes is None:
            return None
        gold = [self.classes.names.index(str(example.label)) for example in self.examples]
        return class_weights(gold, len(self.classes.ids)).to(self.model.prompt.device)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what a resumed run must have in common with its first part.

        The encoded rows stand for files, columns, template, labels, tokenizer and ``max_length`` alike. How
        long, how fast and how often to look may change, so epochs, learning rate and the rest are left out.
        """
        facts = (
            self.options.seed,
            self.rows_per_step,
            len(self.model.prompt),
            self.config.base_model_name_or_path,
            self.config.prompt_tuning_init,
            self.config.prompt_tuning_init_text,
            # What is as it was in older releases adds nothing, so that their runs go on.
            *(["suffix"] if self.suffix else []),
            *([self.options.objective, self._class_ids] if self.options.objective != "language_modeling" else []),
            *([self.options.class_weights] if self.options.class_weights != "none" else []),
        )
        found = hashlib.sha256(json.dumps(facts).encode())
        for example in self.examples:
            lengths = (len(example.input_ids), len(example.label_ids))
            found.update(array("q", (*lengths, *example.input_ids, *example.label_ids)).tobytes())
        return found.hexdigest()


def rows_of_step(run: Run, step: int, number: int) -> list[int]:
    """Which of so many rows one optimiser step takes; they come in a new order each epoch."""
    epoch, index = divmod(step, math.ceil(number / run.rows_per_step))
    order = torch.randperm(number, generator=torch.Generator().manual_seed(run.options.seed * 65_537 + epoch))
    return order[index * run.rows_per_step : (index + 1) * run.rows_per_step].tolist()


def batches_of_step(run: Run, step: int) -> list[list[Example]]:
    """The batches of one optimiser step."""
    rows = rows_of_step(run, step, len(run.examples))
    size = run.options.per_device_train_batch_size
    return [[run.examples[row] for row in rows[i : i + size]] for i in range(0, len(rows), size)]


def read_texts(texts: TextCache, inputs: Iterable[tuple[int, ...]], callback: Callback) -> None:
    """Have the texts read that every epoch needs; it takes no time the second time."""
    inputs = set(inputs)
    with callback.rows("reading the texts", len(inputs)) as progress:
        texts.read(inputs, progress)
