"""Gradient checkpointing: layers that keep only their input, and run again in the backward pass."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from .call import cache_of
from .fused import fused


def checkpointed(module: nn.Module) -> type[nn.Module]:
    """The class for a view of ``module``: checkpointed if the base asks for it, otherwise fused.

    The base asks by ``base.gradient_checkpointing_enable()``. transformers itself checkpoints in ``train()`` only, and
    drops the cache there, with the prompt in it; so a view does it instead.
    """
    asks = isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
    if not asks:
        return fused(module)
    return _checkpointed_class(type(module))  # type: ignore[arg-type]  # classes can be hashed


@functools.cache
def _checkpointed_class(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        cache = cache_of(args, kwargs)
        run = functools.partial(kind.forward, self)
        if cache is None or cache.keep or not torch.is_grad_enabled():
            return run(*args, **kwargs)
        return checkpoint(run, *args, use_reentrant=False, **kwargs)

    return type(f"Checkpointed{kind.__name__}", (kind,), {"forward": forward})
