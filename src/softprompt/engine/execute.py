"""Shims for callers that hold a backbone rather than a runner; removed with the last of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from .kv_cache import KVCache
from .runner import Backend, ModelRunner, backends
from .tree import Tree

__all__ = ["Backend", "backends", "compute", "run"]


def run(
    backbone: nn.Module,
    tree: Tree,
    embeds: Tensor,
    known: Mapping[int, KVCache] | None = None,
    backend: Backend | None = None,
    states: list[Tensor] | None = None,
) -> Tensor:
    """See ``ModelRunner.forward``."""
    base: Any = SimpleNamespace(base_model=backbone)
    return ModelRunner(base, backend or backends(backbone)[0]).forward(tree, embeds, known, states)


def compute(
    backbone: nn.Module,
    tree: Tree,
    embeds: Tensor,
    known: Mapping[int, KVCache] | None = None,
    backend: Backend | None = None,
) -> dict[int, KVCache]:
    """See ``ModelRunner.prefill``."""
    base: Any = SimpleNamespace(base_model=backbone)
    return ModelRunner(base, backend or backends(backbone)[0]).prefill(tree, embeds, known)
