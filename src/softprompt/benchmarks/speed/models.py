"""The base model that all sides share, and copies of its modules that share its weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ...models.device import choose_device, choose_dtype
from ...models.loading import load_base, load_tokenizer
from ...peft.initialization import sample_vocab
from .settings import BenchOptions
from .shapes import random_base


def load_models(options: BenchOptions) -> tuple[Any, Any]:
    """Base model and tokenizer; with ``shape``, the tokenizer of ``model`` alone is loaded."""
    if options.shape:
        dtype = choose_dtype(options.dtype)
        base = random_base(options.shape).to(choose_device(options.device))
        return base if isinstance(dtype, str) else base.to(dtype), load_tokenizer(options)
    loaded = load_base(options)
    return loaded.model, loaded.tokenizer


def twin(base: Any) -> Any:
    """The same model with the same weights in memory, but with modules, config and modes of its own.

    PEFT changes modes and attributes of the model it wraps, and our engine may settle into the one it runs
    on: neither shall be slowed or helped by the other, and the weights are not in memory twice.
    """
    return copy.deepcopy(base, {id(weight): weight for weight in (*base.parameters(), *base.buffers())})


def start_prompt(base: Any, num_virtual_tokens: int, seed: int = 0) -> Tensor:
    """A prompt ``[P, D]``, the same for every side."""
    torch.manual_seed(seed)
    return sample_vocab(num_virtual_tokens, base.get_input_embeddings())
