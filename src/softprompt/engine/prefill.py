"""Shim; see ``ModelRunner.prefill_prompt``."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from .kv_cache import KVCache
from .runner import ModelRunner


def prefill(base: PreTrainedModel, prompt: Tensor) -> KVCache:
    """See ``ModelRunner.prefill_prompt``."""
    return ModelRunner(base).prefill_prompt(prompt)
