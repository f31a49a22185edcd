"""Peak memory of one side, measured from inside a process of its own (``python -m softprompt.bench.memory``)."""

from __future__ import annotations

import json
import platform
import resource
import sys
import warnings
from pathlib import Path

from ..libraries import quiet
from .options import BenchOptions
from .subjects import make_subject


def main() -> None:
    """Read subject, side and options from stdin, do each batch once, print the peak resident memory in bytes."""
    given = json.load(sys.stdin)
    subject = make_subject(given["subject"], BenchOptions(**given["options"]))
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        side = subject.make_side(given["side"])
        # Batches of texts that are equally long are equally large.
        for batch in subject.batches[: 1 if subject.options.text_tokens else None]:
            side.run(side.prepare(batch))
    print(_peak())


def _peak() -> int:
    """Peak resident memory of this process in bytes."""
    if platform.system() == "Linux":  # getrusage starts from the parent's peak there
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


if __name__ == "__main__":
    main()
