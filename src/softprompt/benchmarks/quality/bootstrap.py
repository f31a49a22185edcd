"""Paired bootstrap: how sure a difference in macro-F1 between two methods is."""

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
    """A difference and its interval, in shares (0.01 is one point); no interval where predictions are not kept."""

    difference: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign of the difference is sure at this level."""
        return self.low > 0 or self.high < 0


def differences(method: Sequence[Predictions], reference: Sequence[Predictions], samples: int) -> tuple[float, Tensor]:
    """Macro-F1 of a method minus that of a reference on one task.

    Each resample draws the S seeds and the N test rows with replacement, the same ones for both: what is common to
    both (a hard row, a lucky draw of training rows) cancels out.

    Args:
        method, reference: S cells each, of the same seeds in the same order.

    Returns:
        The mean difference over seeds, and that of each resample ``[samples]``.

    Raises:
        DataError: the cells are not of the same seeds and test rows.
    """
    gold = reference[0].gold if reference else ()
    if len(method) != len(reference) or any(each.gold != gold for each in (*method, *reference)) or not gold:
        raise DataError("a paired comparison needs the same seeds and the same test rows on both sides")
    generator = torch.Generator().manual_seed(SEED)
    rows = torch.randint(len(gold), (samples, len(gold)), generator=generator)
    seeds = torch.randint(len(method), (samples, len(method)), generator=generator)
    drawn = torch.zeros(samples, len(gold), dtype=torch.float64)
    drawn.scatter_add_(1, rows, torch.ones_like(drawn))
    gaps = [
        weighted_macro_f1(ours, drawn) - weighted_macro_f1(theirs, drawn) for ours, theirs in _pairs(method, reference)
    ]
    whole = torch.ones(1, len(gold), dtype=torch.float64)
    observed = [
        weighted_macro_f1(ours, whole) - weighted_macro_f1(theirs, whole) for ours, theirs in _pairs(method, reference)
    ]
    return float(torch.stack(observed).mean()), torch.stack(gaps, dim=1).gather(1, seeds).mean(1)


def interval(difference: float, resampled: Tensor) -> Interval:
    """The middle ``LEVEL`` of the resamples."""
    edges = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=resampled.dtype)
    low, high = torch.quantile(resampled, edges).tolist()
    return Interval(difference, low, high)


def weighted_macro_f1(predictions: Predictions, weights: Tensor) -> Tensor:
    """Macro-F1 ``[B]`` where row n of the test rows counts ``weights[b, n]`` times."""
    number = len(predictions.labels)
    gold = torch.nn.functional.one_hot(torch.tensor(predictions.gold), number).to(weights)
    guesses = torch.nn.functional.one_hot(torch.tensor(predictions.guesses), number).to(weights)
    right = weights @ (gold * guesses)
    either = weights @ (gold + guesses)
    return (2 * right / either.clamp_min(1)).mean(1)  # a label neither there nor guessed counts 0, as in metrics.py


def _pairs(ours: Sequence[Predictions], theirs: Sequence[Predictions]) -> zip[tuple[Predictions, Predictions]]:
    return zip(ours, theirs, strict=True)
