"""Peak memory of one side, measured from inside a process of its own (``python -m softprompt.bench.memory``)."""

from __future__ import annotations

import json
import platform
import resource
import sys
from pathlib import Path

import torch

from .sides import make_side
from .train import BenchOptions, batches_of, load_models, start_prompt


def main() -> None:
    """Read side and options from stdin, make a step of each batch, print the peak resident memory in bytes."""
    given = json.load(sys.stdin)
    options = BenchOptions(**given["options"])
    torch.set_num_threads(options.num_threads)
    base, tokenizer = load_models(options)
    side = make_side(given["side"], base, start_prompt(base, options), options.max_length or 0)
    for batch in batches_of(options, tokenizer, base):
        side.step(batch)
    print(_peak())


def _peak() -> int:
    """Peak resident memory of this process in bytes."""
    if platform.system() == "Linux":  # getrusage starts from the parent's peak there
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


if __name__ == "__main__":
    main()
