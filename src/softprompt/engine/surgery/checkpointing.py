"""Gradient checkpointing: layers that keep only their input, and run again in the backward pass."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from .fused import fused


def checkpointed(module: nn.Module) -> type[nn.Module]:
    """The class for a view of ``module``: faster where there is one, and recomputed where the base asks for it.

    ``base.gradient_checkpointing_enable()`` is what asks. transformers itself heeds it in ``train()`` only, and
    drops the cache there, with the prompt in it; so a view does it instead.
    """
    asks = isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
    return _recomputed(type(module)) if asks and torch.is_grad_enabled() else fused(module)


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(functools.partial(kind.forward, self), *args, use_reentrant=False, **kwargs)

    if kind not in _classes:
        _classes[kind] = type(f"Recomputed{kind.__name__}", (kind,), {"forward": forward})
    return _classes[kind]
