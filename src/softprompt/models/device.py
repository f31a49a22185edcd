"""Device, dtype and random seeds of a run."""

from __future__ import annotations

import random
import sys

import torch
import transformers

from ..errors import ConfigError

# float16 is allowed on a CPU: torch 2.6, the oldest supported release, has its matmul and attention.
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is the first available of cuda, mps, cpu.

    Raises:
        ConfigError: ``name`` is no device, or this machine or this torch does not have it.
    """
    counts = _devices()
    if name == "auto":
        return torch.device(next(iter(counts)))
    there = ", ".join(f"{kind}:{i}" if count > 1 else kind for kind, count in counts.items() for i in range(count))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device={name!r} is not a device; available: auto, {there}") from None
    if (device.index or 0) >= counts.get(device.type, 0):
        raise ConfigError(f"device={name!r} is not available here; available: auto, {there}")
    return device


def choose_dtype(name: str) -> torch.dtype | str:
    """The torch dtype called ``name``; ``auto`` stays ``auto``, the dtype of the checkpoint.

    Raises:
        ConfigError: ``name`` is not auto, float32, bfloat16 or float16.
    """
    if name == "auto":
        return name
    if name not in _DTYPES:
        raise ConfigError(f"dtype={name!r} is invalid: choose one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def seed_everything(seed: int, *, full_determinism: bool = False) -> None:
    """Seed the random numbers of Python, of torch on every device, and of numpy if it is imported.

    With ``full_determinism``, operations without a deterministic algorithm raise an error from then on. These, and the
    state of the random generators, are settings of the process, as in ``transformers.set_seed``.
    """
    if full_determinism:
        transformers.enable_full_determinism(seed)
    random.seed(seed)
    torch.manual_seed(seed)  # includes accelerators, even before their first use
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)  # numpy seeds have 32 bits


def _devices() -> dict[str, int]:
    """Number of devices of each kind that exists, best kind first."""
    counts = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    return {kind: count for kind, count in counts.items() if count}
