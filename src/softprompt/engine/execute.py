"""Running a token tree on a frozen base: which way, and the hidden states of all its tokens.

Two ways with one meaning. *Packed* puts every token once into one sequence, with our attention: the fast
way, for families whose attention can be exchanged. *Level by level* gives each level to stock code as a
batch with a cache: the way that works for all. The prompt runs once in either; autograd adds up what each
row sends back through the prompt's keys and values, and that sum is the gradient of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..models.families import is_verified
from .backends.levelwise import levelwise_view, run_levelwise
from .backends.packed import PACKED, packed_view, run_packed
from .kv_cache import KVCache, Layers
from .surgery.lm_head import is_intercepted
from .tree import Tree

Backend = Literal["packed", "levelwise"]


def run(
    backbone: nn.Module,
    tree: Tree,
    embeds: Tensor,
    known: Mapping[int, KVCache] | None = None,
    backend: Backend | None = None,
    states: list[Tensor] | None = None,
) -> Tensor:
    """Hidden states of all tokens of a tree.

    Args:
        backbone: a decoder without its head, frozen and in ``eval()``.
        tree: who attends to whom.
        embeds: ``[T', D]`` input embeddings in flat order, of the tokens whose node is not known.
        known: what has been computed already, by node.
        way: the way to run; the fastest that fits, by default.
        states: filled with what each layer answers for the tokens that are not known, ``[T', D]``.

    Returns:
        ``[T, D']`` last hidden states in flat order, known ones included (D' may differ from D, as in OPT-350m).
    """
    known = known or {}
    hidden, _, outputs = _run(backbone, tree, embeds, known, backend, capture=states is not None)
    if states is not None:
        states += outputs
    return _with_known(hidden, tree, known)


def compute(
    backbone: nn.Module,
    tree: Tree,
    embeds: Tensor,
    known: Mapping[int, KVCache] | None = None,
    backend: Backend | None = None,
) -> dict[int, KVCache]:
    """Keys, values and hidden states of each node that is not known; arguments as for ``run``."""
    known = known or {}
    hidden, layers, _ = _run(backbone, tree, embeds, known, backend, keep=True)
    found = {}
    for node, (start, stop) in enumerate(pairwise(tree.starts_without(known))):
        if node not in known:
            own = tuple((keys[:, :, start:stop], values[:, :, start:stop]) for keys, values in layers)
            found[node] = KVCache(own, hidden[start:stop])
    return found


def _run(
    backbone: nn.Module,
    tree: Tree,
    embeds: Tensor,
    known: Mapping[int, KVCache],
    backend: Backend | None,
    keep: bool = False,
    capture: bool = False,
) -> tuple[Tensor, Layers, list[Tensor]]:
    """Hidden states, keys and values, and layer outputs of the tokens that are not cached."""
    if known and not len(embeds):  # nothing is new: empty rows, labels of one token
        nothing = next(iter(known.values())).map(lambda states: states[..., :0, :])
        return nothing.hidden, list(nothing.layers), []
    make, run = _BACKENDS[backend or backends(backbone)[0]]
    return run(make(backbone), tree, embeds, known, keep=keep, capture=capture)


_BACKENDS = {"packed": (packed_view, run_packed), "levelwise": (levelwise_view, run_levelwise)}


def backends(backbone: nn.Module) -> tuple[Backend, ...]:
    """The ways in which a base can run, the fastest first."""
    config: Any = backbone.config
    device = next(backbone.parameters()).device
    packs = (
        config.model_type in PACKED
        and is_verified(backbone)
        and device.type in ("cpu", "cuda")
        and not torch.is_autocast_enabled(device.type)  # queries and values would be of different types
        and not any("forward" in module.__dict__ or _watches_weights(module) for module in backbone.modules())
    )
    return ("packed", "levelwise") if packs else ("levelwise",)


def _watches_weights(module: nn.Module) -> bool:
    """Whether a hook waits for attention weights at their dropout, which packed attention does not call."""
    return isinstance(module, nn.Dropout) and is_intercepted(module)


def _with_known(hidden: Tensor, tree: Tree, known: Mapping[int, KVCache]) -> Tensor:
    if not known:
        return hidden
    runs = pairwise(tree.starts_without(known))
    return torch.cat([known[node].hidden if node in known else hidden[slice(*run)] for node, run in enumerate(runs)])
