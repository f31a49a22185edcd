"""What can be measured, by name."""

from __future__ import annotations

import gc
from typing import Any

from .evaluation import Evaluation
from .generation import Generation
from .many_classes import ManyClasses
from .measure import Progress, Subject, measure, peaks
from .mixed_tasks import MixedTasks
from .settings import BenchOptions
from .suffix_training import SuffixTraining
from .training_step import Training

_SUBJECTS: dict[str, type[Subject]] = {
    each.name: each for each in (Training, SuffixTraining, ManyClasses, Evaluation, Generation, MixedTasks)
}


def make_subject(name: str, options: BenchOptions) -> Subject:
    """A subject by name (``names.SUBJECTS``), with its model loaded."""
    return _SUBJECTS[name](options)


def bench(name: str, options: BenchOptions, progress: Progress) -> dict[str, Any]:
    """Measure a subject by name.

    Returns:
        One JSON object; see ``measure`` and ``peaks``.
    """
    result = measure(make_subject(name, options), progress)
    if options.memory:
        gc.collect()  # the models: two processes of this size might not fit
        result |= peaks(name, options, progress)
    return result
