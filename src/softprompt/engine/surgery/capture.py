"""Activation capture: the hidden states that a frozen model's decoder layers return."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ...errors import ConfigError
from .call import cache_of
from .view import Exchange


def check_layers(model: nn.Module) -> None:
    """Refuse a model whose decoder layers cannot be identified.

    Raises:
        ConfigError: it has no layers of the kind that transformers' decoders have.
    """
    if not any(isinstance(module, GradientCheckpointingLayer) for module in model.modules()):
        raise ConfigError(
            f"the layer outputs of {type(model).__name__} cannot be captured, so it can have no linear probe; "
            "add --no_linear_probe"
        )


def capturing(exchange: Exchange) -> Exchange:
    """For ``view``: the classes that ``exchange`` returns, and decoder layers that append their output to the call's.

    The call's list is ``CallCache.layer_outputs``. transformers' own ``output_hidden_states`` puts hooks on modules,
    which a view shares with its base.
    """

    def choose(module: nn.Module) -> type[nn.Module]:
        kind = exchange(module)
        if not isinstance(module, GradientCheckpointingLayer):
            return kind
        return _capturing_class(kind)  # type: ignore[arg-type]  # classes can be hashed

    return choose


@functools.cache
def _capturing_class(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = kind.forward(self, *args, **kwargs)
        cache = cache_of(args, kwargs)
        if cache is not None and cache.layer_outputs is not None:
            cache.layer_outputs.append(output[0] if isinstance(output, tuple) else output)
        return output

    return type(f"Capturing{kind.__name__}", (kind,), {"forward": forward})


class Means:
    """Mean hidden state of each row in each layer, collected during a forward pass.

    Args:
        places: ``[t]`` flat position, in the plan, of each token to average.
        rows: ``[t]`` the row of each; a token may be in several rows.
        num_rows: B.
    """

    def __init__(self, places: Tensor, rows: Tensor, num_rows: int) -> None:
        self._places, self._rows, self._num_rows = places, rows, num_rows
        self.found: Tensor
        """``[B, layers, D]`` float32 after ``take``; zeros for a row without tokens."""

    def take(self, states: Sequence[Tensor], computed: Tensor) -> None:
        """Average the outputs of layers.

        Args:
            states: the output of each layer, ``[T', D]``.
            computed: ``[T']`` ascending flat positions of these tokens; all tokens to average must be among them.
        """
        at = torch.searchsorted(computed, self._places)
        counts = torch.bincount(self._rows, minlength=self._num_rows).clamp_min(1)
        totals = [
            states[0]
            .new_zeros(self._num_rows, each.shape[-1], dtype=torch.float32)
            .index_add_(0, self._rows, each[at].float())
            for each in states
        ]
        self.found = torch.stack([total / counts[:, None] for total in totals], dim=1)


def but_first(places: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The tokens of rows that count for their means: all but the first, unless it is the only one.

    Models put excess attention on the first token of a text, whose hidden states are many times larger than others'
    ("massive activations", Sun et al. 2024, arXiv:2402.17762).

    Args:
        places: ``[t]`` flat positions of the tokens of all rows, one row after the other.
        lengths: tokens of each row.

    Returns:
        Places and rows for ``Means``.
    """
    counts = torch.tensor(lengths, dtype=torch.long, device=places.device)
    rows = torch.repeat_interleave(counts)
    first = torch.zeros_like(rows, dtype=torch.bool)
    first[(counts.cumsum(0) - counts)[counts > 1]] = True
    return places[~first], rows[~first]
