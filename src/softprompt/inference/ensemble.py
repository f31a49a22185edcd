"""An ensemble of suffix prompts, whose log-probabilities are averaged and calibrated.

With a few dozen training rows, prompts trained on different subsets make different errors; their mean log-probability
has a lower loss and a lower variance than nearly every one of them (*bagging*, Breiman 1996). Suffix prompts are
cheap: the text is computed once, and each prompt adds its own few tokens.

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
    """Suffix prompts that score the labels in place of the adapter's own prompt.

    The adapter's own prompt is still used for the linear probe's hidden states, for generation, and in PEFT.

    Attributes:
        prompts: ``[M, P, D]``.
        temperature: scalar; the mean log-probabilities are divided by it.
    """

    prompts: Tensor
    temperature: Tensor

    def join(self, scores: Tensor) -> Tensor:
        """Calibrated log-probabilities ``[B, C]`` of the ensemble, from those of its members ``[B, M, C]``."""
        return (scores.log_softmax(-1).mean(1) / self.temperature).log_softmax(-1)

    def save(self, folder: Path) -> None:
        """Write ``ensemble.safetensors`` into ``folder``, atomically."""
        write_tensors(folder / ENSEMBLE_NAME, vars(self))

    @classmethod
    def read(cls, path: Path, embedding_size: int) -> Ensemble:
        """Read a file that ``save`` wrote.

        Args:
            embedding_size: D of the base model's input embeddings.

        Raises:
            AdapterError: it is damaged, or of another base model.
        """
        found = cls(**read_tensors(path, ("prompts", "temperature")))
        if found.prompts.ndim != 3 or found.prompts.shape[2] != embedding_size or not found.prompts.numel():
            shape = list(found.prompts.shape)
            raise AdapterError(f"{path} does not fit the base model: prompts {shape}, embedding size {embedding_size}")
        if found.temperature.ndim or float(found.temperature) <= 0:
            raise AdapterError(f"{path} is damaged: temperature must be a number above 0")
        return found


def fit_temperature(log_probs: Tensor, gold: Sequence[int]) -> float:
    """The temperature that minimises the cross-entropy of log-probabilities ``[N, C]`` of held-out rows.

    *Temperature scaling*, Guo et al. 2017 (arXiv:1706.04599), by a grid search between 1/5 and 20: the loss has one
    minimum, and a finer value is not significant with a few dozen rows.
    """
    right = torch.tensor(gold)
    grid = torch.logspace(-0.7, 1.3, 41, dtype=torch.float64)
    losses = [F.cross_entropy(log_probs.double() / each, right) for each in grid]
    return float(grid[int(torch.stack(losses).argmin())])
