"""The KV cache of a node of a token tree: computed once, read by many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Layers = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, ``[1, key heads, n, d]``."""


@dataclass(frozen=True)
class KVCache:
    """Keys, values and hidden states of a node's n tokens.

    Attributes:
        layers: keys and values of each layer, ``[1, key heads, n, d]``.
        hidden: ``[n, D']`` last hidden states.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    hidden: Tensor

    def __len__(self) -> int:
        """n."""
        return len(self.hidden)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, hidden states last."""
        return [*(each for pair in self.layers for each in pair), self.hidden]

    def map(self, change: Callable[[Tensor], Tensor]) -> KVCache:
        """A cache of changed tensors."""
        return KVCache(tuple((change(k), change(v)) for k, v in self.layers), change(self.hidden))

    def detach(self) -> KVCache:
        """The cache without its autograd history."""
        return self.map(torch.Tensor.detach)


def joined(first: KVCache, second: KVCache) -> KVCache:
    """The cache of two nodes' tokens, one after the other."""
    pairs = zip(first.layers, second.layers, strict=True)
    layers = tuple((torch.cat([k, new_k], 2), torch.cat([v, new_v], 2)) for (k, v), (new_k, new_v) in pairs)
    return KVCache(layers, torch.cat([first.hidden, second.hidden]))
