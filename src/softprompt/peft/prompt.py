"""The soft prompt: one matrix ``[P, D]``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..config.adapter_config import PromptTuningConfig
from ..errors import ConfigError
from .initialization import initial_prompt


class PromptEmbedding(nn.Module):
    """Virtual tokens, in float32 whatever the base model's dtype.

    ``model.half()`` or ``model.to(torch.bfloat16)`` leaves them in float32, since optimiser steps would underflow or
    overflow in 16 bits. ``model.double()`` converts them, and ``model.float()`` converts them back.

    Args:
        config: with ``num_virtual_tokens`` and ``token_dim`` set.
        word_embeddings: the base model's input embedding module, for the initial values.
        tokenizer: for TEXT initialization; without one, the tokenizer that the config names is loaded.

    Raises:
        ConfigError: the config is not complete, or its initial text cannot be used.
    """

    def __init__(self, config: PromptTuningConfig, word_embeddings: nn.Module, tokenizer: Any = None) -> None:
        super().__init__()
        if config.num_virtual_tokens is None or config.token_dim is None:
            raise ConfigError("num_virtual_tokens is not set; give the number of virtual tokens")
        count = config.num_virtual_tokens * (config.num_transformer_submodules or 1)
        # Created before the initial values are drawn, as in PEFT: it consumes random numbers, so seeds agree.
        self.embedding = nn.Embedding(count, config.token_dim)
        if not config.inference_mode:
            initial = initial_prompt(config, count, word_embeddings, tokenizer)
            if initial is not None:
                self.embedding.weight = nn.Parameter(initial)

    def forward(self, indices: Tensor) -> Tensor:
        """Virtual tokens ``[..., D]`` at these indices ``[...]``."""
        return self.embedding(indices)  # type: ignore[no-any-return]

    @property
    def matrix(self) -> nn.Parameter:
        """The prompt ``[P, D]`` (a plain tensor in the replicas of ``nn.DataParallel``)."""
        return self.embedding.weight  # type: ignore[return-value]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Called by ``to``, ``half``, ``cuda`` and the like: changes the device, but never to a dtype below 32 bits."""
        return super()._apply(lambda tensor: _at_least_float32(tensor, fn(tensor)), recurse)  # type: ignore[no-untyped-call]


def _at_least_float32(before: Tensor, after: Tensor) -> Tensor:
    """``after``; or, if that has fewer than 32 bits, ``before`` on the device of ``after``."""
    exact = torch.promote_types(after.dtype, torch.float32)
    return after if after.dtype == exact else before.to(device=after.device, dtype=exact)
