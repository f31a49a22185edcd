"""State dictionaries of adapters and bases, under PEFT's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import AdapterMismatchError
from ..storage.adapter import key_of
from .adapters import AdapterModel


def get_peft_model_state_dict(
    model: AdapterModel, state_dict: Mapping[str, Tensor] | None = None, adapter_name: str = "default", **_: Any
) -> dict[str, Tensor]:
    """An adapter's tensors: ``{"prompt_embeddings": [P, D]}``, detached, on the CPU.

    A suffix prompt is called ``suffix_prompt_embeddings``, as in its file.
    """
    key = key_of(model.peft_config[adapter_name].prompt_placement)
    return {key: model.get_prompt_embedding_to_save(adapter_name)}


def set_peft_model_state_dict(
    model: AdapterModel, peft_model_state_dict: Mapping[str, Tensor], adapter_name: str = "default", **_: Any
) -> Any:
    """Copy ``prompt_embeddings`` (or ``suffix_prompt_embeddings``) into an adapter, keeping the adapter's dtype.

    Returns:
        An object with empty ``missing_keys`` and ``unexpected_keys``.

    Raises:
        KeyError: there is no such tensor.
        AdapterMismatchError: the shape differs (a ``RuntimeError`` too, as in PEFT).
    """
    key = key_of(model.peft_config[adapter_name].prompt_placement)
    new = peft_model_state_dict[key]
    prompt = model.prompt_of(adapter_name)
    if new.shape != prompt.shape:
        raise AdapterMismatchError(
            f"size mismatch for {key}: the file has {list(new.shape)}, adapter {adapter_name!r} has "
            f"{list(prompt.shape)}"
        )
    with torch.no_grad():
        prompt.copy_(new)
    return torch.nn.modules.module._IncompatibleKeys([], [])


def get_base_model_state_dict(model: AdapterModel) -> dict[str, Tensor]:
    """The base model's own state dictionary, keys unchanged."""
    return model.base_model.state_dict()  # type: ignore[no-any-return]


def set_base_model_state_dict(model: AdapterModel, state_dict: Mapping[str, Tensor], strict: bool = True) -> Any:
    """Load the base model's state dictionary."""
    return model.base_model.load_state_dict(state_dict, strict=strict)
