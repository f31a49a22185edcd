"""Metrics on the test rows, next to two baselines: the majority class and the untuned prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .. import metrics as scores
from ..config.options import TrainOptions
from ..inference.classifier import Classes
from ..inference.evaluate import evaluate_examples
from ..peft.model import PeftModelForCausalLM
from ..storage.record import Metrics
from ..types import Example
from .callbacks import Callback

UNTUNED = "untuned prompt"
MAJORITY = "majority class"


def score_test_rows(
    options: TrainOptions,
    model: PeftModelForCausalLM,
    train: Sequence[Example],
    test: Sequence[Example],
    classes: Classes | None,
    initial_prompt: Tensor,
    callback: Callback,
) -> Metrics:
    """Metrics on the test rows, with those of the baselines if ``options.baselines``.

    Args:
        train: the training rows, for the majority class.
        initial_prompt: ``[P, D]`` of before training.
    """
    size = options.per_device_eval_batch_size
    with callback.progress("testing", len(test)) as progress:
        metrics = evaluate_examples(model.prompted, test, classes, batch_size=size, progress=progress)
    if not options.baselines:
        return metrics
    tuned = model.prompt.detach().clone()
    with torch.no_grad(), callback.progress("testing the untuned prompt", len(test)) as progress:
        model.prompt.copy_(initial_prompt)
        prompt_alone = classes and replace(classes, linear_probe=None, ensemble=None)
        untuned = evaluate_examples(model.prompted, test, prompt_alone, batch_size=size, progress=progress)
        model.prompt.copy_(tuned)
    baselines = {UNTUNED: {"accuracy": untuned.accuracy, "macro_f1": untuned.macro_f1, "eval_loss": untuned.eval_loss}}
    if classes is not None:
        baselines = {MAJORITY: _majority(train, test, classes.names), **baselines}
    return replace(metrics, baselines=baselines)


def _majority(train: Sequence[Example], test: Sequence[Example], names: Sequence[str]) -> dict[str, float | None]:
    """Scores of always predicting the most frequent label of the training rows."""
    guess = scores.majority([names.index(str(example.label)) for example in train], len(names))
    gold = [names.index(str(example.label)) for example in test]
    matrix = scores.confusion_matrix(gold, [guess] * len(gold), len(names))
    return {"accuracy": scores.accuracy(matrix), "macro_f1": scores.macro_f1(matrix), "eval_loss": None}
