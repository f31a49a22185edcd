"""Attention in a packed tree on a GPU, by torch's flex_attention: the tree as a mask function.

In preorder a subtree is one stretch, so who reads whom is two comparisons: query ``i`` reads key ``j`` iff
``j <= i < end of the subtree of j's node``. Kernels skip blocks in which nothing is read; windows, ALiBi and
soft-capping are a line each. Same meaning and arguments as ``attention.attend``.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from .attention import Packing, Rule, attend
from .tree import ROOT, Tree


def available(device: torch.device, head_dim: int, dtype: torch.dtype) -> bool:
    """Whether the compiled kernels run there, and right: CUDA from Ampere on, Triton, and a trial that agrees.

    Args:
        head_dim, dtype: of the queries; a kernel that needs more shared memory than there is fails to compile.
    """
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0) and trial(device, head_dim, dtype)


@functools.cache
def trial(device: torch.device, head_dim: int, dtype: torch.dtype, gradient: bool = True) -> bool:
    """Whether a small tree comes out as ``attention.attend`` has it; says so once where it does not."""
    random = torch.Generator().manual_seed(0)
    shapes = ((1, 4, 40, head_dim), (1, 2, 40, head_dim), (1, 2, 40, head_dim))
    states = [torch.randn(shape, generator=random).to(device, dtype).requires_grad_(gradient) for shape in shapes]
    packing = Packing(Tree((ROOT, 0, 1, 1, 0), (5, 3, 12, 9, 11)), frozenset(), device)
    found = []
    try:
        for function in (attend, attend_flex):
            query, key, value = states
            out = function(query, key, value, packing, Rule(head_dim**-0.5), {})
            gradients = torch.autograd.grad(out.square().sum(), states) if gradient else ()
            found.append([each.detach().float() for each in (out, *gradients)])
        worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*found, strict=True))
        bound = 1e-2 if dtype == torch.float32 else 5e-2
        reason = None if worst < bound else f"its results are off by {worst:.0e}"
    except Exception as error:  # a compiler of its own can fail in any way
        reason = str(error).split("\n")[0] or type(error).__name__
    if reason is not None:
        warnings.warn(
            f"flex_attention is not used on {device} (heads of {head_dim}, {str(dtype).removeprefix('torch.')}): "
            f"{reason}. Prompts run level by level.",
            stacklevel=2,
        )
    return reason is None


def attend_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    rule: Rule,
    known: dict[int, tuple[Tensor, Tensor]],
) -> Tensor:
    """Attention of all tokens of a run, ``[1, T, heads, d]``; arguments as for ``attention.attend``."""
    names = sorted(known)
    keys = torch.cat([*(known[node][0] for node in names), key], dim=2)
    values = torch.cat([*(known[node][1] for node in names), value], dim=2)
    run: Any = _kernel() if query.is_cuda else flex_attention
    out = run(
        query,
        keys,
        values,
        score_mod=_score(packing, rule),
        block_mask=_mask(packing, rule.window),
        scale=rule.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    result: Tensor = out.transpose(1, 2)
    return result


@functools.cache
def _kernel() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


def _mask(packing: Packing, window: int | None) -> BlockMask:
    """The mask of a run, the same object for every layer with that window."""
    cache = packing.cache
    if ("mask", window) not in cache:
        place, end, depth = _of_keys(packing)
        own, positions = place[len(place) - packing.length :], packing.positions

        def reads(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            visible = (place[k] <= own[q]) & (own[q] < end[k])
            return visible if window is None else visible & (positions[q] - depth[k] < window)

        cache["mask", window] = create_block_mask(reads, None, None, len(own), len(place), device=str(packing.device))
    mask: BlockMask = cache["mask", window]
    return mask


def _score(packing: Packing, rule: Rule) -> Callable[..., Tensor] | None:
    """What happens to a score before the softmax; ``None`` for nothing."""
    cap, slopes = rule.softcap, rule.slopes
    if slopes is not None:
        depth, slope = _of_keys(packing)[2], slopes
        return lambda score, b, h, q, k: score + slope[h] * depth[k]
    if cap is not None:
        return lambda score, b, h, q, k: torch.tanh(score / cap) * cap
    return None


def _of_keys(packing: Packing) -> tuple[Tensor, Tensor, Tensor]:
    """Flat place, end of subtree and depth of each key: those of known nodes first, then the run's own."""
    cache = packing.cache
    if "keys" not in cache:
        tree = packing.tree
        own = [node for node in range(len(tree.lengths)) if node not in packing.known]
        nodes = [*sorted(packing.known), *own]
        lengths = torch.tensor([tree.lengths[node] for node in nodes])
        place = torch.cat([torch.arange(s.start, s.stop) for s in map(tree.span, nodes)])
        offset = torch.tensor([tree.depths[node] - tree.starts[node] for node in nodes])
        end = torch.tensor([tree.ends[node] for node in nodes])
        columns = place, torch.repeat_interleave(end, lengths), place + torch.repeat_interleave(offset, lengths)
        cache["keys"] = tuple(column.to(packing.device) for column in columns)
    found: tuple[Tensor, Tensor, Tensor] = cache["keys"]
    return found
