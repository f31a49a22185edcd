"""Running a token tree on a frozen base model, level by level.

Each level of the tree is an ordinary right-padded batch, whose cache holds the keys and values of its
ancestors: read, never grown. Stock transformers code does the rest, so this is exact for every decoder
that can continue from a cache, whatever its attention, positions or windows::

    keys a batch sees:   [ pads | ancestors | own tokens | pads ]      padding never separates the two

The prompt runs once per call. Autograd adds up what each row sends back through the prompt's keys and
values, and then goes through the prompt once: that sum is the gradient of the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from .tree import Tree

CALL_OVERHEAD = 24
"""What one more call of the model costs, in tokens computed (SmolLM2-135M, 2 CPU cores: about 5 ms)."""


def run(backbone: nn.Module, tree: Tree, embeds: Sequence[Tensor]) -> Tensor:
    """Hidden states of all tokens of a tree.

    Args:
        backbone: a decoder without its head, frozen and in ``eval()``.
        tree: who attends to whom.
        embeds: input embeddings in the tree's flat order, in pieces ``[t, D]`` that add up to T rows.
            Pieces that need a gradient (the prompt) stay apart from those that need none (the text),
            so that the first layer takes no gradient for the text.

    Returns:
        ``[T, D']`` last hidden states in flat order (D' may differ from D, as in OPT-350m).
    """
    memory = _Memory()
    parts: list[Tensor] = []
    order: list[Tensor] = []
    for level in tree.levels:
        for nodes in buckets(level, tree.lengths):
            flat, hidden = _run_batch(backbone, tree, nodes, embeds, memory)
            order.append(flat)
            parts.append(hidden)
    everything = torch.cat(parts)
    back = torch.empty(tree.num_tokens, dtype=torch.long, device=everything.device)
    back[torch.cat(order)] = torch.arange(tree.num_tokens, device=everything.device)
    return everything[back]


def _run_batch(
    backbone: nn.Module, tree: Tree, nodes: list[int], embeds: Sequence[Tensor], memory: _Memory
) -> tuple[Tensor, Tensor]:
    """Run some nodes of one level; returns their flat indices ``[t]`` and hidden states ``[t, D']``."""
    device = embeds[0].device
    lengths = torch.tensor([tree.lengths[node] for node in nodes], device=device)
    starts = torch.tensor([tree.starts[node] for node in nodes], device=device)
    depths = torch.tensor([tree.depths[node] for node in nodes], device=device)
    steps = torch.arange(int(lengths.max()), device=device)
    real = steps < lengths[:, None]  # [B, L]
    flat = starts[:, None] + steps * real  # [B, L]; a pad repeats the node's first token
    prefix, seen = memory.prefix([tree.path(node) for node in nodes], device)
    output = backbone(
        inputs_embeds=_take(embeds, flat),
        attention_mask=torch.cat([seen.expand(len(nodes), -1), real.long()], dim=1),
        position_ids=depths[:, None] + steps,
        past_key_values=prefix,
        use_cache=True,
    )
    if any(node in tree.inner for node in nodes):
        memory.keep(prefix, flat, real)
    # A base that is spread over devices answers on the last one.
    return flat[real], output.last_hidden_state.to(device)[real]


class _Memory:
    """Keys and values of the tokens that others attend to, per layer ``[1, heads, M, head width]``."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.slot: dict[int, int] = {}  # flat index -> place among the M

    def keep(self, ran: Cache, flat: Tensor, real: Tensor) -> None:
        """Remember what a batch has computed for its real tokens."""
        for index in flat[real].tolist():
            self.slot[index] = len(self.slot)
        new = [(_pick(layer.new[0], real), _pick(layer.new[1], real)) for layer in ran.layers]
        if self.layers:
            pairs = zip(self.layers, new, strict=True)
            new = [(torch.cat([k, k_new], -2), torch.cat([v, v_new], -2)) for (k, v), (k_new, v_new) in pairs]
        self.layers = new

    def prefix(self, paths: list[list[int]], device: torch.device) -> tuple[Cache, Tensor]:
        """A cache with each node's ancestors, right-aligned, and its mask ``[B or 1, S]``.

        Nodes that share all ancestors (the usual batch: all hang on the prompt) share one copy.
        """
        longest = max(len(path) for path in paths)
        if longest == 0:
            return Cache(layer_class_to_replicate=PrefixLayer), torch.ones(1, 0, dtype=torch.long, device=device)
        if all(path == paths[0] for path in paths):
            paths = paths[:1]
        slots = torch.tensor(
            [[0] * (longest - len(path)) + [self.slot[i] for i in path] for path in paths], device=device
        )
        lengths = torch.tensor([len(path) for path in paths], device=device)
        seen = torch.arange(longest, device=device) >= longest - lengths[:, None]
        layers = [PrefixLayer(_gather(keys, slots), _gather(values, slots)) for keys, values in self.layers]
        return Cache(layers=layers), seen.long()


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


def _take(pieces: Sequence[Tensor], flat: Tensor) -> Tensor:
    """Rows of the concatenation of ``pieces``, without concatenating when one piece has them all."""
    low, high, start = int(flat.min()), int(flat.max()), 0
    for piece in pieces:
        if start <= low and high < start + len(piece):
            return piece[flat - start]
        start += len(piece)
    return torch.cat(list(pieces))[flat]


def _pick(states: Tensor, real: Tensor) -> Tensor:
    """``[B, heads, L, d]`` -> ``[1, heads, real tokens, d]``."""
    if len(states) == 1:
        return states[:, :, : int(real.sum())]
    return states.transpose(1, 2)[real].transpose(0, 1)[None]


def _gather(states: Tensor, slots: Tensor) -> Tensor:
    """``[1, heads, M, d]`` and ``[B, S]`` -> ``[B, heads, S, d]``."""
    if len(slots) == 1 and slots.shape[1] == states.shape[2]:
        return states  # everything remembered, in order: the prompt alone
    return states[0][:, slots].transpose(0, 1)
