"""A training run: its model, rows and options, and what follows from them for each step."""

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
from transformers import PreTrainedModel

from ..config.adapter_config import PromptTuningConfig
from ..config.options import TrainOptions
from ..data.task import Task
from ..engine.plans import default_tokens_per_pack
from ..engine.runner import ModelRunner
from ..engine.text_cache import TextCache
from ..inference.classifier import Classes
from ..inference.probe import class_weights
from ..inference.prompted import PromptedModel
from ..peft.model import PeftModelForCausalLM
from ..storage.record import Metrics
from ..types import Example
from .callbacks import Callback
from .lr_schedule import lr_multiplier
from .objectives import Classification, LanguageModeling, class_indices


@dataclass
class Run:
    """A training run.

    Attributes:
        model: the base model with the prompt that is trained.
        options: with the recipe's defaults.
        examples: encoded training rows.
        validate: scores the current prompt; ``None`` if nothing is validated.
        resume_from: folder of the checkpoint to resume.
        texts: KV cache of the texts before suffix prompts; ``None`` for prefix prompts.
        classes: of a classification task.
        embedding_rms: root mean square of the base's input embeddings, the unit of scaled learning rates.
        unlabeled: encoded rows without labels, for self-training.
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
    def base(self) -> PreTrainedModel:
        """The frozen base model."""
        return self.model.base_model

    @cached_property
    def runner(self) -> ModelRunner:
        """Runs the base model in the whole run; the text cache's runner, if there is one."""
        return ModelRunner(self.base) if self.texts is None else self.texts.runner

    @property
    def prompted(self) -> PromptedModel:
        """The base model with the current prompt, to score rows with."""
        return PromptedModel(self.runner, self.prompt, self.config.placement)

    @property
    def prompt(self) -> Tensor:
        """The prompt that is trained, ``[P, D]``."""
        return self.model.prompt

    @property
    def config(self) -> PromptTuningConfig:
        """The config of the prompt that is trained."""
        config = self.model.active_peft_config
        assert isinstance(config, PromptTuningConfig)
        return config

    @cached_property
    def objective(self) -> LanguageModeling | Classification:
        """The loss of the prompt."""
        placement, tokens, texts = self.model.prompt_placement, self.tokens_per_pack, self.texts
        if self.options.objective == "language_modeling":
            return LanguageModeling(base=self.runner, placement=placement, tokens_per_pack=tokens, texts=texts)
        assert self.classes is not None
        return Classification(
            base=self.runner,
            placement=placement,
            tokens_per_pack=tokens,
            texts=texts,
            classes=self.classes,
            weights=self.class_weights,
        )

    @property
    def tokens_per_pack(self) -> int:
        """Most tokens that are computed at once; by default enough to keep the device busy."""
        return self.options.tokens_per_pack or default_tokens_per_pack(self.prompt.device)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the rows."""
        return math.ceil(len(self.examples) / self.rows_per_step)

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimizer step."""
        return self.options.per_device_train_batch_size * self.options.gradient_accumulation_steps

    @property
    def max_steps(self) -> int:
        """Optimizer steps of the prompt."""
        if self.options.max_steps > 0:
            return self.options.max_steps
        return math.ceil(self.steps_per_epoch * self.options.num_train_epochs)

    @property
    def num_train_epochs(self) -> int:
        """Passes over the rows, counting a partial last one."""
        return math.ceil(self.max_steps / self.steps_per_epoch)

    @property
    def fold_steps(self) -> int:
        """Optimizer steps of the fold prompts, at most ``max_steps``."""
        steps = self.options.fold_epochs * self.steps_per_epoch
        return min(steps, self.options.max_steps) if self.options.max_steps > 0 else steps

    @property
    def learning_rate_unit(self) -> float:
        """The factor of the option ``learning_rate``: 1, or the size of the embeddings if the rate is scaled."""
        return self.embedding_rms if self.options.scale_learning_rate else 1.0

    def learning_rate(self, step: int) -> float:
        """Learning rate of an optimizer step (0-based)."""
        return self.learning_rate_unit * (
            self.options.learning_rate * lr_multiplier(step, self.max_steps, self.options)
        )

    @property
    def metric(self) -> str | None:
        """The metric that ranks prompts; ``None`` when nothing is validated."""
        if self.validate is None:
            return None
        return self.options.metric_for_best_model or ("macro_f1" if self.task.is_classification else "eval_loss")

    @cached_property
    def class_weights(self) -> Tensor | None:
        """Weight of the rows of each class, ``[C]``; ``None`` for 1."""
        if self.options.class_weights == "none" or self.classes is None:
            return None
        gold = class_indices(self.examples, self.classes)
        return class_weights(gold, len(self.classes.ids)).to(self.prompt.device)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what a resumed run must have in common with its first part.

        The encoded rows stand for files, columns, template, labels, tokenizer and ``max_length`` alike. Epochs,
        learning rate and the strategies may change, so they are left out.
        """
        options, class_ids = self.options, self.classes.ids if self.classes else ()
        facts = (
            options.seed,
            self.rows_per_step,
            len(self.prompt),
            self.config.base_model_name_or_path,
            self.config.prompt_tuning_init,
            self.config.prompt_tuning_init_text,
            # The defaults of older releases add nothing, so that their runs can be resumed.
            *(["suffix"] if self.model.prompt_placement == "suffix" else []),
            *([options.objective, class_ids] if options.objective != "language_modeling" else []),
            *([options.class_weights] if options.class_weights != "none" else []),
        )
        found = hashlib.sha256(json.dumps(facts).encode())
        for example in self.examples:
            lengths = (len(example.input_ids), len(example.label_ids))
            found.update(array("q", (*lengths, *example.input_ids, *example.label_ids)).tobytes())
        return found.hexdigest()


def rows_of_step(run: Run, step: int, num_rows: int) -> list[int]:
    """Numbers of the rows of one optimizer step, of ``num_rows``; each epoch has a new order."""
    epoch, index = divmod(step, math.ceil(num_rows / run.rows_per_step))
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(run.options.seed * 65_537 + epoch))
    return order[index * run.rows_per_step : (index + 1) * run.rows_per_step].tolist()


def batches_of_step(run: Run, step: int) -> list[list[Example]]:
    """The batches of one optimizer step."""
    rows = rows_of_step(run, step, len(run.examples))
    size = run.options.per_device_train_batch_size
    return [[run.examples[row] for row in rows[i : i + size]] for i in range(0, len(rows), size)]


def fill_text_cache(texts: TextCache, inputs: Iterable[tuple[int, ...]], callback: Callback) -> None:
    """Compute the texts that the steps read, before the first step; texts that are cached cost nothing."""
    inputs = set(inputs)
    with callback.progress("reading the texts", len(inputs)) as progress:
        texts.read(inputs, progress)
