"""Names of workloads and implementations. No torch: the help of the command line imports this module."""

from __future__ import annotations

WORKLOADS = ("train", "suffix", "classes", "evaluate", "generate", "tasks", "serve")
"""Names of the workloads."""

PEFT_GUIDE, PEFT_BEST, DROP_IN, OURS = "peft guide", "peft best", "drop-in", "softprompt"
DIRECT = "direct"
"""softprompt's engine called without a server, a baseline of ``serve``."""
PREFIX = "prefix"
"""softprompt's training with a prefix prompt, the baseline of ``suffix``."""
GUIDE = "guide"
"""softprompt's training with the recipe ``guide``, the baseline of ``classes``."""

KEY_PREFIX = {
    OURS: "",
    DROP_IN: "drop_in_",
    PREFIX: "prefix_",
    GUIDE: "guide_",
    DIRECT: "direct_",
    PEFT_GUIDE: "peft_guide_",
    PEFT_BEST: "peft_best_",
}
"""Prefix of an implementation's keys in the JSON object, as in ``peft_guide_rows_per_second``."""

TITLES = {
    "train": {
        PEFT_GUIDE: "PEFT, the guide's loop",
        PEFT_BEST: "PEFT, padded to the longest",
        DROP_IN: "softprompt, import changed",
        OURS: "softprompt train",
    },
    "suffix": {
        PREFIX: "softprompt train",
        OURS: "softprompt train --prompt_placement suffix",
    },
    "classes": {
        GUIDE: "softprompt train --recipe guide",
        OURS: "softprompt train --recipe default",
    },
    "evaluate": {
        PEFT_GUIDE: "PEFT, the guide's evaluation",
        PEFT_BEST: "PEFT, padded to the longest",
        OURS: "softprompt, label scoring",
    },
    "generate": {
        PEFT_GUIDE: "PEFT, the guide's call, row by row",
        PEFT_BEST: "PEFT, one padded batch",
        OURS: "softprompt, one padded batch",
    },
    "tasks": {
        PEFT_GUIDE: "PEFT, set_adapter per task",
        PEFT_BEST: "PEFT, padded to the longest",
        OURS: "softprompt, one mixed batch",
    },
    "serve": {
        PEFT_GUIDE: "PEFT behind the same server, labels generated",
        PEFT_BEST: "PEFT, labels by their first tokens",
        DIRECT: "softprompt, the engine called directly",
        OURS: "softprompt serve",
    },
}
"""The implementations of each workload in the order of their turns, with their titles in tables."""


def implementation_names(workload: str, *, with_peft: bool) -> list[str]:
    """The implementations to measure, in turn; without PEFT only softprompt's, including its own baselines."""
    return [name for name in TITLES[workload] if with_peft or name in (PREFIX, GUIDE, DIRECT, OURS)]
