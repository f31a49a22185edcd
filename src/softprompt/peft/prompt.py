"""The soft prompt: one ``[P, D]`` matrix. Where it is placed among tokens is the engine's affair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..config.adapter_config import PromptTuningConfig
from ..errors import ConfigError
from ..models.embeddings import initial_rows


class PromptEmbedding(nn.Module):
    """Virtual tokens, in float32 whatever the base model's dtype.

    ``model.half()`` or ``model.to(torch.bfloat16)`` leaves them in float32, since optimiser steps would underflow or
    overflow in 16 bits. ``model.double()`` converts them, and ``model.float()`` converts them back.

    Args:
        config: a filled config (``num_virtual_tokens`` and ``token_dim`` known).
        word_embeddings: the base model's input embedding module, for the start.
        tokenizer: for a TEXT start; without one, the config's is loaded.

    Raises:
        ConfigError: the start cannot be made.
    """

    def __init__(self, config: PromptTuningConfig, word_embeddings: nn.Module, tokenizer: Any = None) -> None:
        super().__init__()
        if config.num_virtual_tokens is None or config.token_dim is None:
            raise ConfigError("num_virtual_tokens is not set; give the number of virtual tokens")
        rows = config.num_virtual_tokens * (config.num_transformer_submodules or 1)
        # Made before any start is drawn: it consumes random numbers as PEFT does, so seeds agree.
        self.embedding = nn.Embedding(rows, config.token_dim)
        if not config.inference_mode:
            start = initial_rows(config, rows, word_embeddings, tokenizer)
            if start is not None:
                self.embedding.weight = nn.Parameter(start)

    def forward(self, indices: Tensor) -> Tensor:
        """Rows ``[..., D]`` of the prompt."""
        return self.embedding(indices)  # type: ignore[no-any-return]

    @property
    def matrix(self) -> nn.Parameter:
        """The prompt itself, ``[P, D]`` (a plain tensor in the replicas of ``nn.DataParallel``)."""
        return self.embedding.weight  # type: ignore[return-value]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Called by ``to``, ``half``, ``cuda`` and the like: any device, but no dtype below 32 bits."""
        return super()._apply(lambda tensor: _kept_exact(tensor, fn(tensor)), recurse)  # type: ignore[no-untyped-call]


def _kept_exact(before: Tensor, after: Tensor) -> Tensor:
    """``after``; or, if that has fewer than 32 bits, ``before`` on the device of ``after``."""
    exact = torch.promote_types(after.dtype, torch.float32)
    return after if after.dtype == exact else before.to(device=after.device, dtype=exact)
