"""Classifiers on frozen hidden states: the layer is chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ....types import Row
from .cross_validation import best, cross_validated
from .logistic_regression import LogisticClassifier
from .method import FittedScores, Method

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Candidate values of C, the inverse regularisation strength, for the chosen layer."""
FIRST_STRENGTH = 0.1
"""C while choosing the layer."""
NEIGHBOURS = (1, 3, 5, 9, 15)
"""Candidate numbers of neighbours."""


class LinearProbe(Method):
    """Logistic regression on the hidden state of one layer at the last token."""

    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> FittedScores:
        """See ``Method``."""
        train, test = _standardised(self.context.states.of(rows), self.context.states.of(self.context.data.test))
        number = len(self.context.data.labels)

        def score(layer: int, strength: float) -> float:
            features = train[:, layer].numpy()

            def predict(inside: list[int], held_out: list[int]) -> list[int]:
                model = LogisticClassifier(features[inside], [labels[row] for row in inside], strength)
                return model.predict(features[held_out])

            return cross_validated(predict, labels, number, seed)

        layer = best(range(train.shape[1]), lambda layer: score(layer, FIRST_STRENGTH))
        strength = best(STRENGTHS, lambda strength: score(layer, strength))
        model = LogisticClassifier(train[:, layer].numpy(), labels, strength)
        return FittedScores(model.log_probs(test[:, layer].numpy(), number), model.num_weights)


class Knn(Method):
    """k nearest neighbours by cosine similarity of the hidden states of one layer at the last token."""

    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> FittedScores:
        """See ``Method``."""
        train, test = _standardised(self.context.states.of(rows), self.context.states.of(self.context.data.test))
        train, test = (torch.nn.functional.normalize(states, dim=2) for states in (train, test))
        number, gold = len(self.context.data.labels), torch.tensor(labels)

        def score(setting: tuple[int, int]) -> float:
            layer, neighbours = setting

            def predict(inside: list[int], held_out: list[int]) -> list[int]:
                found = vote(train[inside, layer], gold[inside], train[held_out, layer], neighbours, number)
                return [int(label) for label in found.argmax(1)]

            return cross_validated(predict, labels, number, seed)

        settings = ((layer, neighbours) for layer in range(train.shape[1]) for neighbours in NEIGHBOURS)
        layer, neighbours = best(settings, score)
        return FittedScores(vote(train[:, layer], gold, test[:, layer], neighbours, number), 0)


def vote(train: Tensor, labels: Tensor, test: Tensor, neighbours: int, num_labels: int) -> Tensor:
    """Log-probabilities ``[N, C]`` from the labels ``[n]`` of the nearest training rows.

    Args:
        train, test: hidden states ``[n, D]`` and ``[N, D]`` of norm one.
        neighbours: number of neighbours. One further vote is spread evenly over all labels; ties go to the nearer
            neighbours.
    """
    similarity, rows = (test @ train.T).topk(min(neighbours, len(train)), dim=1)
    votes = torch.full((len(test), num_labels), 1 / num_labels)
    votes.scatter_add_(1, labels[rows], torch.ones_like(similarity) + 1e-3 * similarity)
    return (votes / votes.sum(1, keepdim=True)).log()


def _standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Features with mean 0 and deviation 1 over the training rows; a few dimensions would dominate otherwise."""
    mean, deviation = train.mean(0), train.std(0, correction=0).clamp_min(1e-6)
    return (train - mean) / deviation, (test - mean) / deviation
