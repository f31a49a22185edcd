"""Paired bootstrap: confidence intervals of the difference in macro-F1 between two methods.

After Efron and Tibshirani, "An Introduction to the Bootstrap", chapter 13 (percentile intervals).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import DataError
from .results import Predictions

LEVEL = 0.95
SEED = 0


@dataclass(frozen=True)
class Interval:
    """A difference and its interval, as fractions (0.01 is one point); infinite without predictions."""

    difference: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def excludes_zero(self) -> bool:
        """Whether the difference is significant at this level."""
        return self.low > 0 or self.high < 0


def differences(method: Sequence[Predictions], reference: Sequence[Predictions], samples: int) -> tuple[float, Tensor]:
    """Macro-F1 of a method minus that of a reference on one task.

    Each resample draws the S seeds and the N test rows with replacement, the same for both methods. Variation that
    the methods share (a difficult row, a lucky sample of training rows) therefore cancels out.

    Args:
        method, reference: the predictions of S seeds each, in the same order.

    Returns:
        The mean difference over seeds, and the differences of the resamples, ``[samples]``.

    Raises:
        DataError: seeds or test rows differ.
    """
    gold = reference[0].gold if reference else ()
    if len(method) != len(reference) or any(each.gold != gold for each in (*method, *reference)) or not gold:
        raise DataError("a paired comparison needs the same seeds and the same test rows for both methods")
    pairs = list(zip(method, reference, strict=True))
    generator = torch.Generator().manual_seed(SEED)
    rows = torch.randint(len(gold), (samples, len(gold)), generator=generator)
    seeds = torch.randint(len(method), (samples, len(method)), generator=generator)
    drawn = torch.zeros(samples, len(gold), dtype=torch.float64)
    drawn.scatter_add_(1, rows, torch.ones_like(drawn))
    gaps = [weighted_macro_f1(own, drawn) - weighted_macro_f1(other, drawn) for own, other in pairs]
    whole = torch.ones(1, len(gold), dtype=torch.float64)
    observed = [weighted_macro_f1(own, whole) - weighted_macro_f1(other, whole) for own, other in pairs]
    return float(torch.stack(observed).mean()), torch.stack(gaps, dim=1).gather(1, seeds).mean(1)


def interval(difference: float, resampled: Tensor) -> Interval:
    """The central ``LEVEL`` of the resamples."""
    edges = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=resampled.dtype)
    low, high = torch.quantile(resampled, edges).tolist()
    return Interval(difference, low, high)


def weighted_macro_f1(predictions: Predictions, weights: Tensor) -> Tensor:
    """Macro-F1 ``[B]`` where test row n counts ``weights[b, n]`` times."""
    number = len(predictions.labels)
    gold = torch.nn.functional.one_hot(torch.tensor(predictions.gold), number).to(weights)
    guesses = torch.nn.functional.one_hot(torch.tensor(predictions.guesses), number).to(weights)
    correct = weights @ (gold * guesses)
    either = weights @ (gold + guesses)
    return (2 * correct / either.clamp_min(1)).mean(1)  # 0 for a label neither present nor predicted, as in metrics.py
