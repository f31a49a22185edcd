"""The input embeddings of a base model."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def embed(ids: Tensor, word_embeddings: nn.Module) -> Tensor:
    """Input embeddings ``[n, D]`` of token ids ``[n]``, in float32, detached.

    The module is called, rather than its weight indexed, since some modules scale their output (Gemma 3).
    """
    weight = next(word_embeddings.parameters())
    with torch.no_grad():
        values: Tensor = word_embeddings(ids.to(weight.device))
    return values.detach().clone().to(torch.float32)


def vocabulary_size(word_embeddings: nn.Module) -> int:
    """Number of entries in the embedding table."""
    return int(getattr(word_embeddings, "num_embeddings", next(word_embeddings.parameters()).shape[0]))


def embedding_rms(word_embeddings: nn.Module) -> float:
    """Root mean square of the values in the base model's input embeddings, from a few thousand entries."""
    size = vocabulary_size(word_embeddings)
    ids = torch.arange(0, size, max(1, size // 4096))
    return float(embed(ids, word_embeddings).square().mean().sqrt())
