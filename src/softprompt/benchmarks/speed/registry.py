"""The workloads by name, and a whole measurement of one."""

from __future__ import annotations

import gc
from typing import Any

from .peak_memory import peak_memory
from .settings import SpeedOptions
from .timing import Progress, measure
from .workload import Workload
from .workloads.evaluation import Evaluation
from .workloads.generation import Generation
from .workloads.many_classes import ManyClasses
from .workloads.mixed_tasks import MixedTasks
from .workloads.serving import Serving
from .workloads.suffix_training import SuffixTraining
from .workloads.training_step import Training

_WORKLOADS: dict[str, type[Workload]] = {
    each.name: each for each in (Training, SuffixTraining, ManyClasses, Evaluation, Generation, MixedTasks, Serving)
}


def make_workload(name: str, options: SpeedOptions) -> Workload:
    """A workload by name (``catalog.WORKLOADS``), with its model loaded."""
    return _WORKLOADS[name](options)


def measure_workload(name: str, options: SpeedOptions, progress: Progress) -> dict[str, Any]:
    """Measure speed and, unless ``options.memory`` is off, peak memory.

    Returns:
        One JSON object; see ``timing.measure`` and ``peak_memory.peak_memory``.
    """
    workload = make_workload(name, options)
    try:
        result = measure(workload, progress)
    finally:
        workload.close()
    del workload
    if options.memory and name != Serving.name:  # a server's memory depends on its limits
        gc.collect()  # frees the models: a second process of this size might not fit
        result |= peak_memory(name, options, progress)
    return result
