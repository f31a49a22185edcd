"""Device, number type and seeds: what a run computes on, and where its randomness starts."""

from __future__ import annotations

import random
import sys

import torch
import transformers

from ..errors import ConfigError

# float16 is not refused on a CPU: its matmul and attention run there from torch 2.6 on, the oldest we take.
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is the first there is of cuda, mps, cpu.

    Raises:
        ConfigError: ``name`` is no device, or one that this machine or this torch does not have.
    """
    counts = _devices()
    if name == "auto":
        return torch.device(next(iter(counts)))
    there = ", ".join(f"{kind}:{i}" if count > 1 else kind for kind, count in counts.items() for i in range(count))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device={name!r} is not the name of a device; there is: auto, {there}") from None
    if (device.index or 0) >= counts.get(device.type, 0):
        raise ConfigError(f"device={name!r} is not to be had here; there is: auto, {there}")
    return device


def choose_dtype(name: str) -> torch.dtype | str:
    """The torch number type called ``name``; ``auto`` stays ``auto``: the checkpoint's own.

    Raises:
        ConfigError: ``name`` is none of auto, float32, bfloat16, float16.
    """
    if name == "auto":
        return name
    if name not in _DTYPES:
        raise ConfigError(f"dtype={name!r} is not valid: choose one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def seed_everything(seed: int, *, full_determinism: bool = False) -> None:
    """Seed Python, torch on every device, and numpy where something has loaded it.

    With ``full_determinism``, operations that have no deterministic algorithm raise an error from here on.
    """
    if full_determinism:
        transformers.enable_full_determinism(seed)
    random.seed(seed)
    torch.manual_seed(seed)  # the accelerators' generators too, also before they are first used
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)  # numpy takes 32 bits


def _devices() -> dict[str, int]:
    """How many devices there are of each kind, best kind first."""
    counts = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    return {kind: count for kind, count in counts.items() if count}
