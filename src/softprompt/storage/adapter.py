"""The weights file of an adapter, in PEFT's format. Every file is read as untrusted input."""

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

from ..errors import AdapterError
from ..types import Placement
from .atomic import atomic_path
from .hub import FileAbsentError, find_file

WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
PROMPT_KEY = "prompt_embeddings"
SUFFIX_KEY = "suffix_prompt_embeddings"
"""The tensor of a suffix prompt. Its name differs so that PEFT cannot read it as a prefix."""
START_NAME = "initial_prompt.safetensors"
MAX_PROMPT_BYTES = 1 << 30


def key_of(placement: Placement | None) -> str:
    """Name of a prompt's tensor in the weights file."""
    return SUFFIX_KEY if placement == "suffix" else PROMPT_KEY


def write_prompt(
    folder: Path,
    prompt: Tensor,
    *,
    name: str = WEIGHTS_NAME,
    placement: Placement | None = "prefix",
    beside: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a prompt ``[P, D]``, and the tensors in ``beside``, to one file, atomically."""
    tensors = {key_of(placement): prompt, **(beside or {})}
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    data = save(plain, metadata={"format": "pt"})
    with atomic_path(folder / name) as temporary:
        temporary.write_bytes(data)


def read_prompt(path: Path, placement: Placement | None = "prefix") -> Tensor:
    """Read a prompt ``[P, D]`` from an untrusted safetensors file. Other tensors are not read.

    Raises:
        AdapterError: the file is damaged or too large, has no prompt of this placement, or the prompt is not a
            matrix of finite numbers.
    """
    key = key_of(placement)
    try:
        with safe_open(path, framework="pt") as tensors:
            names = list(tensors.keys())
            if key not in names:
                raise AdapterError(
                    f"{path} has no tensor {key!r} (it has {', '.join(sorted(names)[:3]) or 'none'}); "
                    f"it is not a prompt-tuning adapter with prompt_placement {placement}"
                )
            if (size := 4 * math.prod(tensors.get_slice(key).get_shape())) > MAX_PROMPT_BYTES:
                raise AdapterError(f"{path}: {key} has {size:,} bytes; a soft prompt has at most {MAX_PROMPT_BYTES:,}")
            prompt: Tensor = tensors.get_tensor(key)
    except SafetensorError as error:
        raise AdapterError(f"{path} is not a valid safetensors file ({error})") from None
    if prompt.ndim != 2 or not prompt.is_floating_point():
        raise AdapterError(f"{path}: {key} must be a matrix of floats, not {list(prompt.shape)} {prompt.dtype}")
    if not torch.isfinite(prompt.float()).all():  # isfinite does not support float8
        raise AdapterError(f"{path}: {key} has NaN or infinite values; the adapter is unusable, train it again")
    return prompt


def find_weights(model_id: str | os.PathLike[str], **hub: Any) -> Path:
    """The weights file of an adapter (a folder or a Hub repository).

    Raises:
        AdapterError: there are no weights, or only a pickle.
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
