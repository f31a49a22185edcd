"""Whether softprompt supports an adapter, and whether it fits a base model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..errors import AdapterError, AdapterMismatchError
from .adapter_config import PeftConfig, PeftType, PromptTuningConfig, TaskType


def read_config(model_id: str | os.PathLike[str], **hub: Any) -> PromptTuningConfig:
    """Read the config of an adapter (a folder or a Hub repository): prompt tuning for a causal language model.

    Raises:
        AdapterError: it is of another type or task.
    """
    return check_supported(PeftConfig.from_pretrained(model_id, **hub), str(model_id))


def check_supported(config: PeftConfig, where: str) -> PromptTuningConfig:
    """Refuse adapters that would otherwise give wrong results without an error; return the config.

    Raises:
        AdapterError: another adapter type, another task, or an unsupported field.
    """
    if config.peft_type not in list(PeftType) or not isinstance(config, PromptTuningConfig):
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise AdapterError(f"{where}: peft_type {kind} is not supported; softprompt handles PROMPT_TUNING")
    if config.task_type not in (None, TaskType.CAUSAL_LM):
        task = getattr(config.task_type, "value", config.task_type)
        raise AdapterError(f"{where}: task_type {task} is not supported; softprompt handles CAUSAL_LM")
    if config.modules_to_save:
        raise AdapterError(
            f"{where}: modules_to_save {config.modules_to_save} is not supported; softprompt keeps the base frozen"
        )
    if config.num_transformer_submodules not in (None, 1):
        raise AdapterError(
            f"{where}: num_transformer_submodules {config.num_transformer_submodules} is for encoder-decoder models"
        )
    return config


def check_fit(config: PromptTuningConfig, facts: Mapping[str, int | None], where: str) -> None:
    """Compare the base model that an adapter was trained on with the one at hand.

    Args:
        facts: ``token_dim``, ``num_layers``, ``num_attention_heads`` of the base model at hand.

    Raises:
        AdapterMismatchError: they differ.
    """
    for name, what in (
        ("token_dim", "embedding size"),
        ("num_layers", "layers"),
        ("num_attention_heads", "attention heads"),
    ):
        trained, given = getattr(config, name), facts[name]
        if trained is not None and given is not None and trained != given:
            trained_on = f" ({config.base_model_name_or_path})" if config.base_model_name_or_path else ""
            raise AdapterMismatchError(
                f"{where} was trained on another base model{trained_on}: it has {what} {trained}, this one has {given}"
            )
