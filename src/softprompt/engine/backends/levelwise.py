"""Running a token tree level by level: the way that works on every decoder.

Each level of the tree is an ordinary right-padded batch, whose cache holds the keys and values of its
ancestors: read, never grown. Stock transformers code does the rest, so this is exact for every decoder
that can continue from a cache, whatever its attention, positions or windows::

    keys a batch sees:   [ pads | ancestors | own tokens | pads ]      padding never separates the two

The prompt runs once per call. Autograd adds up what each row sends back through the prompt's keys and
values, and then goes through the prompt once: that sum is the gradient of the prompt.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from ..kv_cache import KVCache, Layers
from ..surgery.capture import recording
from ..surgery.checkpointing import checkpointed
from ..surgery.fused import fused
from ..surgery.view import view
from ..tree import ROOT, Tree

CALL_OVERHEAD = 24
"""What one more call of the model costs, in tokens computed (SmolLM2-135M, 2 CPU cores: about 5 ms)."""


def run_levelwise(
    backbone: nn.Module,
    tree: Tree,
    embeds: Tensor,
    known: Mapping[int, KVCache],
    keep: bool = False,
    states: list[Tensor] | None = None,
) -> tuple[Tensor, Layers]:
    """Hidden states ``[T, D']`` of the tokens that are not known; with ``keep``, each layer's keys and values too.

    Args:
        embeds: ``[T, D]`` in flat order.
        known: what has been computed already, by node.
        states: filled with what each layer answers, ``[T, D]``.
    """
    answers: list[Tensor] = []  # of the layers of a batch

    @functools.cache
    def copied(wanted: bool) -> nn.Module:
        exchange = fused if wanted else checkpointed  # keys and values that others read must not be made twice
        return view(backbone, exchange if states is None else recording(exchange, answers))

    memory = _Memory(tree, known)
    *starts, total = tree.starts_without(known)
    parts: list[Tensor] = []
    order: list[Tensor] = []
    between: list[list[Tensor]] = []
    for level in tree.levels:
        for nodes in buckets([node for node in level if node not in known], tree.lengths):
            wanted = keep or any(node in tree.inner for node in nodes)
            answers.clear()
            flat, real, hidden = _run_batch(copied(wanted), tree, nodes, starts, embeds, memory, wanted)
            order.append(flat)
            parts.append(hidden)
            between.append([answer.to(embeds.device)[real] for answer in answers])
    back = torch.empty(total, dtype=torch.long, device=embeds.device)
    back[torch.cat(order)] = torch.arange(total, device=embeds.device)
    if states is not None:
        states += [torch.cat(layer)[back] for layer in zip(*between, strict=True)]
    return torch.cat(parts)[back], memory.in_order(range(total)) if keep else []


def _run_batch(
    backbone: nn.Module,
    tree: Tree,
    nodes: list[int],
    first: Sequence[int],
    embeds: Tensor,
    memory: _Memory,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run some nodes of one level.

    Returns:
        Where their tokens are in the run ``[t]``, in the batch ``[B, L]``, and their hidden states ``[t, D']``.
    """
    device = embeds.device
    lengths = torch.tensor([tree.lengths[node] for node in nodes], device=device)
    starts = torch.tensor([first[node] for node in nodes], device=device)
    depths = torch.tensor([tree.depths[node] for node in nodes], device=device)
    steps = torch.arange(int(lengths.max()), device=device)
    real = steps < lengths[:, None]  # [B, L]
    flat = starts[:, None] + steps * real  # [B, L]; a pad repeats the node's first token
    prefix, seen = memory.prefix(nodes, device)
    output = backbone(
        inputs_embeds=embeds[flat],
        attention_mask=torch.cat([seen.expand(len(nodes), -1), real.long()], dim=1),
        position_ids=depths[:, None] + steps,
        past_key_values=prefix,
        use_cache=True,
    )
    if wanted:
        memory.keep(prefix, nodes, flat, real)
    # A base that is spread over devices answers on the last one.
    return flat[real], real, output.last_hidden_state.to(device)[real]


class _Memory:
    """Keys and values of the tokens that others attend to, per layer ``[1, heads, M, head width]``."""

    def __init__(self, tree: Tree, known: Mapping[int, KVCache]) -> None:
        self.tree = tree
        self.layers: Layers = []
        self.size = 0
        self.first: dict[int, int] = {}  # node -> place of its first token among the M
        self.place: dict[int, int] = {}  # token of the run -> place among the M
        given = [node for node in known if tree.lengths[node]]
        if given:
            layers = zip(*(known[node].layers for node in given), strict=True)
            self._add(
                given, [(torch.cat([k for k, _ in each], -2), torch.cat([v for _, v in each], -2)) for each in layers]
            )

    def keep(self, ran: Cache, nodes: list[int], flat: Tensor, real: Tensor) -> None:
        """Remember what a batch has computed for its real tokens."""
        self.place |= {index: self.size + i for i, index in enumerate(flat[real].tolist())}
        self._add(nodes, [(_pick(layer.new[0], real), _pick(layer.new[1], real)) for layer in ran.layers])

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

    def prefix(self, nodes: list[int], device: torch.device) -> tuple[Cache, Tensor]:
        """A cache with each node's ancestors, right-aligned, and its mask ``[B or 1, S]``.

        Nodes that share all ancestors (the usual batch: all hang on the prompt) share one copy.
        """
        paths = [self._path(node) for node in nodes]
        longest = max(len(path) for path in paths)
        if longest == 0:
            return Cache(layer_class_to_replicate=PrefixLayer), torch.ones(1, 0, dtype=torch.long, device=device)
        if all(path == paths[0] for path in paths):
            paths = paths[:1]
        slots = torch.tensor([[0] * (longest - len(path)) + path for path in paths], device=device)
        lengths = torch.tensor([len(path) for path in paths], device=device)
        seen = torch.arange(longest, device=device) >= longest - lengths[:, None]
        layers = [PrefixLayer(_gather(keys, slots), _gather(values, slots)) for keys, values in self.layers]
        return Cache(layers=layers), seen.long()

    def _path(self, node: int) -> list[int]:
        """Places of all tokens above a node, in reading order."""
        above: list[int] = []
        while (node := self.tree.parents[node]) != ROOT:
            if length := self.tree.lengths[node]:
                above[:0] = range(self.first[node], self.first[node] + length)
        return above


class PrefixLayer(DynamicLayer):
    """One layer's cache: hands out the ancestors' keys and values and remembers the new ones, apart.

    Nothing grows, so one copy of the prompt (batch size 1) serves a batch of any size.
    """

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None, **_: Any) -> None:
        super().__init__()
        self.keys: Tensor | None = keys
        self.values: Tensor | None = values
        self.is_initialized = keys is not None
        self.new: tuple[Tensor, Tensor]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B, heads, S + L, head width]`` to attend to."""
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
        return states  # everything remembered, in order: the prompt alone
    return states[0][:, slots].transpose(0, 1)
