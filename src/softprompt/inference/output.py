"""The output of a forward pass: the loss is computed at once, the logits when they are read."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, ValuesView
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput


class LazyLogits:
    """Logits that are computed by the first ``read()``."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self._compute: Callable[[], Tensor] | None = compute
        self._value: Tensor

    def read(self) -> Tensor:
        """The logits ``[B, P + T, V]``."""
        if self._compute is not None:
            self._value = self._compute()
            self._compute = None  # frees the tensors of the computation
        return self._value


@dataclass
class PromptedCausalLMOutput(ModelOutput):
    """``CausalLMOutputWithPast`` whose ``logits`` are computed when first read.

    Attribute, key and index access always give a tensor. Iterating over ``items()`` or ``values()`` computes
    the logits only where no gradient is recorded, so that a training step whose output passes through wrappers
    (mixed precision, data parallelism) does not compute logits that nobody reads.

    Attributes:
        loss: mean over supervised tokens, float32.
        logits: ``[B, P + T, V]`` as in PEFT: virtual positions first; zeros at padding.
    """

    loss: Tensor | None = None
    logits: Any = None
    past_key_values: Any = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        return value.read() if name == "logits" and isinstance(value, LazyLogits) else value

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return _read(dict(super().items())[key])
        picked = tuple(super().values())[key]
        return tuple(map(_read, picked)) if isinstance(key, slice) else _read(picked)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of ``key``, or ``default``."""
        return self[key] if key in self else default  # noqa: SIM401 (this is what get means here)

    def to_tuple(self) -> tuple[Any, ...]:
        """All values that are not ``None``; computes the logits."""
        return tuple(_read(value) for value in super().values())

    def items(self) -> ItemsView[str, Any]:
        """Pairs; the class says when the logits are computed."""
        return {k: v if torch.is_grad_enabled() else _read(v) for k, v in super().items()}.items()

    def values(self) -> ValuesView[Any]:
        """Values; see the class for when the logits are computed."""
        return dict(self.items()).values()


def _read(value: Any) -> Any:
    return value.read() if isinstance(value, LazyLogits) else value
