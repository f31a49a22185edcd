"""softprompt as its own commands use it: the only module of the speed benchmark that calls training and inference."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...config.adapter_config import PromptTuningConfig
from ...config.options import TrainOptions
from ...engine.plans import default_tokens_per_pack, plan_candidates, plan_examples
from ...engine.runner import ModelRunner
from ...engine.text_cache import TextCache
from ...inference.classifier import Classes, label_log_probs
from ...inference.mixed import run_mixed
from ...inference.mixed_rows import LabelRow, PlacedPrompt
from ...peft.factory import get_peft_model
from ...training.objectives import Classification, LanguageModeling
from ...training.step import backward, forward_backward
from ...types import Example

EVAL_BATCH_SIZE: int = TrainOptions.model_fields["per_device_eval_batch_size"].default
"""Default batch size of ``softprompt evaluate``."""

TEXT_CACHE_BYTES = int(TrainOptions.model_fields["text_cache_memory"].default * 2**30)
"""Default memory of the text cache; the rest spills to disk."""


def runner_of(base: Any) -> ModelRunner:
    """The runner that a training run or server has for its base model."""
    return ModelRunner(base)


def train_step(runner: ModelRunner, prompt: Tensor, batch: Sequence[Example]) -> tuple[float, float]:
    """Add the gradient of the batch's mean loss to ``prompt.grad``.

    Returns:
        The loss, and the seconds spent on building plans.
    """
    tokens = default_tokens_per_pack(prompt.device)
    objective = LanguageModeling(base=runner, placement="prefix", tokens_per_pack=tokens)
    started = time.perf_counter()
    packs = objective.packs(batch, prompt)
    planning = time.perf_counter() - started
    return backward(objective, prompt, packs, objective.count(batch)), planning


def classes_step(runner: ModelRunner, prompt: Tensor, batch: Sequence[Example], classes: Classes) -> float:
    """As ``train_step``, with the cross-entropy over all labels; returns the loss."""
    tokens = default_tokens_per_pack(prompt.device)
    objective = Classification(base=runner, placement="prefix", tokens_per_pack=tokens, classes=classes)
    return forward_backward(objective, prompt, [batch])[0]


def size_of_candidates(batch: Sequence[Example], classes: Classes) -> tuple[int, int]:
    """Numbers of distinct text and label tokens in a batch, and of positions with logits."""
    plan = plan_candidates(1, [example.input_ids for example in batch], classes.ids, torch.device("cpu"))
    return plan.tree.num_tokens - 1, len(plan.predictors.unique())  # type: ignore[no-untyped-call]


def empty_text_cache(base: Any) -> TextCache:
    """The text cache of ``softprompt train --prompt_placement suffix``, still empty."""
    return TextCache(base, TEXT_CACHE_BYTES)


def suffix_train_step(prompt: Tensor, batch: Sequence[Example], texts: TextCache) -> float:
    """As ``train_step``, with a suffix prompt after cached texts; returns the loss."""
    tokens = default_tokens_per_pack(prompt.device)
    objective = LanguageModeling(base=texts.runner, placement="suffix", tokens_per_pack=tokens, texts=texts)
    return forward_backward(objective, prompt, [batch])[0]


def drop_in(base: Any, prompt: Tensor) -> Any:
    """softprompt's model with PEFT's interface."""
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(prompt))
    model = get_peft_model(base, config)
    with torch.no_grad():
        model.prompt.copy_(prompt)
    return model


@torch.no_grad()
def prefilled(runner: ModelRunner, prompt: Tensor) -> PlacedPrompt:
    """A prefix prompt with its KV cache, as a prompt library keeps it."""
    return PlacedPrompt(prompt, "prefix", runner.prefill_prompt(prompt))


@torch.no_grad()
def score(model: Any, examples: Sequence[Example], classes: Classes) -> Tensor:
    """Log-probability ``[B, C]`` of each label after each text, on the CPU, as in ``softprompt evaluate``."""
    return label_log_probs(model.prompted, examples, classes, batch_size=EVAL_BATCH_SIZE)


def score_mixed(
    runner: ModelRunner, rows: Sequence[tuple[PlacedPrompt, Example]], labels: Sequence[Sequence[int]]
) -> Tensor:
    """Log-probability ``[B, C]`` of each label for rows that have prompts of their own, on the CPU."""
    classes = Classes(tuple(map(str, range(len(labels)))), tuple(map(tuple, labels)))
    return torch.stack(run_mixed(runner, [LabelRow(prompt, classes, example) for prompt, example in rows]))


@dataclass(frozen=True)
class BatchSize:
    """The work in a batch if nothing is computed twice.

    Attributes:
        tokens: T, unique tokens.
        supervised: S, positions that need logits.
        pairs: pairs of a token and a token that it attends to.
    """

    tokens: int
    supervised: int
    pairs: int


def size_of(batch: Sequence[Example], num_virtual_tokens: int) -> BatchSize:
    """The work in a batch as one plan."""
    plan = plan_examples(batch, num_virtual_tokens, torch.device("cpu"))
    tree = plan.tree
    pairs = sum(own * above + own * (own + 1) // 2 for own, above in zip(tree.lengths, tree.depths, strict=True))
    return BatchSize(tree.num_tokens, len(plan.targets), pairs)
