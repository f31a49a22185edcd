"""softprompt: soft prompts for causal language models.

The guide's names (those of Hugging Face PEFT) over an engine of our own. Importing this package does
not import torch: a name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .config.adapter_config import (
        PeftConfig,
        PeftType,
        PromptLearningConfig,
        PromptTuningConfig,
        PromptTuningInit,
        TaskType,
        get_peft_config,
    )
    from .errors import (
        AdapterError,
        AdapterMismatchError,
        BaseModelError,
        ConfigError,
        DataError,
        MissingExtraError,
        SoftPromptError,
        TrainingError,
    )
    from .inference.score import score_labels
    from .peft.auto import AutoPeftModelForCausalLM
    from .peft.factory import get_peft_model, prepare_model_for_kbit_training
    from .peft.model import PeftModel, PeftModelForCausalLM
    from .peft.prompt import PromptEmbedding
    from .peft.state_dict import (
        get_base_model_state_dict,
        get_peft_model_state_dict,
        set_base_model_state_dict,
        set_peft_model_state_dict,
    )

_HOME = {
    "config.adapter_config": (
        "PeftConfig",
        "PeftType",
        "PromptLearningConfig",
        "PromptTuningConfig",
        "PromptTuningInit",
        "TaskType",
        "get_peft_config",
    ),
    "errors": (
        "AdapterError",
        "AdapterMismatchError",
        "BaseModelError",
        "ConfigError",
        "DataError",
        "MissingExtraError",
        "SoftPromptError",
        "TrainingError",
    ),
    "inference.score": ("score_labels",),
    "peft.auto": ("AutoPeftModelForCausalLM",),
    "peft.factory": ("get_peft_model", "prepare_model_for_kbit_training"),
    "peft.model": ("PeftModel", "PeftModelForCausalLM"),
    "peft.prompt": ("PromptEmbedding",),
    "peft.state_dict": (
        "get_base_model_state_dict",
        "get_peft_model_state_dict",
        "set_base_model_state_dict",
        "set_peft_model_state_dict",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "AdapterError",
    "AdapterMismatchError",
    "AutoPeftModelForCausalLM",
    "BaseModelError",
    "ConfigError",
    "DataError",
    "MissingExtraError",
    "PeftConfig",
    "PeftModel",
    "PeftModelForCausalLM",
    "PeftType",
    "PromptEmbedding",
    "PromptLearningConfig",
    "PromptTuningConfig",
    "PromptTuningInit",
    "SoftPromptError",
    "TaskType",
    "TrainingError",
    "__version__",
    "get_base_model_state_dict",
    "get_peft_config",
    "get_peft_model",
    "get_peft_model_state_dict",
    "prepare_model_for_kbit_training",
    "score_labels",
    "set_base_model_state_dict",
    "set_peft_model_state_dict",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
