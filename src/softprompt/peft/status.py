"""Parameter counts and status of a model with adapters, under PEFT's names."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..config.adapter_config import PeftType
from .adapters import AdapterModel


@dataclass(frozen=True)
class ModelStatus:
    """The fields of PEFT's ``TunerModelStatus``.

    Attributes:
        base_model_type: class of the base model.
        adapter_model_type: class of the model with prompts.
        peft_types: type of each adapter.
        trainable_params, total_params: numbers of parameters.
        num_adapter_layers: 0, since a prompt is not part of a layer.
        enabled: false inside ``disable_adapter``.
        active_adapters, available_adapters: names.
        merged_adapters: none, since a prompt cannot be merged.
        requires_grad: whether each prompt is trained.
        devices: device types of each prompt.
        quantization_backend: of adapter layers; ``None``.
    """

    base_model_type: str
    adapter_model_type: str
    peft_types: dict[str, str]
    trainable_params: int
    total_params: int
    num_adapter_layers: int
    enabled: bool
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: dict[str, bool]
    available_adapters: list[str]
    devices: dict[str, list[str]]
    quantization_backend: str | None = None


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Numbers of trainable and of all parameters (shared ones once; 4-bit ones unpacked)."""
    trainable = total = 0
    for parameter in model.parameters():
        count = parameter.numel() or getattr(parameter, "ds_numel", 0)
        if type(parameter).__name__ == "Params4bit":
            count *= 2 * getattr(getattr(parameter, "quant_storage", None), "itemsize", 1)
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def model_status(model: AdapterModel) -> ModelStatus:
    """The status of a model's adapters."""
    prompts = {name: model.prompt_of(name) for name in model.peft_config}
    trainable, total = count_parameters(model)
    return ModelStatus(
        base_model_type=type(model.base_model).__name__,
        adapter_model_type=type(model).__name__,
        peft_types={name: PeftType(config.peft_type).value for name, config in model.peft_config.items()},
        trainable_params=trainable,
        total_params=total,
        num_adapter_layers=0,
        enabled=model.has_active_enabled_adapter,
        active_adapters=model.active_adapters,
        merged_adapters=[],
        requires_grad={name: prompt.requires_grad for name, prompt in prompts.items()},
        available_adapters=sorted(prompts),
        devices={name: [prompt.device.type] for name, prompt in prompts.items()},
    )
