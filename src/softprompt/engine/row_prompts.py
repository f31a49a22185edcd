"""The prompt of each row of a batch, and the columns of its virtual tokens in ``[B, P + T]``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..errors import ConfigError
from .plans import plan_mixed
from .tree import Plan


@dataclass(frozen=True)
class RowPrompts:
    """The prompts of a batch.

    Attributes:
        matrix: ``[sum of P, D]``, all prompts concatenated.
        lengths: virtual tokens of each prompt; 0 for no prompt.
        of_row: ``[B]``, index of the prompt of each row. A single entry applies to all rows of a batch of any size.
    """

    matrix: Tensor
    lengths: tuple[int, ...]
    of_row: tuple[int, ...] = (0,)

    @classmethod
    def of(cls, prompts: Sequence[Tensor], of_row: Sequence[int] = (0,)) -> RowPrompts:
        """From prompts ``[P, D]`` and the index of the prompt of each row."""
        matrix = prompts[0] if len(prompts) == 1 else torch.cat(list(prompts))
        return cls(matrix, tuple(map(len, prompts)), tuple(of_row))

    def detach(self) -> RowPrompts:
        """A copy without gradient."""
        return replace(self, matrix=self.matrix.detach())

    def for_rows(self, rows: int) -> RowPrompts:
        """A copy for a batch that repeats each row several times in succession, for beams or several sequences.

        Raises:
            ConfigError: ``rows`` is not a multiple of the number of entries of ``of_row``.
        """
        if rows % len(self.of_row):
            raise ConfigError(f"adapter_names has {len(self.of_row)} names, but the batch has {rows} rows")
        times = rows // len(self.of_row)
        return replace(self, of_row=tuple(own for own in self.of_row for _ in range(times)))

    @property
    def is_one(self) -> bool:
        """Whether there is only one prompt."""
        return len(self.lengths) == 1

    @property
    def width(self) -> int:
        """P, the length of the longest prompt; shorter prompts are padded on the left."""
        return max(self.lengths)

    @cached_property
    def index(self) -> Tensor:
        """``[B, P]``, the row of ``matrix`` in each column; -1 at padding."""
        lengths = torch.tensor(self.lengths)
        ends = lengths.cumsum(0)[list(self.of_row), None]  # [B, 1]
        index = ends - self.width + torch.arange(self.width)
        return index.masked_fill(index < ends - lengths[list(self.of_row), None], -1).to(self.matrix.device)

    def plan(self, rows: Sequence[Sequence[int]], labels: Sequence[Sequence[int]] | None, device: torch.device) -> Plan:
        """The plan of B rows, or of any number of rows under one prompt; see ``plan_mixed``."""
        of_row = (0,) * len(rows) if self.is_one else self.of_row
        return plan_mixed(self.lengths, of_row, rows, labels, device)


def columns(plan: Plan, prompts: RowPrompts, real: Tensor) -> Tensor:
    """``[B, P + T]``, the flat position of the token in each column; -1 at padding.

    Args:
        real: ``[B, T]``, false at padding.
    """
    index = prompts.index
    virtual = (plan.tokens < 0).nonzero()[:, 0]  # [sum of P]
    texts = torch.full_like(real, -1, dtype=torch.long).masked_scatter(real, plan.places)
    return torch.cat([torch.where(index < 0, -1, virtual[index]), texts], dim=1)
