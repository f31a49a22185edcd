"""Attention in a packed tree: every token reads its ancestors and the tokens before it in its own node.

All tokens lie in one sequence, in which a subtree is one stretch. So there is no padding and no ``T x T``
mask: the sequence is cut into *blocks*, runs of queries that read the same ancestors, and a block's keys
are a few slices::

    block of row 2:   keys = [ prompt | row 2 up to its own tokens ]     scores [heads, n, m]

Scores are explicit, which for short rows is twice as fast as the fused kernel torch has for CPUs. Rows
longer than ``BLOCK`` are several blocks, whose probabilities are computed again in the backward pass (as
in FlashAttention, Dao et al. 2022, arXiv:2205.14135), so memory grows with the length, not its square.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .tree import ROOT, Tree

BLOCK = 128
"""Most queries of a block."""
KEEP_KEYS = 256
"""Blocks with at most so many keys keep their probabilities for the backward pass; others compute them again."""
OWN = -1


class Keys(NamedTuple):
    """A slice of keys that all queries of a block read.

    Attributes:
        source: ``OWN`` for tokens of this run, else the node whose keys are known.
        start, stop: tokens of the run, or of the known node.
        depth: position of the first of them.
    """

    source: int
    start: int
    stop: int
    depth: int


@dataclass(frozen=True)
class Block:
    """Queries ``start .. stop - 1`` of the run, what they all read, and, among themselves, who reads whom.

    Attributes:
        above: slices of keys that all of them read, in reading order.
        ends: ``[n]`` where each query's subtree ends, for several nodes in one block; ``None`` for one node,
            in which every token reads those before it.
    """

    start: int
    stop: int
    above: tuple[Keys, ...]
    ends: Tensor | None

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def num_keys(self) -> int:
        """m."""
        return sum(keys.stop - keys.start for keys in self.above) + len(self)

    def key_positions(self, positions: Tensor) -> Tensor:
        """Depth of each key ``[m]``, given those of the run's tokens."""
        above = [torch.arange(k.depth, k.depth + k.stop - k.start, device=positions.device) for k in self.above]
        return torch.cat([*above, positions[self.start : self.stop]])

    def hidden_pairs(self, positions: Tensor, window: int | None) -> Tensor:
        """True where a query must not read a key: ``[n, n]`` among the block's own tokens, ``[n, m]`` with a window."""
        index = torch.arange(self.start, self.stop, device=positions.device)
        hidden = index[:, None] < index
        if self.ends is not None:
            hidden |= index[:, None] >= self.ends
        if window is None:
            return hidden
        hidden = torch.cat([hidden.new_zeros(len(self), self.num_keys - len(self)), hidden], dim=1)
        return hidden | (positions[self.start : self.stop, None] - self.key_positions(positions) >= window)


@dataclass(frozen=True)
class Packing:
    """A tree in one sequence, for one run of the model.

    Attributes:
        tree: all nodes, with those that are known.
        known: nodes whose keys and values are given.
        device: of the run.
    """

    tree: Tree
    known: frozenset[int]
    device: torch.device
    _masks: dict[tuple[int, int | None, torch.dtype], Tensor] = field(default_factory=dict, init=False)

    @cached_property
    def starts(self) -> list[int]:
        """Where each node's tokens begin in the run (known ones have none there)."""
        starts, total = [], 0
        for node, length in enumerate(self.tree.lengths):
            starts.append(total)
            total += 0 if node in self.known else length
        return starts

    @cached_property
    def positions(self) -> Tensor:
        """``[T]`` depth of each token of the run."""
        nodes = [node for node in range(len(self.tree.lengths)) if node not in self.known]
        lengths = torch.tensor([self.tree.lengths[node] for node in nodes])
        first = torch.tensor([self.tree.depths[node] - self.starts[node] for node in nodes])
        offsets = torch.repeat_interleave(first, lengths)
        return (torch.arange(len(offsets)) + offsets).to(self.device)

    @cached_property
    def blocks(self) -> list[Block]:
        """The blocks, in order; together they hold each token of the run once."""
        return [block for group in self._groups() for block in self._cut(group)]

    def _groups(self) -> Iterator[list[int]]:
        """Nodes to compute: short leaves that follow each other under one parent go together."""
        group: list[int] = []
        size = 0
        for node, length in enumerate(self.tree.lengths):
            if node in self.known or not length:
                continue
            joins = group and self._is_leaf(node) and self._is_leaf(group[-1]) and self._siblings(node, group[-1])
            if not joins or size + length > BLOCK // 2:
                if group:
                    yield group
                group, size = [], 0
            group.append(node)
            size += length
        if group:
            yield group

    def _is_leaf(self, node: int) -> bool:
        return node not in self.tree.inner

    def _siblings(self, node: int, other: int) -> bool:
        return self.tree.parents[node] == self.tree.parents[other] != ROOT

    def _cut(self, group: list[int]) -> Iterator[Block]:
        above = self._above(group[0])
        start, stop = self.starts[group[0]], self.starts[group[-1]] + self.tree.lengths[group[-1]]
        if len(group) > 1:
            ends = [self.starts[node] + self.tree.lengths[node] for node in group for _ in self.tree.span(node)]
            yield Block(start, stop, above, torch.tensor(ends, device=self.device))
            return
        depth = self.tree.depths[group[0]]
        for first in range(start, stop, BLOCK):
            before = (Keys(OWN, start, first, depth),) if first > start else ()
            yield Block(first, min(first + BLOCK, stop), (*above, *before), None)

    def _above(self, node: int) -> tuple[Keys, ...]:
        found: list[Keys] = []
        while (node := self.tree.parents[node]) != ROOT:
            length, depth = self.tree.lengths[node], self.tree.depths[node]
            if not length:
                continue
            own = node not in self.known
            start = self.starts[node] if own else 0
            found.append(Keys(OWN if own else node, start, start + length, depth))
        return tuple(reversed(found))

    def mask(self, number: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """What to add to the scores of block ``number``, for its last keys: ``[n, n]``, or ``[n, m]`` with a window."""
        if window is not None and window >= self.tree.depth:
            window = None
        key = (number, window, dtype)
        if key not in self._masks:  # every layer asks for the same few
            hidden = self.blocks[number].hidden_pairs(self.positions, window)
            self._masks[key] = torch.zeros(hidden.shape, dtype=dtype, device=self.device)
            self._masks[key].masked_fill_(hidden, float("-inf"))
        return self._masks[key]


class Rule(NamedTuple):
    """How a layer scores.

    Attributes:
        scale: factor of the products of queries and keys.
        window: tokens a query sees, itself included; ``None`` for all.
        softcap: bound that scores are squashed into (Gemma 2).
        slopes: ``[heads]`` what each position adds to the scores of its key (ALiBi).
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
    known: dict[int, tuple[Tensor, Tensor]],
) -> Tensor:
    """Attention of all tokens of a run.

    Args:
        query: ``[1, heads, T, d]``.
        key, value: ``[1, key heads, T, d]``; each serves ``heads / key heads`` heads.
        known: keys and values ``[1, key heads, n, d]`` of the known nodes.

    Returns:
        ``[1, T, heads, d]``.
    """
    flat = [states for node in sorted(known) for states in known[node]]
    result: Tensor = _Attention.apply(query, key, value, packing, rule, *flat)  # type: ignore[no-untyped-call]
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, packing: Packing, rule: Rule, *known: Tensor
    ) -> Tensor:
        scores = _Scores(packing, rule, query, key, value, known)
        out = query.new_empty(query.shape[2], scores.heads, scores.group, value.shape[-1])
        kept: list[Tensor] = []
        keep = torch.is_grad_enabled() or any(ctx.needs_input_grad)
        for number, block in enumerate(packing.blocks):
            weights = scores.weights(number)[0]
            scores.rows(out, block).copy_(_as_rows(torch.bmm(weights, scores.values(block)), scores.group))
            if keep and scores.keeps(block):
                kept.append(weights)
        ctx.save_for_backward(query, key, value, *known, *kept)
        ctx.given = packing, rule, len(known)
        return out.view(1, query.shape[2], query.shape[1], value.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        packing, rule, count = ctx.given
        query, key, value, *others = ctx.saved_tensors
        known, kept = others[:count], iter(others[count:])
        scores = _Scores(packing, rule, query, key, value, known)
        to_query = query.new_empty(query.shape[2], scores.heads, scores.group, query.shape[-1])
        to_keys = _Gradients(scores, key, known[0::2])
        to_values = _Gradients(scores, value, known[1::2])
        grad = grad.view(grad.shape[1], scores.heads, scores.group, -1)
        for number, block in enumerate(packing.blocks):
            squash = None
            if scores.keeps(block):
                weights = next(kept)
            else:
                weights, squash = scores.weights(number)
            rows = _as_heads(scores.rows(grad, block)).to(weights.dtype)
            keys, queries = scores.keys(block), scores.queries(block)
            to_values.add(block, torch.bmm(weights.transpose(1, 2), rows))
            to_scores = torch.bmm(rows, scores.values(block).transpose(1, 2))
            to_scores = torch._softmax_backward_data(to_scores, weights, -1, weights.dtype)
            if squash is not None:
                to_scores.mul_(squash)
            to_keys.add(block, torch.bmm(to_scores.transpose(1, 2), queries))
            products = _as_rows(torch.bmm(to_scores, keys), scores.group)
            torch.mul(products, rule.scale, out=scores.rows(to_query, block))
        to_query = to_query.view(1, query.shape[2], query.shape[1], -1).transpose(1, 2)
        pairs = zip(to_keys.known, to_values.known, strict=True)
        return (to_query, to_keys.own, to_values.own, None, None, *(each for pair in pairs for each in pair))


class _Scores:
    """Queries, keys and attention weights of each block; several heads that share a key head are one matrix."""

    def __init__(
        self, packing: Packing, rule: Rule, query: Tensor, key: Tensor, value: Tensor, known: Sequence[Tensor]
    ) -> None:
        self.packing, self.rule = packing, rule
        self.heads, self.group = key.shape[1], query.shape[1] // key.shape[1]
        exact = torch.promote_types(query.dtype, torch.float32)  # scores in 16 bits would be too coarse
        query, key, value = query.to(exact), key.to(exact), value.to(exact)
        known = [each.to(exact) for each in known]
        self.query = query[0].transpose(0, 1).unflatten(1, (self.heads, self.group))  # [T, heads, group, d]
        names = sorted(packing.known)
        self.key = {OWN: key[0]} | {node: known[2 * i][0] for i, node in enumerate(names)}
        self.value = {OWN: value[0]} | {node: known[2 * i + 1][0] for i, node in enumerate(names)}

    def rows(self, states: Tensor, block: Block) -> Tensor:
        """The block's part ``[n, heads, group, d]`` of states that are in the run's order."""
        return states[block.start : block.stop]

    def queries(self, block: Block) -> Tensor:
        """``[heads, group * n, d]``, scaled."""
        return _as_heads(self.rows(self.query, block)) * self.rule.scale

    def keys(self, block: Block) -> Tensor:
        """``[heads, m, d]``."""
        return self._gather(self.key, block)

    def values(self, block: Block) -> Tensor:
        """``[heads, m, d]``."""
        return self._gather(self.value, block)

    def _gather(self, states: dict[int, Tensor], block: Block) -> Tensor:
        own = states[OWN][:, block.start : block.stop]
        if not block.above:
            return own
        return torch.cat([*(states[k.source][:, k.start : k.stop] for k in block.above), own], dim=1)

    def keeps(self, block: Block) -> bool:
        """Whether the weights are kept for the backward pass."""
        return self.rule.softcap is None and block.num_keys <= KEEP_KEYS

    def weights(self, number: int) -> tuple[Tensor, Tensor | None]:
        """Attention weights ``[heads, group * n, m]``, and the derivative of the soft-cap, if there is one."""
        block, squash = self.packing.blocks[number], None
        scores = torch.bmm(self.queries(block), self.keys(block).transpose(1, 2))
        if cap := self.rule.softcap:
            scores = scores.div_(cap).tanh_()
            squash = 1 - scores.square()
            scores = scores.mul_(cap)
        apart = scores.view(self.heads, self.group, len(block), block.num_keys)
        if self.rule.slopes is not None:
            positions = block.key_positions(self.packing.positions).to(scores.dtype)
            apart.add_(self.rule.slopes.view(self.heads, self.group, 1, 1) * positions)
        mask = self.packing.mask(number, self.rule.window, scores.dtype)
        apart[..., block.num_keys - mask.shape[1] :].add_(mask)
        return torch.softmax(scores, dim=-1), squash


class _Gradients:
    """Where the gradients of keys (or values) add up."""

    def __init__(self, scores: _Scores, own: Tensor, known: Sequence[Tensor]) -> None:
        self.own = torch.zeros_like(own, memory_format=torch.contiguous_format)
        self.known = [torch.zeros_like(each) for each in known]
        names = sorted(scores.packing.known)
        self._of = {OWN: self.own[0]} | {node: each[0] for node, each in zip(names, self.known, strict=True)}

    def add(self, block: Block, found: Tensor) -> None:
        """Add a block's ``[heads, m, d]``."""
        place = 0
        for keys in block.above:
            length = keys.stop - keys.start
            self._of[keys.source][:, keys.start : keys.stop] += found[:, place : place + length]
            place += length
        self._of[OWN][:, block.start : block.stop] += found[:, place:]


def _as_heads(rows: Tensor) -> Tensor:
    """``[n, heads, group, d]`` -> ``[heads, group * n, d]``."""
    n, heads, group, d = rows.shape
    return rows.permute(1, 2, 0, 3).reshape(heads, group * n, d)


def _as_rows(states: Tensor, group: int) -> Tensor:
    """``[heads, group * n, d]`` -> ``[n, heads, group, d]``."""
    return states.unflatten(1, (group, -1)).permute(2, 0, 1, 3)
