"""Classifiers on frozen hidden states: which layer to read, cross-validation decides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ....types import Row
from .cross_validation import best, cross_validated
from .linear import Logistic
from .method import Fitted, Method

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Values of C that are tried at the chosen layer."""
FIRST_STRENGTH = 0.1
"""C while the layer is chosen."""
NEIGHBOURS = (1, 3, 5, 9, 15)
"""Numbers of neighbours that are tried."""


class LinearProbe(Method):
    """Logistic regression on the last position's state of one layer."""

    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> Fitted:
        """See ``Method``."""
        learned, tested = _standardised(self.work.states.of(rows), self.work.states.of(self.work.data.test))
        number = len(self.work.data.labels)

        def score(layer: int, strength: float) -> float:
            features = learned[:, layer].numpy()

            def predict(inside: list[int], held_out: list[int]) -> list[int]:
                model = Logistic(features[inside], [labels[row] for row in inside], strength)
                return model.predict(features[held_out])

            return cross_validated(predict, labels, number, seed)

        layer = best(range(learned.shape[1]), lambda layer: score(layer, FIRST_STRENGTH))
        strength = best(STRENGTHS, lambda strength: score(layer, strength))
        model = Logistic(learned[:, layer].numpy(), labels, strength)
        return Fitted(model.log_probs(tested[:, layer].numpy(), number), model.num_weights)


class Knn(Method):
    """The nearest training rows vote, by cosine of the last position's state of one layer."""

    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> Fitted:
        """See ``Method``."""
        learned, tested = _standardised(self.work.states.of(rows), self.work.states.of(self.work.data.test))
        learned, tested = (torch.nn.functional.normalize(states, dim=2) for states in (learned, tested))
        number, gold = len(self.work.data.labels), torch.tensor(labels)

        def score(setting: tuple[int, int]) -> float:
            layer, neighbours = setting

            def predict(inside: list[int], held_out: list[int]) -> list[int]:
                found = vote(learned[inside, layer], gold[inside], learned[held_out, layer], neighbours, number)
                return [int(label) for label in found.argmax(1)]

            return cross_validated(predict, labels, number, seed)

        settings = ((layer, neighbours) for layer in range(learned.shape[1]) for neighbours in NEIGHBOURS)
        layer, neighbours = best(settings, score)
        return Fitted(vote(learned[:, layer], gold, tested[:, layer], neighbours, number), 0)


def vote(learned: Tensor, labels: Tensor, asked: Tensor, neighbours: int, num_labels: int) -> Tensor:
    """Log-probabilities ``[N, C]`` by the labels ``[n]`` of the rows of ``learned`` nearest to those of ``asked``.

    Args:
        learned, asked: ``[n, D]`` and ``[N, D]``, of length one.
        neighbours: how many vote, with one vote more shared out among all labels; where votes are equal, so near
            that nothing else changes, the nearer ones win.
    """
    near, rows = (asked @ learned.T).topk(min(neighbours, len(learned)), dim=1)
    votes = torch.full((len(asked), num_labels), 1 / num_labels)
    votes.scatter_add_(1, labels[rows], torch.ones_like(near) + 1e-3 * near)
    return (votes / votes.sum(1, keepdim=True)).log()


def _standardised(learned: Tensor, tested: Tensor) -> tuple[Tensor, Tensor]:
    """Each feature with mean 0 and deviation 1 over the training rows: a few dimensions would drown all others."""
    mean, deviation = learned.mean(0), learned.std(0, correction=0).clamp_min(1e-6)
    return (learned - mean) / deviation, (tested - mean) / deviation
