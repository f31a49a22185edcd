"""The learning rate as a function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from ..config.options import OptimizerOptions


def lr_multiplier(step: int, max_steps: int, options: OptimizerOptions) -> float:
    """Learning rate of an optimizer step (0-based) as a share of the peak, 0..1.

    The schedules of ``transformers.get_scheduler``, to the last digit (cosine: to 4e-16): linear warm-up from zero,
    then constant, linear or cosine decay. They are written out here because transformers' are bound to an optimizer.
    """
    warmup = num_warmup_steps(max_steps, options)
    if options.lr_scheduler_type != "constant" and step < warmup:
        return step / warmup
    left = (max_steps - step) / max(1, max_steps - warmup)  # 1 at the end of the warm-up, 0 at the end
    return {
        "linear": left,
        "cosine": 0.5 * (1 - math.cos(math.pi * left)),
        "constant": 1.0,
        "constant_with_warmup": 1.0,
    }[options.lr_scheduler_type]


def num_warmup_steps(max_steps: int, options: OptimizerOptions) -> int:
    """Warm-up steps, from ``warmup_steps`` as in ``TrainingArguments``, else from ``warmup_ratio``."""
    if options.warmup_steps >= 1:
        return min(int(options.warmup_steps), max_steps)
    return math.ceil((options.warmup_steps or options.warmup_ratio) * max_steps)
