"""Small files of named tensors beside an adapter: written atomically, read as untrusted input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ..errors import AdapterError
from .atomic import atomic_path

MAX_BYTES = 1 << 30


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file."""
    data = save({name: each.detach().cpu().contiguous() for name, each in tensors.items()})
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def read_tensors(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Read a safetensors file with tensors of exactly these names, all finite.

    Raises:
        AdapterError: names differ, a value is not finite, or the file is damaged or too large.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise AdapterError(f"{path} has {size:,} bytes; such a file has at most {MAX_BYTES:,}")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} cannot be read ({error})") from None
    if sorted(tensors) != sorted(names):
        raise AdapterError(f"{path} is damaged: it must hold {', '.join(names)}")
    if not all(bool(torch.isfinite(tensors[name].double()).all()) for name in names):
        raise AdapterError(f"{path} has NaN or infinite values; train the adapter again")
    return tensors
