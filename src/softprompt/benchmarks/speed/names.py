"""What is compared, by name. No torch: the command line's help reads this."""

from __future__ import annotations

SUBJECTS = ("train", "suffix", "classes", "evaluate", "generate", "tasks")
"""What can be measured."""

PEFT_GUIDE, PEFT_BEST, DROP_IN, OURS = "peft guide", "peft best", "drop-in", "softprompt"
PREFIX = "prefix"
"""Our own training with the prompt before the text, which ``suffix`` is compared with."""
GUIDE = "guide"
"""Our own training with the recipe ``guide``, which ``classes`` is compared with."""

KEY_PREFIX = {
    OURS: "",
    DROP_IN: "drop_in_",
    PREFIX: "prefix_",
    GUIDE: "guide_",
    PEFT_GUIDE: "peft_guide_",
    PEFT_BEST: "peft_best_",
}
"""What a side's figures are called in the JSON object: ``peft_guide_rows_per_second``."""

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
        OURS: "softprompt, one stream",
    },
}
"""The sides of each subject, in the order in which they take turns, and what a person reads."""
