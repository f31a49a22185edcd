"""Selection of hyperparameters by stratified cross-validation on the training rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from .... import metrics

FOLDS = 5

T = TypeVar("T")

Predict = Callable[[list[int], list[int]], Sequence[int]]
"""Fits to the rows at the first positions and predicts a label for each row at the second."""


def folds(labels: Sequence[int], seed: int) -> list[list[int]]:
    """Positions of rows in ``FOLDS`` stratified folds (fewer if there are fewer rows)."""
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda row: labels[row])  # stable: rows of one label stay shuffled
    parts: list[list[int]] = [order[start::FOLDS] for start in range(FOLDS)]
    return [sorted(part) for part in parts if part]


def cross_validated(predict: Predict, labels: Sequence[int], num_labels: int, seed: int) -> float:
    """Macro-F1 of the predictions for all rows, each made by a model fitted to the other folds."""
    guesses = [0] * len(labels)
    for held_out in folds(labels, seed):
        inside = set(held_out)
        learned = [row for row in range(len(labels)) if row not in inside]
        for row, guess in zip(held_out, predict(learned or held_out, held_out), strict=True):
            guesses[row] = int(guess)
    return metrics.macro_f1(metrics.confusion_matrix(labels, guesses, num_labels))


def best(settings: Iterable[T], score: Callable[[T], float]) -> T:
    """The setting with the highest score; the first of equal ones."""
    return max(settings, key=score)
