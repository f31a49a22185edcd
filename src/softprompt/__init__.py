"""softprompt: soft prompts for causal language models.

``load``, ``train`` and ``evaluate`` are the interface of this package; the other functions and classes have the
names and signatures of Hugging Face PEFT. ``__all__`` lists all public names. Importing the package does not import
torch: a name is loaded when it is first used.
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
    from .data.task import Task
    from .errors import (
        AdapterError,
        AdapterMismatchError,
        BaseModelError,
        ConfigError,
        DataError,
        MissingExtraError,
        SoftPromptError,
        TrainingError,
        UnknownAdapterError,
    )
    from .inference.evaluate_adapter import evaluate
    from .inference.library import PromptLibrary
    from .inference.pipeline import (
        Prediction,
        Predictor,
        load,
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
    from .storage.record import Metrics
    from .training.api import train
    from .training.callbacks import Callback
    from .training.pipeline import TrainResult

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
    "data.task": ("Task",),
    "errors": (
        "AdapterError",
        "AdapterMismatchError",
        "BaseModelError",
        "ConfigError",
        "DataError",
        "MissingExtraError",
        "SoftPromptError",
        "TrainingError",
        "UnknownAdapterError",
    ),
    "inference.evaluate_adapter": ("evaluate",),
    "inference.library": ("PromptLibrary",),
    "inference.pipeline": (
        "Prediction",
        "Predictor",
        "load",
    ),
    "inference.score": ("score_labels",),
    "peft.auto": ("AutoPeftModelForCausalLM",),
    "peft.factory": (
        "get_peft_model",
        "prepare_model_for_kbit_training",
    ),
    "peft.model": (
        "PeftModel",
        "PeftModelForCausalLM",
    ),
    "peft.prompt": ("PromptEmbedding",),
    "peft.state_dict": (
        "get_base_model_state_dict",
        "get_peft_model_state_dict",
        "set_base_model_state_dict",
        "set_peft_model_state_dict",
    ),
    "storage.record": ("Metrics",),
    "training.api": ("train",),
    "training.callbacks": ("Callback",),
    "training.pipeline": ("TrainResult",),
}
"""The public names, by the module that defines them."""
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "AdapterError",
    "AdapterMismatchError",
    "AutoPeftModelForCausalLM",
    "BaseModelError",
    "Callback",
    "ConfigError",
    "DataError",
    "Metrics",
    "MissingExtraError",
    "PeftConfig",
    "PeftModel",
    "PeftModelForCausalLM",
    "PeftType",
    "Prediction",
    "Predictor",
    "PromptEmbedding",
    "PromptLearningConfig",
    "PromptLibrary",
    "PromptTuningConfig",
    "PromptTuningInit",
    "SoftPromptError",
    "Task",
    "TaskType",
    "TrainResult",
    "TrainingError",
    "UnknownAdapterError",
    "__version__",
    "evaluate",
    "get_base_model_state_dict",
    "get_peft_config",
    "get_peft_model",
    "get_peft_model_state_dict",
    "load",
    "prepare_model_for_kbit_training",
    "score_labels",
    "set_base_model_state_dict",
    "set_peft_model_state_dict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
