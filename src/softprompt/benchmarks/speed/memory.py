"""Peak memory of one implementation, in a process of its own (``python -m softprompt.benchmarks.speed.memory``)."""

from __future__ import annotations

import json
import platform
import resource
import sys
import warnings
from pathlib import Path

import torch

from ..quiet import quiet
from .settings import BenchOptions
from .workloads import make_subject


def main() -> None:
    """Read subject, side and options from stdin, do each batch once, print the peak memory in bytes."""
    given = json.load(sys.stdin)
    subject = make_subject(given["subject"], BenchOptions(**given["options"]))
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        side = subject.make_side(given["side"])
        # Batches of texts that are equally long are equally large.
        for batch in subject.batches[: 1 if subject.options.text_tokens else None]:
            side.run(side.prepare(batch))
    print(_peak(subject.device))


def _peak(device: torch.device) -> int:
    """Peak memory of this process in bytes: of its tensors on a GPU, or what is resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if platform.system() == "Linux":  # getrusage starts from the parent's peak there
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


if __name__ == "__main__":
    main()
