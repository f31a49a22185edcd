"""The learning rate as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from ..config.options import OptimizerOptions


def learning_rate(step: int, max_steps: int, options: OptimizerOptions) -> float:
    """Learning rate of optimiser step ``step`` (0-based) of ``max_steps``."""
    return options.learning_rate * share_of_peak(step, max_steps, options)


def share_of_peak(step: int, max_steps: int, options: OptimizerOptions) -> float:
    """The learning rate as a share of its peak.

    The courses of ``transformers.get_scheduler``: warm-up from zero, then constant, or down to zero in a line or half
    a cosine.
    """
    warmup = warmup_steps(max_steps, options)
    if options.lr_scheduler_type != "constant" and step < warmup:
        return step / warmup
    left = (max_steps - step) / max(1, max_steps - warmup)  # 1 at the end of the warm-up, 0 at the end
    return {
        "linear": left,
        "cosine": 0.5 * (1 - math.cos(math.pi * left)),
        "constant": 1.0,
        "constant_with_warmup": 1.0,
    }[options.lr_scheduler_type]


def warmup_steps(max_steps: int, options: OptimizerOptions) -> int:
    """Warm-up steps, from ``warmup_steps`` as in ``TrainingArguments``, else from ``warmup_ratio``."""
    if options.warmup_steps >= 1:
        return min(int(options.warmup_steps), max_steps)
    return math.ceil((options.warmup_steps or options.warmup_ratio) * max_steps)
