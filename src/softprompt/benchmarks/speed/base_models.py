"""The base model, copies of its modules that share its weights, and the initial prompt."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ...models.device import choose_device, choose_dtype
from ...models.loading import load_base, load_tokenizer
from ...peft.initialization import sample_vocab
from .settings import SpeedOptions
from .shapes import random_base


def load_models(options: SpeedOptions) -> tuple[Any, Any]:
    """Base model and tokenizer; with ``shape``, a random model with the tokenizer of ``model``."""
    if options.shape:
        dtype = choose_dtype(options.dtype)
        base = random_base(options.shape).to(choose_device(options.device))
        return base if isinstance(dtype, str) else base.to(dtype), load_tokenizer(options)
    loaded = load_base(options)
    return loaded.model, loaded.tokenizer


def twin(base: Any) -> Any:
    """A copy of the modules and config that shares the weights in memory.

    PEFT and the engine may change modes and attributes of the model that they use, so each gets its own.
    """
    return copy.deepcopy(base, {id(weight): weight for weight in (*base.parameters(), *base.buffers())})


def initial_prompt(base: Any, num_virtual_tokens: int, seed: int = 0) -> Tensor:
    """The initial prompt ``[P, D]``, the same for every implementation."""
    torch.manual_seed(seed)
    return sample_vocab(num_virtual_tokens, base.get_input_embeddings())
