"""Padded-block attention: attention in a packed tree on a GPU, in few calls of torch's fused attention.

A GPU wants few and large operations. So the blocks of ``attention_cpu.py`` are padded to a common size and become a
batch; the linear layers around it still see every token once. A mask is two comparisons, since a subtree is contiguous
in preorder: query ``i`` reads key ``j`` iff ``j <= i < end of the subtree of j's node``. Short runs are one block, in
which all pairs are compared and nothing needs gathering.

Nothing is compiled: torch's flex_attention, which skips masked blocks, took minutes to compile in float32, and cuDNN's
attention plans anew for every shape, while each training step has shapes of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from .attention_cpu import OWN, Block, Packing, Rule

WHOLE = 1024
"""Most keys of a run that is one block: comparing all pairs costs less than gathering."""
COPIES = 4
"""Blocks that together read more than so many times the number of keys gather them again in the backward pass."""
ALIGNED = 8
"""A mask's rows are a multiple of so many elements; otherwise every layer would make, and keep, a padded copy."""


@dataclass(frozen=True)
class Bucket:
    """G blocks of up to N queries that read up to M keys; shorter ones are padded.

    Attributes:
        queries: ``[G * N]`` indices of tokens of the run; ``None`` for all, in order, in one block.
        keys: ``[G * M]`` indices of keys, those of cached nodes first; ``None`` for all.
        visible: ``[G, N, M]`` whether a query may read a key, before windows.
        query_depth, key_depth: ``[G, N]`` and ``[G, M]`` positions.
    """

    queries: Tensor | None
    keys: Tensor | None
    visible: Tensor
    query_depth: Tensor
    key_depth: Tensor

    @property
    def distance(self) -> Tensor:
        """``[G, N, M]`` tokens from key to query."""
        return self.query_depth[:, :, None] - self.key_depth[:, None]


def attend_padded_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    rule: Rule,
    cached: dict[int, tuple[Tensor, Tensor]],
) -> Tensor:
    """Attention of all tokens of a run, ``[1, T, heads, d]``; arguments as for ``attention_cpu.attend``."""
    group = query.shape[1] // key.shape[1]
    keys, values = (
        torch.cat([*(cached[node][which] for node in sorted(cached)), own], dim=2)[0].transpose(0, 1)  # [K, heads, d]
        for which, own in enumerate((key, value))
    )
    queries = query[0].transpose(0, 1)  # [T, heads * group, d]
    buckets, places = _layout(packing)
    found = []
    for number, bucket in enumerate(buckets):
        given = queries, keys, values, bucket, _bias(packing, number, rule, group, query.dtype), rule
        copies = 0 if bucket.keys is None else len(bucket.keys) / len(keys)
        if copies > COPIES and torch.is_grad_enabled():
            found.append(checkpoint(_attend, *given, use_reentrant=False, preserve_rng_state=False))
        else:
            found.append(_attend(*given))
    return _pick(found[0] if len(found) == 1 else torch.cat(found), places)[None]


def _pick(rows: Tensor, which: Tensor | None) -> Tensor:
    return rows if which is None else rows.index_select(0, which)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, bucket: Bucket, bias: Tensor, rule: Rule) -> Tensor:
    """``[G * N, heads * group, d]``, of queries ``[T, heads * group, d]`` and keys and values ``[K, heads, d]``."""
    (size, most, _), heads = bucket.visible.shape, keys.shape[1]
    query = _pick(queries, bucket.queries).view(size, most, heads, -1, queries.shape[2])
    group = query.shape[3]
    query = query.transpose(1, 2).flatten(2, 3)  # heads that share a key head are queries of their own
    key, value = (
        _pick(each, bucket.keys).view(size, -1, heads, each.shape[2]).transpose(1, 2) for each in (keys, values)
    )
    if rule.softcap is None:
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=rule.scale)
    else:
        exact = torch.promote_types(query.dtype, torch.float32)  # scores in 16 bits would be too coarse
        scores = query.to(exact) @ key.to(exact).transpose(2, 3) * (rule.scale / rule.softcap)
        out = torch.softmax(torch.tanh(scores) * rule.softcap + bias, dim=-1).to(value.dtype) @ value
    return out.view(size, heads, most, group, -1).transpose(1, 2).flatten(0, 1).flatten(1, 2)


def _bias(packing: Packing, number: int, rule: Rule, group: int, dtype: torch.dtype) -> Tensor:
    """Additive mask of a bucket, ALiBi included, ``[G, 1 or heads, N * group, M]``: shared by layers of one rule."""
    window = packing.narrow(rule.window)
    shared, name = packing.shared, ("bias", number, window, rule.slopes is None, group, dtype)
    if name not in shared:
        bucket = _layout(packing)[0][number]
        visible = bucket.visible
        if window is not None:
            visible = visible & (bucket.distance < window)
        bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        bias = bias.masked_fill_(~visible, float("-inf"))[:, None, :, None]  # [G, heads, N, group, M]
        if rule.slopes is not None:  # counted from the query, so that near keys differ in 16 bits too
            bias = bias - (rule.slopes.view(-1, 1, group, 1) * bucket.distance[:, None, :, None]).to(dtype)
        bias = bias.expand(-1, -1, -1, group, -1).flatten(2, 3)
        width = bias.shape[-1]
        shared[name] = F.pad(bias, (0, -width % ALIGNED))[..., :width]
    found: Tensor = shared[name]
    return found


def _layout(packing: Packing) -> tuple[list[Bucket], Tensor | None]:
    """The buckets of a run, and the index of each token's result among theirs; ``None`` for in order."""
    shared = packing.shared
    if "buckets" not in shared:
        shared["buckets"] = _lay_out(packing)
    found: tuple[list[Bucket], Tensor | None] = shared["buckets"]
    return found


def _lay_out(packing: Packing) -> tuple[list[Bucket], Tensor | None]:
    device, columns = packing.device, _of_keys(packing)
    total = len(columns[0])
    if total <= WHOLE:
        everything = (torch.arange(count, device=device)[None] for count in (packing.length, total))
        return [replace(_bucket(packing.length, columns, *everything), queries=None, keys=None)], None
    shift = _shifts(packing)
    buckets, places, first = [], torch.empty(packing.length, dtype=torch.long), 0
    for blocks in _alike(packing.blocks):
        queries = _padded([torch.arange(block.start, block.stop) for block in blocks])
        keys = _padded(
            [torch.cat([torch.arange(k.start, k.stop) + shift[k.source] for k in block.reads]) for block in blocks]
        )
        real = queries.flatten() >= 0
        places[queries.flatten()[real]] = first + real.nonzero()[:, 0]
        first += queries.numel()
        buckets.append(_bucket(packing.length, columns, queries.to(device), keys.to(device)))
    return buckets, places.to(device)


def _padded(indices: list[Tensor]) -> Tensor:
    """Indices in rows of one length, padded with -1."""
    return torch.nn.utils.rnn.pad_sequence(indices, batch_first=True, padding_value=-1)


def _alike(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Blocks in groups of which the largest has at most twice the keys of the smallest."""
    group: list[Block] = []
    for block in sorted(blocks, key=lambda block: block.num_keys):
        if group and block.num_keys > 2 * group[0].num_keys:
            yield group
            group = []
        group.append(block)
    yield group


def _bucket(length: int, columns: tuple[Tensor, Tensor, Tensor], queries: Tensor, keys: Tensor) -> Bucket:
    """A bucket of ``queries`` ``[G, N]`` and ``keys`` ``[G, M]``, -1 at padding, of a run of ``length`` tokens."""
    place, end, depth = columns
    own = slice(len(place) - length, None)
    # A padded query repeats the last one, so that it has something to read.
    queries = torch.where(queries >= 0, queries, queries.amax(1, keepdim=True))
    there, keys = keys >= 0, keys.clamp_min(0)
    asking, first, stop = place[own][queries][:, :, None], place[keys][:, None], end[keys][:, None]
    visible = (first <= asking) & (asking < stop) & there[:, None]
    return Bucket(queries.flatten(), keys.flatten(), visible, depth[own][queries], depth[keys])


def _shifts(packing: Packing) -> dict[int, int]:
    """Where the keys of each cached node, and the run's own, begin among all keys."""
    found, at = dict[int, int](), 0
    for node in sorted(packing.cached):
        found[node] = at
        at += packing.tree.lengths[node]
    return {**found, OWN: at}


def _of_keys(packing: Packing) -> tuple[Tensor, Tensor, Tensor]:
    """Flat position, end of subtree and depth of each key: those of cached nodes first, then the run's own."""
    tree = packing.tree
    own = [node for node in range(len(tree.lengths)) if node not in packing.cached]
    nodes = [*sorted(packing.cached), *own]
    lengths = torch.tensor([tree.lengths[node] for node in nodes])
    place = torch.cat([torch.arange(s.start, s.stop) for s in map(tree.span, nodes)])
    offset = torch.tensor([tree.depths[node] - tree.starts[node] for node in nodes])
    end = torch.tensor([tree.ends[node] for node in nodes])
    columns = place, torch.repeat_interleave(end, lengths), place + torch.repeat_interleave(offset, lengths)
    place, end, depth = (column.to(packing.device) for column in columns)
    return place, end, depth
