"""The process whose peak memory is measured: ``python -m softprompt.benchmarks.speed.memory_process``."""

from __future__ import annotations

import json
import platform
import resource
import sys
import warnings
from pathlib import Path

import torch

from ..quiet import quiet
from .registry import make_workload
from .settings import SpeedOptions


def main() -> None:
    """Read workload, implementation and options from stdin, compute each batch once, print the peak in bytes."""
    given = json.load(sys.stdin)
    workload = make_workload(given["workload"], SpeedOptions(**given["options"]))
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        implementation = workload.make_implementation(given["implementation"])
        # With text_tokens, all batches have the same size.
        for batch in workload.batches[: 1 if workload.options.text_tokens else None]:
            implementation.run(implementation.prepare(batch))
    print(_peak(workload.device))


def _peak(device: torch.device) -> int:
    """Peak memory of this process in bytes: allocated tensors on a GPU, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if platform.system() == "Linux":  # getrusage includes the peak of the parent process there
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


if __name__ == "__main__":
    main()
