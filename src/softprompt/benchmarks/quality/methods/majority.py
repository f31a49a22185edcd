"""Majority class: always the most frequent label of the training rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from ....types import Row
from .method import FittedScores, Method


class Majority(Method):
    """Label frequencies with add-one smoothing; of equally frequent labels, the first of the task is predicted."""

    uses_base: ClassVar[bool] = False

    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> FittedScores:
        """See ``Method``."""
        data = self.context.data
        counts = torch.bincount(torch.tensor(labels), minlength=len(data.labels)) + 1
        log_probs = (counts / counts.sum()).log()
        return FittedScores(log_probs.expand(len(data.test), -1).clone(), len(data.labels))
