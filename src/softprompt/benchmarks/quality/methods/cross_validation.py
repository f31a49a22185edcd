"""Choosing a setting by cross-validation on the training rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from .... import metrics

FOLDS = 5

T = TypeVar("T")

Predict = Callable[[list[int], list[int]], Sequence[int]]
"""Learns from the rows at some positions, and answers those at others: a label each."""


def folds(labels: Sequence[int], seed: int) -> list[list[int]]:
    """Positions of rows in ``FOLDS`` parts (fewer for fewer rows), each label dealt out evenly."""
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda row: labels[row])  # stable: within a label the order stays drawn
    parts: list[list[int]] = [order[start::FOLDS] for start in range(FOLDS)]
    return [sorted(part) for part in parts if part]


def cross_validated(predict: Predict, labels: Sequence[int], num_labels: int, seed: int) -> float:
    """Macro-F1 of the answers to all rows, each given by what was learned from the other folds."""
    guesses = [0] * len(labels)
    for held_out in folds(labels, seed):
        inside = set(held_out)
        learned = [row for row in range(len(labels)) if row not in inside]
        for row, guess in zip(held_out, predict(learned or held_out, held_out), strict=True):
            guesses[row] = int(guess)
    return metrics.macro_f1(metrics.confusion_matrix(labels, guesses, num_labels))


def best(settings: Iterable[T], score: Callable[[T], float]) -> T:
    """The setting that scores best; of equals the first."""
    return max(settings, key=score)
