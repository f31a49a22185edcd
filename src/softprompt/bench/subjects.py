"""What can be measured, by name."""

from __future__ import annotations

import gc
from typing import Any

from .classes import ManyClasses
from .evaluate import Evaluation
from .generate import Generation
from .measure import Progress, Subject, measure, peaks
from .options import BenchOptions
from .suffix import SuffixTraining
from .tasks import MixedTasks
from .train import Training

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
