"""Preparing a base model and adding a new soft prompt to it: ``get_peft_model``."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import PreTrainedModel

from ..config.adapter_config import PeftConfig
from ..errors import ConfigError
from .interop import own_config, without_peft_wrapper
from .model import PeftModel, PeftModelForCausalLM


def get_peft_model(
    model: PreTrainedModel, peft_config: PeftConfig, adapter_name: str = "default", **kwargs: Any
) -> PeftModelForCausalLM:
    """Freeze a base model and add a new soft prompt to it.

    Args:
        model: a transformers causal language model; it is not copied. It may be a LoRA model of PEFT; each call uses
            the LoRA adapters that are active at that time.
        peft_config: a ``PromptTuningConfig``, whose ``None`` fields are set in place; PEFT's own class is accepted.
        **kwargs: ``tokenizer`` for TEXT initialization, instead of loading the one that the config names; ``revision``
            of the base model, kept in the config. PEFT's other options (``autocast_adapter_dtype``,
            ``low_cpu_mem_usage``) have no effect on prompts, neither in PEFT nor here.

    Raises:
        ConfigError: the config does not fit this base; or ``mixed=True``, which prompts do not support.
    """
    if kwargs.get("mixed"):
        raise ConfigError("mixed=True is not supported for prompt tuning; leave it out")
    if issubclass(type(model), PeftModel):
        warnings.warn(
            "The model has a soft prompt already; a new one replaces it. Use add_adapter to keep both.", stacklevel=2
        )
        model = model.get_base_model()
    model, peft_config = without_peft_wrapper(model), own_config(peft_config)
    name = getattr(model, "name_or_path", None) or None
    if peft_config.base_model_name_or_path not in (None, name):
        warnings.warn(
            f"The base model of the config was renamed from {peft_config.base_model_name_or_path!r} to {name!r}.",
            stacklevel=2,
        )
    peft_config.base_model_name_or_path = name
    revision = kwargs.get("revision")
    if revision is not None:
        if peft_config.revision not in (None, revision):
            warnings.warn(f"The revision {peft_config.revision!r} is replaced by {revision!r}.", stacklevel=2)
        peft_config.revision = revision
    return PeftModelForCausalLM(model, peft_config, adapter_name, tokenizer=kwargs.get("tokenizer"))


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
