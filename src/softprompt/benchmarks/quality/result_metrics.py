"""From label log-probabilities to the metrics of a result."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ... import metrics
from ...errors import TrainingError
from .results import Predictions

MIN_PROBABILITY = 1e-6
"""Smallest probability in the log loss: a label without training rows can have none."""
DIGITS = 6


def predictions_of(log_probs: Tensor, gold: Sequence[int], labels: Sequence[str]) -> Predictions:
    """Predictions from label scores.

    Args:
        log_probs: ``[N, C]``, log-probability of each label up to a constant per row; normalised here. ``-inf`` for an
            impossible label.

    Raises:
        TrainingError: a row has no finite score, or a NaN.
    """
    if log_probs.isnan().any() or not log_probs.amax(1).isfinite().all():
        raise TrainingError("scores are not finite; if the base is in float16, try dtype bfloat16 or float32")
    normal = log_probs.double().log_softmax(1)
    guesses = normal.argmax(1)  # the first of equal ones
    correct = normal[range(len(gold)), list(gold)].clamp_min(math.log(MIN_PROBABILITY))
    return Predictions(
        labels=tuple(labels),
        gold=tuple(gold),
        guesses=tuple(guesses.tolist()),
        confidences=_rounded(normal.amax(1).exp()),
        gold_log_probs=_rounded(correct),
    )


def metrics_of(predictions: Predictions) -> dict[str, float]:
    """Macro-F1, accuracy, expected calibration error and log loss, under their column names in the CSV."""
    gold, guesses = predictions.gold, predictions.guesses
    matrix = metrics.confusion_matrix(gold, guesses, len(predictions.labels))
    correct = [guess == answer for guess, answer in zip(guesses, gold, strict=True)]
    found = {
        "macro_f1": metrics.macro_f1(matrix),
        "accuracy": metrics.accuracy(matrix),
        "expected_calibration_error": metrics.expected_calibration_error(predictions.confidences, correct),
        "log_loss": -math.fsum(predictions.gold_log_probs) / len(gold),
    }
    return {name: round(value, DIGITS) for name, value in found.items()}


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(value, DIGITS) for value in values.tolist())
