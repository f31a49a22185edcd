"""Hidden states between the layers: what a frozen model represents on its way to an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .view import Exchange


def recording(exchange: Exchange, into: list[Tensor]) -> Exchange:
    """For ``view``: the classes that ``exchange`` names, and decoder layers that append what they answer to ``into``.

    transformers' own ``output_hidden_states`` puts hooks on modules, which a view shares with its base.
    """
    classes: dict[type[nn.Module], type[nn.Module]] = {}

    def choose(module: nn.Module) -> type[nn.Module]:
        kind = exchange(module)
        if not isinstance(module, GradientCheckpointingLayer):
            return kind
        if kind not in classes:
            classes[kind] = _recorded(kind, into)
        return classes[kind]

    return choose


def _recorded(kind: type[nn.Module], into: list[Tensor]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = kind.forward(self, *args, **kwargs)
        into.append(output[0] if isinstance(output, tuple) else output)
        return output

    return type(f"Recorded{kind.__name__}", (kind,), {"forward": forward})


def means(states: Sequence[Tensor], rows: Tensor, num_rows: int) -> Tensor:
    """Mean hidden state of each row in each layer: ``[num_rows, layers, D]`` in float32.

    Args:
        states: of each layer ``[T, D]``.
        rows: ``[T]`` row of each token; -1 for tokens that do not count. A row without tokens has zeros.
    """
    kept = rows >= 0
    rows = rows[kept]
    counts = torch.zeros(num_rows, device=rows.device).index_add_(0, rows, torch.ones_like(rows, dtype=torch.float32))
    found = states[0].new_zeros(num_rows, len(states), states[0].shape[-1], dtype=torch.float32)
    for layer, each in enumerate(states):
        found[:, layer].index_add_(0, rows, each[kept].float())
    return found / counts.clamp_min(1)[:, None, None]
