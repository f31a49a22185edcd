"""Metrics on the test rows, next to two baselines: the majority class and the untuned prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from .. import metrics as scores
from ..inference.classifier import Classes
from ..inference.evaluate import evaluate_examples
from ..storage.record import Metrics
from ..types import Example
from .run import Run

UNTUNED = "untuned prompt"
MAJORITY = "majority class"


def score_test_rows(run: Run, test: Sequence[Example], classes: Classes | None, initial_prompt: Tensor) -> Metrics:
    """Metrics on the test rows, with those of the baselines if ``options.baselines``.

    Args:
        classes: with the linear probe and the ensemble, if there are any.
        initial_prompt: ``[P, D]`` of before training.
    """
    size = run.options.per_device_eval_batch_size
    with run.callback.progress("testing", len(test)) as progress:
        metrics = evaluate_examples(run.prompted, test, classes, batch_size=size, progress=progress)
    if not run.options.baselines:
        return metrics
    with run.callback.progress("testing the untuned prompt", len(test)) as progress:
        prompt_alone = classes and replace(classes, linear_probe=None, ensemble=None)
        untuned = replace(run.prompted, prompt=initial_prompt)
        found = evaluate_examples(untuned, test, prompt_alone, batch_size=size, progress=progress)
    baselines = {UNTUNED: {"accuracy": found.accuracy, "macro_f1": found.macro_f1, "eval_loss": found.eval_loss}}
    if classes is not None:
        baselines = {MAJORITY: _majority(run.examples, test, classes.names), **baselines}
    return replace(metrics, baselines=baselines)


def _majority(train: Sequence[Example], test: Sequence[Example], names: Sequence[str]) -> dict[str, float | None]:
    """Scores of always predicting the most frequent label of the training rows."""
    guess = scores.majority([names.index(str(example.label)) for example in train], len(names))
    gold = [names.index(str(example.label)) for example in test]
    matrix = scores.confusion_matrix(gold, [guess] * len(gold), len(names))
    return {"accuracy": scores.accuracy(matrix), "macro_f1": scores.macro_f1(matrix), "eval_loss": None}
