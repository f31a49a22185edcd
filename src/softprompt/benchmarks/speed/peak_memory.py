"""Peak memory of implementations, each measured in a process of its own (``memory_process.py``)."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from ...errors import TrainingError
from .catalog import GUIDE, OURS, PEFT_GUIDE, PREFIX, implementation_names
from .settings import SpeedOptions
from .timing import Progress


def peak_memory(workload: str, options: SpeedOptions, progress: Progress) -> dict[str, Any]:
    """Peak memory in bytes, weights included, of softprompt and of what it is compared with, and their ratio."""
    own = _measure(workload, OURS, options, progress)
    found: dict[str, Any] = {"peak_memory_bytes": own}
    names = implementation_names(workload, with_peft=options.against == "peft")
    others = (PEFT_GUIDE, "peft", "memory_ratio"), *((n, n, f"memory_ratio_vs_{n}") for n in (PREFIX, GUIDE))
    for other, key, ratio in others:
        if other in names:
            peak = _measure(workload, other, options, progress)
            found |= {f"{key}_peak_memory_bytes": peak, ratio: own / peak}
    return found


def _measure(workload: str, implementation: str, options: SpeedOptions, progress: Progress) -> int:
    """Peak memory in bytes of a process that loads the model and computes each batch once."""
    progress(f"memory of {implementation}")
    values = {"workload": workload, "implementation": implementation, "options": options.model_dump(mode="json")}
    command = [sys.executable, "-m", "softprompt.benchmarks.speed.memory_process"]
    done = subprocess.run(command, input=json.dumps(values), text=True, capture_output=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise TrainingError(f"measuring the memory of {implementation} failed: {reason}")
    return int(done.stdout.strip().splitlines()[-1])
