"""State dictionaries of adapters and bases, under PEFT's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import AdapterMismatchError
from ..storage.adapter import key_of, placement_of
from .model import PeftModel


def get_peft_model_state_dict(
    model: PeftModel, state_dict: Mapping[str, Tensor] | None = None, adapter_name: str = "default", **_: Any
) -> dict[str, Tensor]:
    """An adapter's tensors: ``{"prompt_embeddings": [P, D]}``, detached, on the CPU.

    Behind the text it is called ``suffix_prompt_embeddings``, as in its file.
    """
    return {key_of(placement_of(model.peft_config[adapter_name])): model.get_prompt_embedding_to_save(adapter_name)}


def set_peft_model_state_dict(
    model: PeftModel, peft_model_state_dict: Mapping[str, Tensor], adapter_name: str = "default", **_: Any
) -> Any:
    """Copy ``prompt_embeddings`` (or a suffix's tensor) into an adapter, keeping the adapter's number type.

    Returns:
        An object with empty ``missing_keys`` and ``unexpected_keys``.

    Raises:
        KeyError: there is no such tensor.
        AdapterMismatchError: the shape is another one (a ``RuntimeError`` too, as in PEFT).
    """
    key = key_of(placement_of(model.peft_config[adapter_name]))
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


def get_base_model_state_dict(model: PeftModel) -> dict[str, Tensor]:
    """The base model's own state dictionary, keys unchanged."""
    return model.base_model.state_dict()  # type: ignore[no-any-return]


def set_base_model_state_dict(model: PeftModel, state_dict: Mapping[str, Tensor], strict: bool = True) -> Any:
    """Load the base model's state dictionary."""
    return model.base_model.load_state_dict(state_dict, strict=strict)


def prepare_model_for_kbit_training(
    model: PreTrainedModel,
    use_gradient_checkpointing: bool = True,
    gradient_checkpointing_kwargs: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """Freeze a base model and make it ready for training adapters on quantised weights.

    Floating parameters of 16 bits become float32, so that norms and the head keep their precision;
    quantised ones stay. For a quantised model gradient checkpointing is switched on.
    """
    quantised = any(getattr(model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8)) or (
        getattr(model, "quantization_method", None) is not None
    )
    model.requires_grad_(False)
    if getattr(model, "quantization_method", None) not in ("gptq", "aqlm", "eetq", "hqq"):
        for parameter in model.parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16) and type(parameter).__name__ != "Params4bit":
                parameter.data = parameter.data.to(torch.float32)
    if quantised and use_gradient_checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=gradient_checkpointing_kwargs or {})
    return model
