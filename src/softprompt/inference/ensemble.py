"""An ensemble of suffix prompts, and the calibration of its probabilities.

With a few dozen rows, prompts trained on different rows make different errors. Their mean log-probability is more
accurate than almost every single prompt and varies less (*bagging*, Breiman 1996). As suffix prompts they are cheap:
the text is computed once, and each member adds its few virtual tokens.

::

    text ─┬─ prompt 1 ─ label candidates
          ├─ ...
          └─ prompt M ─ label candidates
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import AdapterError
from ..storage.record import ENSEMBLE_NAME
from ..storage.tensors import read_tensors, write_tensors


@dataclass(frozen=True)
class Ensemble:
    """Prompts that score the labels instead of the adapter's own prompt; that one still serves the linear probe,
    generation and PEFT.

    Attributes:
        prompts: ``[M, P, D]``.
        temperature: scalar by which the mean log-probabilities are divided.
    """

    prompts: Tensor
    temperature: Tensor

    def join(self, scores: Tensor) -> Tensor:
        """Calibrated mean ``[B, C]`` of the members' log-probabilities ``[B, M, C]``."""
        return (scores.log_softmax(-1).mean(1) / self.temperature).log_softmax(-1)

    def save(self, folder: Path) -> None:
        """Write ``ensemble.safetensors`` into ``folder``, atomically."""
        write_tensors(folder / ENSEMBLE_NAME, vars(self))

    @classmethod
    def read(cls, path: Path, hidden_size: int) -> Ensemble:
        """Read a file that ``save`` wrote.

        Args:
            hidden_size: D of the base model's input embeddings.

        Raises:
            AdapterError: the file is damaged, or belongs to another base model.
        """
        found = cls(**read_tensors(path, ("prompts", "temperature")))
        if found.prompts.ndim != 3 or found.prompts.shape[2] != hidden_size or not found.prompts.numel():
            shape = list(found.prompts.shape)
            raise AdapterError(f"{path} does not fit the base model: prompts are {shape}, hidden size is {hidden_size}")
        if found.temperature.ndim or float(found.temperature) <= 0:
            raise AdapterError(f"{path} is damaged: temperature must be > 0")
        return found


def fit_temperature(log_probs: Tensor, gold: Sequence[int]) -> float:
    """The temperature that minimises the cross-entropy of log-probabilities ``[N, C]`` of held-out rows.

    *Temperature scaling*, Guo et al. 2017 (arXiv:1706.04599). Grid search between 1/5 and 20; a finer
    grid makes no difference with a few dozen rows.
    """
    right = torch.tensor(gold)
    grid = torch.logspace(-0.7, 1.3, 41, dtype=torch.float64)
    losses = [F.cross_entropy(log_probs.double() / each, right) for each in grid]
    return float(grid[int(torch.stack(losses).argmin())])
