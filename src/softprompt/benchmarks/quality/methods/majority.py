"""Always the most frequent label of the training rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from ....types import Row
from .method import Fitted, Method


class Majority(Method):
    """Label frequencies, each counted once more than it was seen; of equals, the first label of the task wins."""

    uses_base: ClassVar[bool] = False

    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> Fitted:
        """See ``Method``."""
        data = self.work.data
        counts = torch.bincount(torch.tensor(labels), minlength=len(data.labels)) + 1
        log_probs = (counts / counts.sum()).log()
        return Fitted(log_probs.expand(len(data.test), -1).clone(), len(data.labels))
