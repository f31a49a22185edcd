"""Attention in a packed tree on the CPU: every token attends to its ancestors and to earlier tokens of its node.

All tokens lie in one sequence, in which a subtree is contiguous. So there is no padding and no ``T x T`` mask: the
sequence is cut into *blocks*, ranges of queries with the same ancestors, and a block's keys are a few slices::

    block of row 2:   keys = [ prompt | row 2 up to its own tokens ]     scores [heads, n, m]

Scores are explicit, which for short rows is twice as fast as torch's fused kernel for CPUs. Rows longer than ``BLOCK``
are several blocks, whose probabilities are recomputed in the backward pass (as in FlashAttention, Dao et al. 2022,
arXiv:2205.14135), so memory grows with the length, not its square.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..surgery.linear import batched
from ..tree import ROOT, Tree

BLOCK = 128
"""Most queries of a block: part of a long row, or short nodes below one parent."""
KEEP_KEYS = 256
"""Most keys of a block that keeps its probabilities for the backward pass; larger ones recompute them."""
OWN = -1


class Keys(NamedTuple):
    """A slice of keys: tokens ``start .. stop - 1`` of ``source``, which is ``OWN`` for this run or a cached node."""

    source: int
    start: int
    stop: int


@dataclass(frozen=True)
class Block:
    """Queries ``start .. stop - 1`` of the run, the keys they read, and which of their own tokens each may read.

    Attributes:
        reads: slices of keys in reading order; the last n are the queries' own tokens.
        ends: ``[n]`` where each query's subtree ends, for several nodes in one block; ``None`` for one node, in which
            attention is causal.
    """

    start: int
    stop: int
    reads: tuple[Keys, ...]
    ends: Tensor | None

    def __len__(self) -> int:
        """n."""
        return self.stop - self.start

    @cached_property
    def num_keys(self) -> int:
        """m."""
        return sum(keys.stop - keys.start for keys in self.reads)

    @cached_property
    def num_cached_first(self) -> int:
        """Number of keys of cached nodes before the first key of this run."""
        own = next(i for i, keys in enumerate(self.reads) if keys.source == OWN)
        return sum(keys.stop - keys.start for keys in self.reads[:own])

    def hidden_pairs(self, positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
        """True where a query must not read a key: ``[n, n]`` among the block's own tokens, ``[n, m]`` with a window."""
        index = torch.arange(self.start, self.stop, device=positions.device)
        hidden = index[:, None] < index
        if self.ends is not None:
            hidden |= index[:, None] >= self.ends.to(positions.device)
        if window is None:
            return hidden
        hidden = torch.cat([hidden.new_zeros(len(self), self.num_keys - len(self)), hidden], dim=1)
        return hidden | (positions[self.start : self.stop, None] - key_positions >= window)


@dataclass(frozen=True)
class Packing:
    """A tree in one sequence, for one run of the model.

    Attributes:
        tree: all nodes, cached ones included.
        cached: nodes whose keys and values are given.
        device: of the run.
        shared: masks and layouts, which all layers share.
    """

    tree: Tree
    cached: frozenset[int]
    device: torch.device
    shared: dict[Any, Any] = field(default_factory=dict, init=False)

    @property
    def length(self) -> int:
        """T, the tokens of the run."""
        return self.starts[-1]

    @cached_property
    def starts(self) -> list[int]:
        """Where each node's tokens begin in the run (cached nodes have none there); then its end."""
        return self.tree.starts_without(self.cached)

    @cached_property
    def positions(self) -> Tensor:
        """``[T]`` depth of each token of the run."""
        nodes = [node for node in range(len(self.tree.lengths)) if node not in self.cached]
        lengths = torch.tensor([self.tree.lengths[node] for node in nodes])
        first = torch.tensor([self.tree.depths[node] - self.starts[node] for node in nodes])
        offsets = torch.repeat_interleave(first, lengths)
        return (torch.arange(len(offsets)) + offsets).to(self.device)

    @cached_property
    def blocks(self) -> list[Block]:
        """The blocks, in order; each token of the run is in one of them."""
        return [block for group in self._groups() for block in self._cut(group)]

    def _groups(self) -> Iterator[list[int]]:
        """Groups of nodes to compute: neighbours below one parent, with their subtrees, of up to ``BLOCK`` tokens.

        Roots form groups of their own.
        """
        group: list[int] = []
        size = end = 0  # tokens of the group, and where the subtree of its parent ends
        for node, length in enumerate(self.tree.lengths):
            if not length:
                continue
            if group and (node in self.cached or size + length > BLOCK or self.tree.span(node).start >= end):
                yield group
                group, size = [], 0
            if node in self.cached:
                continue  # its keys are slices of their own
            if not group:
                parent = self.tree.parents[node]
                end = 0 if parent == ROOT else self.tree.ends[parent]
            group.append(node)
            size += length
        if group:
            yield group

    def _cut(self, group: list[int]) -> Iterator[Block]:
        above = self.above(group[0])
        start, stop = self.starts[group[0]], self.starts[group[-1]] + self.tree.lengths[group[-1]]
        if len(group) > 1:
            shift = start - self.tree.starts[group[0]]  # from flat positions to the run's
            ends = [self.tree.ends[node] + shift for node in group for _ in self.tree.span(node)]
            yield Block(start, stop, _joined([*above, Keys(OWN, start, stop)]), torch.tensor(ends))
            return
        for first in range(start, stop, BLOCK):
            last = min(first + BLOCK, stop)
            yield Block(first, last, _joined([*above, Keys(OWN, start, last)]), None)

    def above(self, node: int) -> list[Keys]:
        """Keys of all ancestors of a node, from the root."""
        found: list[Keys] = []
        while (node := self.tree.parents[node]) != ROOT:
            source, start = (node, 0) if node in self.cached else (OWN, self.starts[node])
            found.append(Keys(source, start, start + self.tree.lengths[node]))
        return found[::-1]

    def key_positions(self, block: Block) -> Tensor:
        """Depth of each key of a block, ``[m]``."""
        depths = self.tree.depths
        return torch.cat(
            [
                self.positions[keys.start : keys.stop]
                if keys.source == OWN
                else torch.arange(keys.start, keys.stop, device=self.device) + depths[keys.source]
                for keys in block.reads
            ]
        )

    def narrow(self, window: int | None) -> int | None:
        """The window, or ``None`` where it masks nothing."""
        return None if window is None or window >= self.tree.depth else window

    def mask(self, number: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask of block ``number`` for its last keys, ``[n, n]``; for all keys, ``[n, m]``, with a window."""
        window = self.narrow(window)
        key = (number, window, dtype)
        if key not in self.shared:  # the same few for every layer
            block = self.blocks[number]
            hidden = block.hidden_pairs(self.positions, self.key_positions(block), window)
            self.shared[key] = torch.zeros(hidden.shape, dtype=dtype, device=self.device).masked_fill_(
                hidden, float("-inf")
            )
        found: Tensor = self.shared[key]
        return found


def _joined(slices: Sequence[Keys]) -> tuple[Keys, ...]:
    """The same keys in as few slices as possible."""
    found: list[Keys] = []
    for keys in slices:
        if keys.start == keys.stop:
            continue
        if found and found[-1].source == keys.source and found[-1].stop == keys.start:
            keys = Keys(keys.source, found.pop().start, keys.stop)
        found.append(keys)
    return tuple(found)


class Rule(NamedTuple):
    """How a layer computes scores.

    Attributes:
        scale: factor of the products of queries and keys.
        window: tokens that a query reads, itself included; ``None`` for all.
        softcap: scores are squashed into ``-softcap .. softcap`` (Gemma 2).
        slopes: ``[heads]`` added to the scores of a key per position (ALiBi).
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    slopes: Tensor | None = None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    rule: Rule,
    cached: dict[int, tuple[Tensor, Tensor]],
) -> Tensor:
    """Attention of all tokens of a run.

    Args:
        query: ``[1, heads, T, d]``.
        key, value: ``[1, key heads, T, d]``; each serves ``heads / key heads`` heads.
        cached: keys and values ``[1, key heads, n, d]`` of the cached nodes.

    Returns:
        ``[1, T, heads, d]``.
    """
    flat = [states for node in sorted(cached) for states in cached[node]]
    result: Tensor = _Attention.apply(query, key, value, packing, rule, *flat)  # type: ignore[no-untyped-call]
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, packing: Packing, rule: Rule, *cached: Tensor
    ) -> Tensor:
        scores = BlockScores(packing, rule, query, key, value, cached)
        out = scores.by_head(value.shape[-1])
        kept: list[Tensor] = []
        for number, block in enumerate(packing.blocks):
            weights = scores.weights(number)[0]
            batched(weights, scores.values(block), out=_rows(out, block))
            if any(ctx.needs_input_grad) and scores.keeps(block):
                kept.append(weights)
        ctx.save_for_backward(query, key, value, *cached, *kept)
        ctx.given = packing, rule, len(cached)
        return _in_order(out).to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        packing, rule, count = ctx.given
        query, key, value, *others = ctx.saved_tensors
        cached, kept = others[:count], iter(others[count:])
        scores = BlockScores(packing, rule, query, key, value, cached)
        to_query = scores.by_head(query.shape[-1])
        wanted = any(ctx.needs_input_grad[5:])  # of cached nodes: not of texts, which take none
        to_keys, to_values = KeyGradients(scores.key, wanted), KeyGradients(scores.value, wanted)
        grad = scores.by_head(grad.shape[-1]).copy_(_by_group(grad.transpose(1, 2), scores.heads))
        for number, block in enumerate(packing.blocks):
            weights, squash = (next(kept), None) if scores.keeps(block) else scores.weights(number)
            rows = _rows(grad, block)
            skipped = 0 if wanted else block.num_cached_first
            to_values.add(block, skipped, batched(weights[..., skipped:].transpose(1, 2), rows))
            to_scores = batched(rows, scores.values(block).transpose(1, 2))
            to_scores = softmax_backward(to_scores, weights)
            if squash is not None:
                to_scores.mul_(squash)
            batched(to_scores, scores.keys(block), out=_rows(to_query, block))
            to_keys.add(block, skipped, batched(to_scores[..., skipped:].transpose(1, 2), _rows(scores.query, block)))
        return (
            _in_order(to_query.mul_(rule.scale)).transpose(1, 2).to(query.dtype),
            to_keys.of(OWN, key.dtype),
            to_values.of(OWN, value.dtype),
            None,
            None,
            *(of.of(node, key.dtype) for node in sorted(packing.cached) for of in (to_keys, to_values)),
        )


_SOFTMAX_BACKWARD = getattr(torch, "_softmax_backward_data", None)
"""torch's own kernel, one pass instead of four; private."""


def softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    """The gradient of a softmax's input, from that of its result ``weights``, along the last dimension."""
    if _SOFTMAX_BACKWARD is None:
        return weights * (grad - (grad * weights).sum(-1, keepdim=True))
    result: Tensor = _SOFTMAX_BACKWARD(grad, weights, -1, weights.dtype)
    return result


class BlockScores:
    """Queries, keys, values and attention weights of each block.

    Heads that share a key head are one matrix: its rows are the (token, head of the group) pairs.
    """

    def __init__(
        self, packing: Packing, rule: Rule, query: Tensor, key: Tensor, value: Tensor, cached: Sequence[Tensor]
    ) -> None:
        self.packing, self.rule = packing, rule
        self.heads, self.group, self.length = key.shape[1], query.shape[1] // key.shape[1], query.shape[2]
        self.exact = torch.promote_types(query.dtype, torch.float32)  # scores in 16 bits would be too coarse
        self.device = query.device
        self.query = self.by_head(query.shape[-1]).copy_(_by_group(query, self.heads)).mul_(rule.scale)
        keys, values = ([each.to(self.exact)[0] for each in cached[first::2]] for first in (0, 1))
        self.key = {OWN: key.to(self.exact)[0]} | dict(zip(sorted(packing.cached), keys, strict=True))
        self.value = {OWN: value.to(self.exact)[0]} | dict(zip(sorted(packing.cached), values, strict=True))

    def by_head(self, width: int) -> Tensor:
        """An uninitialised ``[heads, T, group, width]``."""
        return torch.empty(self.heads, self.length, self.group, width, dtype=self.exact, device=self.device)

    def keys(self, block: Block) -> Tensor:
        """``[heads, m, d]``."""
        return _gather(self.key, block)

    def values(self, block: Block) -> Tensor:
        """``[heads, m, d]``."""
        return _gather(self.value, block)

    def keeps(self, block: Block) -> bool:
        """Whether the weights are kept for the backward pass."""
        return self.rule.softcap is None and block.num_keys <= KEEP_KEYS

    def weights(self, number: int) -> tuple[Tensor, Tensor | None]:
        """Attention weights ``[heads, n * group, m]``, and the derivative of the soft-cap, if there is one."""
        block, squash = self.packing.blocks[number], None
        scores = batched(_rows(self.query, block), self.keys(block).transpose(1, 2))
        if cap := self.rule.softcap:
            scores = scores.div_(cap).tanh_()
            squash = 1 - scores.square()
            scores.mul_(cap)
        apart = scores.view(self.heads, len(block), self.group, block.num_keys)
        if self.rule.slopes is not None:
            positions = self.packing.key_positions(block).to(scores.dtype)
            apart.add_(self.rule.slopes.to(scores.dtype).view(self.heads, 1, self.group, 1) * positions)
        mask = self.packing.mask(number, self.rule.window, scores.dtype)
        apart.narrow(3, block.num_keys - mask.shape[1], mask.shape[1]).add_(mask[:, None])
        return torch.softmax(scores, dim=-1), squash


class KeyGradients:
    """Sums of the gradients of keys (or values); of cached nodes only where they are wanted."""

    def __init__(self, states: dict[int, Tensor], wanted: bool) -> None:
        self._of = {
            source: torch.zeros_like(each, memory_format=torch.contiguous_format)
            for source, each in states.items()
            if wanted or source == OWN
        }

    def of(self, source: int, dtype: torch.dtype) -> Tensor | None:
        """Of the run's own tokens (``OWN``) or of a cached node, ``[1, heads, T, d]``."""
        return self._of[source][None].to(dtype) if source in self._of else None

    def add(self, block: Block, skipped: int, found: Tensor) -> None:
        """Add a block's ``[heads, m - skipped, d]``, without its first keys."""
        place = -skipped
        for source, start, stop in block.reads:
            if source in self._of:
                self._of[source].narrow(1, start, stop - start).add_(found.narrow(1, place, stop - start))
            place += stop - start


def _gather(states: dict[int, Tensor], block: Block) -> Tensor:
    parts = [states[source].narrow(1, start, stop - start) for source, start, stop in block.reads]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _rows(states: Tensor, block: Block) -> Tensor:
    """A block's part ``[heads, n * group, d]`` of ``[heads, T, group, d]``; no copy."""
    return states.narrow(1, block.start, len(block)).flatten(1, 2)


def _by_group(states: Tensor, heads: int) -> Tensor:
    """``[1, heads * group, T, d]`` -> ``[heads, T, group, d]``; no copy."""
    return states[0].view(heads, -1, *states.shape[2:]).transpose(1, 2)


def _in_order(states: Tensor) -> Tensor:
    """``[heads, T, group, d]`` -> ``[1, T, heads * group, d]``."""
    return states.transpose(0, 1).flatten(1, 2)[None]
