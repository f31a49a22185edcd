"""``get_peft_model``: a base model and a config in, a model with a new soft prompt out."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from transformers import PreTrainedModel

from ..config.adapter_config import PeftConfig, adopted
from ..errors import ConfigError
from .model import PeftModel, PeftModelForCausalLM


def get_peft_model(
    model: PreTrainedModel, peft_config: PeftConfig, adapter_name: str = "default", **kwargs: Any
) -> PeftModelForCausalLM:
    """Freeze a base model and put a new soft prompt in front of it.

    Args:
        model: a transformers causal language model; it is used as it is, not copied. It may be a LoRA model of
            PEFT; each call uses the LoRA adapters that are active then.
        peft_config: a ``PromptTuningConfig``, whose open fields are filled in place; PEFT's own class is accepted.
        **kwargs: ``tokenizer`` for a TEXT start, instead of loading the config's by name; ``revision`` of the
            base model, kept in the config; PEFT's other options (``autocast_adapter_dtype``,
            ``low_cpu_mem_usage``) have no effect on prompts, there or here.

    Raises:
        ConfigError: the config cannot work with this base; ``mixed=True``, which is not for prompts.
    """
    if kwargs.get("mixed"):
        raise ConfigError("mixed=True is not for prompt tuning; leave it out")
    if issubclass(type(model), PeftModel):
        warnings.warn(
            "The model has a soft prompt already; a new one replaces it. Use add_adapter to keep both.", stacklevel=2
        )
        model = model.get_base_model()
    model, peft_config = _unwrapped(model), adopted(peft_config)
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


def _unwrapped(model: Any) -> Any:
    """The transformers model inside a PEFT model, with its adapter layers.

    Raises:
        ConfigError: it has a prompt of PEFT, which would be lost.
    """
    peft = sys.modules.get("peft")
    if peft is None or not issubclass(type(model), peft.PeftModel):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise ConfigError(
            "the model already has a prompt of PEFT; give its base, model.get_base_model(), or load the adapter with "
            "PeftModel.from_pretrained"
        )
    names = ", ".join(model.active_adapters)
    warnings.warn(f"The prompt is trained with PEFT's adapter {names} on the base; load both to use it.", stacklevel=3)
    return model.get_base_model()
