"""Logistic regression with scikit-learn, for any features."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class LogisticClassifier:
    """A logistic regression on features ``[n, F]`` (a numpy array or a scipy matrix) and label indices ``[n]``.

    If all rows have one label, that label is always predicted.
    """

    def __init__(self, features: Any, labels: Sequence[int], strength: float) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        self.classes = sorted(set(labels))
        self._model: Any = None
        if len(self.classes) > 1:
            self._model = LogisticRegression(C=strength, max_iter=2000)
            with warnings.catch_warnings():  # weak regularisation converges slowly, with the same predictions
                warnings.simplefilter("ignore", ConvergenceWarning)
                self._model.fit(features, labels)

    @property
    def num_weights(self) -> int:
        """Number of weights and biases."""
        return 0 if self._model is None else int(self._model.coef_.size + self._model.intercept_.size)

    def predict(self, features: Any) -> list[int]:
        """The most probable label of each row."""
        if self._model is None:
            return self.classes * int(features.shape[0])
        return [int(label) for label in self._model.predict(features)]

    def log_probs(self, features: Any, num_labels: int) -> Tensor:
        """Log-probabilities ``[N, C]`` of all labels of the task; ``-inf`` for labels without training rows."""
        found = torch.full((features.shape[0], num_labels), -torch.inf, dtype=torch.float64)
        if self._model is None:
            found[:, self.classes[0]] = 0.0
        else:
            found[:, self.classes] = torch.from_numpy(self._model.predict_log_proba(features)).double()
        return found
