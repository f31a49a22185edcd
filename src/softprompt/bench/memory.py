"""Peak memory of one side, measured from inside a process of its own (``python -m softprompt.bench.memory``)."""

from __future__ import annotations

import json
import resource
import sys

import torch

from .sides import make_side
from .train import BenchOptions, _load, _prompt, batches_of


def main() -> None:
    """Read side and options from stdin, make a step of each batch, print the peak resident memory in bytes."""
    given = json.load(sys.stdin)
    options = BenchOptions(**given["options"])
    torch.set_num_threads(options.num_threads)
    base, tokenizer = _load(options)
    side = make_side(given["side"], base, _prompt(base, options), options.max_length or 0)
    for batch in batches_of(options, tokenizer, base):
        side.step(batch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak if sys.platform == "darwin" else peak * 1024)  # Linux counts in KiB


if __name__ == "__main__":
    main()
