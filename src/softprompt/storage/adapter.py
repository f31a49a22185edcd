"""The adapter folder on disk, in PEFT's format both ways; every file is read as if a stranger had sent it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..config.adapter_config import PeftConfig, PeftType, Placement, PromptTuningConfig, TaskType
from ..errors import AdapterError, AdapterMismatchError
from .atomic import atomic_path
from .hub import FileAbsentError, find_file

WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
PROMPT_KEY = "prompt_embeddings"
SUFFIX_KEY = "suffix_prompt_embeddings"
"""The tensor of a prompt behind the text. Another name, so that no reader of PEFT's files puts it in front."""
START_NAME = "initial_prompt.safetensors"
MAX_PROMPT_BYTES = 1 << 30


def placement_of(config: PeftConfig) -> Placement:
    """Where the prompt of a config stands."""
    return (config.prompt_placement if isinstance(config, PromptTuningConfig) else None) or "prefix"


def key_of(placement: Placement | None) -> str:
    """Name of the tensor of a prompt that stands there."""
    return SUFFIX_KEY if placement == "suffix" else PROMPT_KEY


def write_prompt(
    folder: Path,
    prompt: Tensor,
    *,
    name: str = WEIGHTS_NAME,
    placement: Placement | None = "prefix",
    beside: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a prompt ``[P, D]`` and the tensors in ``beside`` to a file, atomically."""
    tensors = {key_of(placement): prompt, **(beside or {})}
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    data = save(plain, metadata={"format": "pt"})
    with atomic_path(folder / name) as temporary:
        temporary.write_bytes(data)


def read_prompt(path: Path, placement: Placement | None = "prefix") -> Tensor:
    """Read a prompt ``[P, D]`` from a safetensors file that is not trusted. Other tensors are left alone.

    Raises:
        AdapterError: not a safetensors file, too large, no such tensor (that of the other placement, maybe),
            not a matrix of finite numbers.
    """
    key = key_of(placement)
    try:
        with safe_open(path, framework="pt") as tensors:
            names = list(tensors.keys())
            if key not in names:
                raise AdapterError(
                    f"{path} holds no tensor {key!r} (it has {', '.join(sorted(names)[:3]) or 'none'}); "
                    f"it is not a prompt-tuning adapter with prompt_placement {placement}"
                )
            if (size := 4 * math.prod(tensors.get_slice(key).get_shape())) > MAX_PROMPT_BYTES:
                raise AdapterError(f"{path}: {key} has {size:,} bytes; a soft prompt has at most {MAX_PROMPT_BYTES:,}")
            prompt: Tensor = tensors.get_tensor(key)
    except SafetensorError as error:
        raise AdapterError(f"{path} is not a valid safetensors file ({error})") from None
    if prompt.ndim != 2 or not prompt.is_floating_point():
        raise AdapterError(f"{path}: {key} must be a matrix of floats, not {list(prompt.shape)} {prompt.dtype}")
    if not torch.isfinite(prompt.float()).all():  # float8 has no isfinite of its own
        raise AdapterError(f"{path}: {key} has NaN or infinite numbers; the adapter is unusable, train it again")
    return prompt


def find_weights(model_id: str | os.PathLike[str], **hub: Any) -> Path:
    """The weights file of an adapter (a folder or a Hub repository).

    Raises:
        AdapterError: there is none, or only a pickle.
    """
    try:
        return find_file(str(model_id), WEIGHTS_NAME, **hub)
    except FileAbsentError as error:
        absent = error
    with suppress(FileAbsentError):
        find_file(str(model_id), PICKLE_NAME, **hub)
        raise AdapterError(
            f"{model_id} has only {PICKLE_NAME}, a pickle, which can run code when it is read; softprompt refuses it. "
            "Load it once in PEFT and save it again with safe_serialization=True"
        )
    raise AdapterError(f"{absent}; the adapter has no weights")


def read_config(model_id: str | os.PathLike[str], **hub: Any) -> PromptTuningConfig:
    """The config of an adapter, checked to be prompt tuning for a causal language model.

    Raises:
        AdapterError: it is of another type or task.
    """
    config = PeftConfig.from_pretrained(model_id, **hub)
    check_supported(config, str(model_id))
    assert isinstance(config, PromptTuningConfig)
    return config


def check_supported(config: PeftConfig, where: str) -> None:
    """Refuse what softprompt would otherwise silently get wrong.

    Raises:
        AdapterError: another adapter type, another task, or a field we do not support.
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


def check_fit(config: PromptTuningConfig, facts: dict[str, int | None], where: str) -> None:
    """Compare what the adapter says of its base model with the base at hand.

    Args:
        facts: ``token_dim``, ``num_layers``, ``num_attention_heads`` of the base.

    Raises:
        AdapterMismatchError: they differ.
    """
    for name, what in (
        ("token_dim", "width"),
        ("num_layers", "layers"),
        ("num_attention_heads", "attention heads"),
    ):
        theirs, ours = getattr(config, name), facts[name]
        if theirs is not None and ours is not None and theirs != ours:
            trained_on = f" ({config.base_model_name_or_path})" if config.base_model_name_or_path else ""
            raise AdapterMismatchError(
                f"{where} was trained on another base model{trained_on}: it has {what} {theirs}, this one has {ours}"
            )
