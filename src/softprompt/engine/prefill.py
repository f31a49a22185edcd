"""A prompt computed once: its keys, values and hidden states, read by everything behind it."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from ..models.families import check_depth
from .execute import compute
from .kv_cache import KVCache
from .tree import ROOT, Tree


def prefill(base: PreTrainedModel, prompt: Tensor) -> KVCache:
    """What a prompt ``[P, D]`` leaves behind in each layer; differentiable."""
    check_depth(base.config, len(prompt))
    dtype = next(base.get_input_embeddings().parameters()).dtype
    return compute(base.base_model, Tree((ROOT,), (len(prompt),)), prompt.to(dtype))[0]
