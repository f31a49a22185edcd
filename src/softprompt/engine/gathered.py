"""Attention in a packed tree on a GPU: the blocks side by side, in few calls of torch's fused attention.

A GPU wants few and large operations. So the blocks of ``attention.py`` are padded to a common size and become a
batch; the linear layers around it still see every token once. Who reads whom is two comparisons, since in preorder
a subtree is one stretch: query ``i`` reads key ``j`` iff ``j <= i < end of the subtree of j's node``. Short runs are
one block, in which all pairs are compared and nothing needs gathering.

Nothing is compiled: torch's flex_attention, which skips what a mask hides, took minutes to compile in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import OWN, Block, Packing, Rule

WHOLE = 1024
"""Runs that read at most so many keys are one block: comparing all pairs costs less than gathering."""


@dataclass(frozen=True)
class Bucket:
    """G blocks of up to N queries that read up to M keys; what is short repeats its last token, unread.

    Attributes:
        queries: ``[G * N]`` which tokens of the run; ``None`` for all, in order, in one block.
        keys: ``[G * M]`` which keys, those of known nodes counted first; ``None`` for all.
        visible: ``[G, N, M]`` whether a query may read a key, windows aside.
        query_depth, key_depth: ``[G, N]`` and ``[G, M]`` positions.
    """

    queries: Tensor | None
    keys: Tensor | None
    visible: Tensor
    query_depth: Tensor
    key_depth: Tensor

    def to(self, device: torch.device) -> Bucket:
        """The same on another device."""
        moved: dict[str, Any] = {name: None if each is None else each.to(device) for name, each in vars(self).items()}
        return replace(self, **moved)

    @property
    def distance(self) -> Tensor:
        """``[G, N, M]`` tokens from key to query."""
        return self.query_depth[:, :, None] - self.key_depth[:, None]


def attend_gathered(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    rule: Rule,
    known: dict[int, tuple[Tensor, Tensor]],
) -> Tensor:
    """Attention of all tokens of a run, ``[1, T, heads, d]``; arguments as for ``attention.attend``."""
    heads, group = key.shape[1], query.shape[1] // key.shape[1]
    keys, values = (
        torch.cat([*(known[node][which] for node in sorted(known)), own], dim=2)[0].transpose(0, 1)  # [K, heads, d]
        for which, own in enumerate((key, value))
    )
    queries = query[0].transpose(0, 1)  # [T, heads * group, d]
    buckets, places = _layout(packing)
    found = []
    for number, bucket in enumerate(buckets):
        size, most, _ = bucket.visible.shape
        asked = _pick(queries, bucket.queries).view(size, most, heads, group, -1).transpose(1, 2).flatten(2, 3)
        read, said = (
            _pick(each, bucket.keys).view(size, -1, heads, each.shape[-1]).transpose(1, 2) for each in (keys, values)
        )
        out = _attend(asked, read, said, _bias(packing, number, rule, group, query.dtype), rule)
        found.append(out.view(size, heads, most, group, -1).transpose(1, 2).flatten(0, 1).flatten(1, 2))
    return _pick(found[0] if len(found) == 1 else torch.cat(found), places)[None]


def _pick(rows: Tensor, which: Tensor | None) -> Tensor:
    return rows if which is None else rows.index_select(0, which)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, rule: Rule) -> Tensor:
    """``[G, heads, n, d]``; heads that share a key head are queries of their own."""
    if rule.softcap is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=rule.scale)
    scores = torch.tanh(query @ key.transpose(2, 3) * (rule.scale / rule.softcap)) * rule.softcap
    exact = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores.to(exact) + bias, dim=-1).to(value.dtype) @ value


def _bias(packing: Packing, number: int, rule: Rule, group: int, dtype: torch.dtype) -> Tensor:
    """What to add to the scores of a bucket, ``[G, 1 or heads, N * group, M]``: the same for layers of one rule."""
    cache, name = packing.cache, ("bias", number, rule.window, rule.slopes is None, group, dtype)
    if name not in cache:
        bucket = _layout(packing)[0][number]
        visible = bucket.visible
        if rule.window is not None:
            visible = visible & (bucket.distance < rule.window)
        bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        bias = bias.masked_fill_(~visible, float("-inf"))[:, None, :, None]  # [G, heads, N, group, M]
        if rule.slopes is not None:  # counted from the query, so that near keys differ in 16 bits too
            bias = bias - (rule.slopes.view(-1, 1, group, 1) * bucket.distance[:, None, :, None]).to(dtype)
        cache[name] = bias.expand(-1, -1, -1, group, -1).flatten(2, 3)
    found: Tensor = cache[name]
    return found


def _layout(packing: Packing) -> tuple[list[Bucket], Tensor | None]:
    """The buckets of a run, and where each token's answer stands among theirs; ``None`` for in order."""
    cache = packing.cache
    if "buckets" not in cache:
        cache["buckets"] = _lay_out(packing)
    found: tuple[list[Bucket], Tensor | None] = cache["buckets"]
    return found


def _lay_out(packing: Packing) -> tuple[list[Bucket], Tensor | None]:
    columns = _of_keys(packing)
    total = len(columns[0])
    if total <= WHOLE:
        everything = torch.arange(packing.length)[None], torch.arange(total)[None]
        return [_bucket(packing, columns, *everything, whole=True)], None
    shift = _shifts(packing)
    buckets, places, first = [], torch.empty(packing.length, dtype=torch.long), 0
    for blocks in _alike(packing.blocks):
        queries = torch.nn.utils.rnn.pad_sequence(
            [torch.arange(block.start, block.stop) for block in blocks], batch_first=True, padding_value=-1
        )
        keys = torch.nn.utils.rnn.pad_sequence(
            [torch.cat([torch.arange(k.start, k.stop) + shift[k.source] for k in block.reads]) for block in blocks],
            batch_first=True,
            padding_value=-1,
        )
        real = queries.flatten() >= 0
        places[queries.flatten()[real]] = first + real.nonzero()[:, 0]
        first += queries.numel()
        buckets.append(_bucket(packing, columns, queries, keys, whole=False))
    return buckets, places.to(packing.device)


def _alike(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Blocks in groups of which the largest has at most twice the keys of the smallest."""
    group: list[Block] = []
    for block in sorted(blocks, key=lambda block: block.num_keys):
        if group and block.num_keys > 2 * group[0].num_keys:
            yield group
            group = []
        group.append(block)
    yield group


def _bucket(
    packing: Packing, columns: tuple[Tensor, Tensor, Tensor], queries: Tensor, keys: Tensor, *, whole: bool
) -> Bucket:
    """A bucket of ``queries`` ``[G, N]`` and ``keys`` ``[G, M]``; -1 where a block has no more."""
    place, end, depth = columns
    own = slice(len(place) - packing.length, None)
    # A query that is not there asks what the last one asks, so that it has something to read.
    queries = torch.where(queries >= 0, queries, queries.amax(1, keepdim=True))
    there, keys = keys >= 0, keys.clamp_min(0)
    asking, first, stop = place[own][queries][:, :, None], place[keys][:, None], end[keys][:, None]
    visible = (first <= asking) & (asking < stop) & there[:, None]
    columns = visible, depth[own][queries], depth[keys]
    found = Bucket(queries.flatten(), keys.flatten(), *columns).to(packing.device)
    return replace(found, queries=None, keys=None) if whole else found


def _shifts(packing: Packing) -> dict[int, int]:
    """Where the keys of each known node, and the run's own, begin among all keys."""
    found, at = dict[int, int](), 0
    for node in sorted(packing.known):
        found[node] = at
        at += packing.tree.lengths[node]
    return {**found, OWN: at}


def _of_keys(packing: Packing) -> tuple[Tensor, Tensor, Tensor]:
    """Flat place, end of subtree and depth of each key: those of known nodes first, then the run's own."""
    tree = packing.tree
    own = [node for node in range(len(tree.lengths)) if node not in packing.known]
    nodes = [*sorted(packing.known), *own]
    lengths = torch.tensor([tree.lengths[node] for node in nodes])
    place = torch.cat([torch.arange(s.start, s.stop) for s in map(tree.span, nodes)])
    offset = torch.tensor([tree.depths[node] - tree.starts[node] for node in nodes])
    end = torch.tensor([tree.ends[node] for node in nodes])
    return place, torch.repeat_interleave(end, lengths), place + torch.repeat_interleave(offset, lengths)
