"""From label log-probabilities to the figures of a cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ... import metrics
from ...errors import TrainingError
from .results import Predictions

LEAST_PROBABILITY = 1e-6
"""What a label counts with in the log loss at least: one that the training rows lack has none of its own."""
DIGITS = 6


def predictions_of(log_probs: Tensor, gold: Sequence[int], labels: Sequence[str]) -> Predictions:
    """What a method answers.

    Args:
        log_probs: ``[N, C]``, of each label, in any common unit: they are made to sum to one over the labels.
            ``-inf`` stands for a label that cannot be.

    Raises:
        TrainingError: a row has no finite score, or one that is no number.
    """
    if log_probs.isnan().any() or not log_probs.amax(1).isfinite().all():
        raise TrainingError("scores that are no numbers; if the base is in float16, try dtype bfloat16 or float32")
    normal = log_probs.double().log_softmax(1)
    guesses = normal.argmax(1)  # of equals the first
    right = normal[range(len(gold)), list(gold)].clamp_min(math.log(LEAST_PROBABILITY))
    return Predictions(
        labels=tuple(labels),
        gold=tuple(gold),
        guesses=tuple(guesses.tolist()),
        confidences=_rounded(normal.amax(1).exp()),
        gold_log_probs=_rounded(right),
    )


def figures(predictions: Predictions) -> dict[str, float]:
    """Macro-F1, accuracy, expected calibration error and log loss, by the names of the CSV."""
    gold, guesses = predictions.gold, predictions.guesses
    matrix = metrics.confusion_matrix(gold, guesses, len(predictions.labels))
    right = [guess == answer for guess, answer in zip(guesses, gold, strict=True)]
    found = {
        "macro_f1": metrics.macro_f1(matrix),
        "accuracy": metrics.accuracy(matrix),
        "expected_calibration_error": metrics.expected_calibration_error(predictions.confidences, right),
        "log_loss": -math.fsum(predictions.gold_log_probs) / len(gold),
    }
    return {name: round(value, DIGITS) for name, value in found.items()}


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(value, DIGITS) for value in values.tolist())
