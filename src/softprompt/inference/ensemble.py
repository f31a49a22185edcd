"""Several prompts behind the text that answer together, in place of one, and how sure their answers are.

With a few dozen rows, prompts that have seen different rows err on different texts; their mean log-probability is
better than nearly every one of them, and steadier (*bagging*, Breiman 1996). Behind the text they cost little: the
text is read once, and each prompt adds its own few tokens.

::

    text ─┬─ prompt 1 ─ choices
          ├─ ...
          └─ prompt M ─ choices
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
    """Prompts that answer in place of the adapter's own, which then serves the states, generation and PEFT.

    Attributes:
        prompts: ``[M, P, D]``.
        temperature: scalar that the joint log-probabilities are divided by.
    """

    prompts: Tensor
    temperature: Tensor

    def join(self, scores: Tensor) -> Tensor:
        """Joint log-probabilities ``[B, C]`` from what each prompt gives, ``[B, M, C]``."""
        return (scores.log_softmax(-1).mean(1) / self.temperature).log_softmax(-1)

    def save(self, folder: Path) -> None:
        """Write ``ensemble.safetensors`` into ``folder``, atomically."""
        write_tensors(folder / ENSEMBLE_NAME, vars(self))

    @classmethod
    def read(cls, path: Path, width: int) -> Ensemble:
        """Read a file that ``save`` wrote.

        Args:
            width: D of the base model's input embeddings.

        Raises:
            AdapterError: it is damaged, or of another base model.
        """
        found = cls(**read_tensors(path, ("prompts", "temperature")))
        if found.prompts.ndim != 3 or found.prompts.shape[2] != width or not found.prompts.numel():
            shape = list(found.prompts.shape)
            raise AdapterError(f"{path} does not fit the base model: prompts {shape}, embeddings of width {width}")
        if found.temperature.ndim or float(found.temperature) <= 0:
            raise AdapterError(f"{path} is damaged: its temperature must be a number above 0")
        return found


def fit_temperature(log_probs: Tensor, gold: Sequence[int]) -> float:
    """The temperature under which log-probabilities ``[N, C]`` of rows not trained on have the least loss.

    *Temperature scaling*, Guo et al. 2017 (arXiv:1706.04599). A search over a grid between 1/5 and 20: the loss has
    one minimum, and a finer answer means nothing with a few dozen rows.
    """
    right = torch.tensor(gold)
    grid = torch.logspace(-0.7, 1.3, 41, dtype=torch.float64)
    losses = [F.cross_entropy(log_probs.double() / each, right) for each in grid]
    return float(grid[int(torch.stack(losses).argmin())])
