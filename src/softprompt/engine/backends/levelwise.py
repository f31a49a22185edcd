"""The levelwise backend: a token tree level by level, on any decoder.

Each level of the tree is an ordinary right-padded batch, whose cache holds the keys and values of its ancestors and
does not grow. Stock transformers code does the rest, so this is exact for every decoder that can continue from a
cache, whatever its attention, positions or windows::

    keys a batch sees:   [ pads | ancestors | own tokens | pads ]      padding never separates the two

The prompt runs once per call. Autograd adds up the gradients that rows send back through the prompt's keys and values,
and then goes through the prompt once: that sum is the gradient of the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from ..kv_cache import KVCache, Layers
from ..surgery.call import CallCache
from ..surgery.capture import capturing
from ..surgery.checkpointing import checkpointed
from ..surgery.view import view
from ..tree import ROOT, Tree

CALL_OVERHEAD = 24
"""Cost of one more call of the model, in tokens computed (SmolLM2-135M, 2 CPU cores: about 5 ms)."""


def levelwise_view(backbone: nn.Module) -> nn.Module:
    """A view of a decoder with fused layers, checkpointed where the base asks for it."""
    return view(backbone, capturing(checkpointed))


def run_levelwise(
    model: nn.Module,
    tree: Tree,
    embeds: Tensor,
    cached: Mapping[int, KVCache],
    *,
    keep: bool = False,
    capture: bool = False,
) -> tuple[Tensor, Layers, list[Tensor]]:
    """Run a tree on a view from ``levelwise_view``; arguments and results as for ``packed.run_packed``."""
    memory = AncestorCache(tree, cached)
    *starts, total = tree.starts_without(cached)
    parts: list[Tensor] = []
    order: list[Tensor] = []
    captured: list[list[Tensor]] = []  # of each batch: the outputs of its layers
    for level in tree.levels:
        for nodes in buckets([node for node in level if node not in cached], tree.lengths):
            batch = _Batch(tree, nodes, starts, embeds.device)
            batch_keep = keep or any(node in tree.inner for node in nodes)
            cache, mask = memory.prefix(nodes, embeds.device, keep=batch_keep, capture=capture)
            hidden = batch.run(model, embeds, cache, mask)
            if batch_keep:
                memory.keep(cache, nodes, batch.flat, batch.real)
            order.append(batch.flat[batch.real])
            parts.append(hidden[batch.real])
            captured.append([output.to(embeds.device)[batch.real] for output in cache.layer_outputs or ()])
    back = torch.empty(total, dtype=torch.long, device=embeds.device)
    back[torch.cat(order)] = torch.arange(total, device=embeds.device)
    outputs = [torch.cat(layer)[back] for layer in zip(*captured, strict=True)]
    return torch.cat(parts)[back], memory.in_order(range(total)) if keep else [], outputs


class _Batch:
    """Nodes of one level as a right-padded batch ``[B, L]``.

    Attributes:
        real: ``[B, L]``, false at padding.
        flat: ``[B, L]`` place of each token among those of the run; a pad repeats the node's first token.
        position_ids: ``[B, L]``.
    """

    def __init__(self, tree: Tree, nodes: Sequence[int], starts: Sequence[int], device: torch.device) -> None:
        lengths = torch.tensor([tree.lengths[node] for node in nodes], device=device)
        first = torch.tensor([starts[node] for node in nodes], device=device)
        depths = torch.tensor([tree.depths[node] for node in nodes], device=device)
        steps = torch.arange(int(lengths.max()), device=device)
        self.real = steps < lengths[:, None]
        self.flat = first[:, None] + steps * self.real
        self.position_ids = depths[:, None] + steps

    def run(self, model: nn.Module, embeds: Tensor, cache: CallCache, mask: Tensor) -> Tensor:
        """Hidden states ``[B, L, D']``, given the ancestors' ``cache`` and its ``mask`` ``[B or 1, S]``."""
        output = model(
            inputs_embeds=embeds[self.flat],
            attention_mask=torch.cat([mask.expand(len(self.real), -1), self.real.long()], dim=1),
            position_ids=self.position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden.to(embeds.device)  # a base on several devices returns them on the last


class AncestorCache:
    """Keys and values of the M tokens that others attend to, of each layer, ``[1, heads, M, d]``."""

    def __init__(self, tree: Tree, cached: Mapping[int, KVCache]) -> None:
        self.tree = tree
        self.layers: Layers = []
        self.size = 0
        self.first: dict[int, int] = {}  # node -> place of its first token among the M
        self.place: dict[int, int] = {}  # token of the run -> place among the M
        given = [node for node in cached if tree.lengths[node]]
        if given:
            layers = zip(*(cached[node].layers for node in given), strict=True)
            self._add(
                given, [(torch.cat([k for k, _ in each], -2), torch.cat([v for _, v in each], -2)) for each in layers]
            )

    def keep(self, cache: CallCache, nodes: list[int], flat: Tensor, real: Tensor) -> None:
        """Store the keys and values that a batch has computed for its real tokens."""
        self.place |= {index: self.size + i for i, index in enumerate(flat[real].tolist())}
        self._add(nodes, [(_pick(layer.new[0], real), _pick(layer.new[1], real)) for layer in cache.layers])

    def _add(self, nodes: list[int], new: Layers) -> None:
        for node in nodes:
            self.first[node] = self.size
            self.size += self.tree.lengths[node]
        if self.layers:
            pairs = zip(self.layers, new, strict=True)
            new = [(torch.cat([k, k_new], -2), torch.cat([v, v_new], -2)) for (k, v), (k_new, v_new) in pairs]
        self.layers = new

    def in_order(self, tokens: range) -> Layers:
        """Each layer's keys and values of tokens of the run."""
        slots = [self.place[token] for token in tokens]
        return [(keys[:, :, slots], values[:, :, slots]) for keys, values in self.layers]

    def prefix(
        self, nodes: Sequence[int], device: torch.device, *, keep: bool, capture: bool
    ) -> tuple[CallCache, Tensor]:
        """A cache with each node's ancestors, right-aligned, and its mask ``[B or 1, S]``.

        Nodes that share all ancestors (the usual batch: all below the prompt) share one copy.
        """
        paths = [self.path(node) for node in nodes]
        longest = max(len(path) for path in paths)
        if longest == 0:
            empty = CallCache(keep=keep, capture=capture, layer_class_to_replicate=PrefixLayer)
            return empty, torch.ones(1, 0, dtype=torch.long, device=device)
        if all(path == paths[0] for path in paths):
            paths = paths[:1]
        slots = torch.tensor([[0] * (longest - len(path)) + path for path in paths], device=device)
        lengths = torch.tensor([len(path) for path in paths], device=device)
        seen = torch.arange(longest, device=device) >= longest - lengths[:, None]
        layers = [PrefixLayer(_gather(keys, slots), _gather(values, slots)) for keys, values in self.layers]
        return CallCache(keep=keep, capture=capture, layers=layers), seen.long()

    def path(self, node: int) -> list[int]:
        """Places of all tokens above a node, in reading order."""
        above: list[int] = []
        while (node := self.tree.parents[node]) != ROOT:
            if length := self.tree.lengths[node]:
                above[:0] = range(self.first[node], self.first[node] + length)
        return above


class PrefixLayer(DynamicLayer):
    """One layer's cache: the ancestors' keys and values, which do not change, and the new ones in ``new``.

    One copy of the prompt (batch size 1) serves a batch of any size.
    """

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None, **_: Any) -> None:
        super().__init__()
        self.keys: Tensor | None = keys
        self.values: Tensor | None = values
        self.is_initialized = keys is not None
        self.new: tuple[Tensor, Tensor]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B, heads, S + L, d]`` to attend to."""
        self.new = (key_states, value_states)
        if self.keys is None or self.values is None:
            return key_states, value_states
        rows = key_states.shape[0]
        keys, values = (states.expand(rows, -1, -1, -1) for states in (self.keys, self.values))
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


def buckets(nodes: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Split nodes into batches of similar length, so that padding costs less than calls would.

    The cheapest split of the sorted lengths, where a batch costs its padded tokens plus ``CALL_OVERHEAD``
    (dynamic programming over the distinct lengths).
    """
    by_length: dict[int, list[int]] = {}
    for node in nodes:
        by_length.setdefault(lengths[node], []).append(node)
    sizes = sorted(by_length)
    count = [0]
    for size in sizes:
        count.append(count[-1] + len(by_length[size]))
    best: list[tuple[int, int]] = [(0, 0)]  # (cost of the first i sizes, where its last batch begins)
    for end in range(1, len(sizes) + 1):
        options = (
            (best[begin][0] + (count[end] - count[begin]) * sizes[end - 1] + CALL_OVERHEAD, begin)
            for begin in range(end)
        )
        best.append(min(options))
    end = len(sizes)
    while end:
        begin = best[end][1]
        yield [node for size in sizes[begin:end] for node in by_length[size]]
        end = begin


def _pick(states: Tensor, real: Tensor) -> Tensor:
    """``[B, heads, L, d]`` -> ``[1, heads, real tokens, d]``."""
    if len(states) == 1:
        return states[:, :, : int(real.sum())]
    return states.transpose(1, 2)[real].transpose(0, 1)[None]


def _gather(states: Tensor, slots: Tensor) -> Tensor:
    """``[1, heads, M, d]`` and ``[B, S]`` -> ``[B, heads, S, d]``."""
    if len(slots) == 1 and slots.shape[1] == states.shape[2] and bool((slots[0].diff() == 1).all()):
        return states  # all tokens, in order: the prompt alone
    return states[0][:, slots].transpose(0, 1)
