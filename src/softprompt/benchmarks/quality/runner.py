"""The trials of a quality benchmark: completed results are kept, missing ones are measured."""

from __future__ import annotations

import datetime
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ...errors import ConfigError, SoftPromptError
from ...types import Row
from ...version import __version__
from .method_kinds import KINDS, check_needs, method_class, options_for_fingerprint
from .results import SCORES, Result, ResultKey, append_result, read_predictions, read_results
from .specification import QualityOptions
from .task_data import TaskData, read_task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .methods.method import Method, SharedBase

Progress = Callable[[str], None]
LOCK = ".lock"


@dataclass(frozen=True)
class Trial:
    """One result to measure.

    Attributes:
        key: what identifies the result.
        rows: the training rows.
        settings: fingerprint of the rows and options that determine the result.
    """

    key: ResultKey
    rows: Sequence[Row]
    settings: str


@dataclass(frozen=True)
class Schedule:
    """All trials of a benchmark.

    Attributes:
        tasks: rows by task.
        trials: all trials, task by task.
        done: completed results in the folder, including those of other trials.
    """

    tasks: Mapping[str, TaskData]
    trials: list[Trial]
    done: dict[ResultKey, Result]

    @property
    def missing(self) -> list[Trial]:
        """Trials without a completed result."""
        return [trial for trial in self.trials if trial.key not in self.done]


def make_schedule(spec: QualityOptions) -> Schedule:
    """Read all tasks and completed results. Nothing is measured, and torch is not imported.

    Raises:
        ConfigError: a completed result was measured with other rows or options than the benchmark has now.
        DataError: a source, column or label is invalid, there are too few rows, or the CSV is damaged.
        MissingExtraError: a missing result needs a package that is not installed.
    """
    tasks = {name: read_task(name, options, spec.max_test_rows) for name, options in spec.tasks.items()}
    trials = [
        _trial(spec, data, method, shots, seed)
        for data in tasks.values()
        for method in spec.methods
        for shots in spec.shots
        for seed in spec.seeds_of(method)
    ]
    schedule = Schedule(tasks, trials, read_results(spec.output_dir))
    for trial in trials:
        completed = schedule.done.get(trial.key)
        if completed is not None and completed.settings != trial.settings:
            raise ConfigError(
                f"{spec.output_dir / SCORES} has {trial.key}, measured with other rows or options; "
                "rename the method, give another output_dir, or remove its lines"
            )
    for name in {trial.key.method: None for trial in schedule.missing}:
        check_needs(spec.methods[name].kind, name)
    return schedule


def run_trials(
    spec: QualityOptions, schedule: Schedule, progress: Progress, after_task: Callable[[], object] | None = None
) -> int:
    """Measure the missing results; each is written as soon as it is complete.

    Args:
        progress: called with a line of text before and after each trial.
        after_task: called after the last trial of each task.

    Returns:
        How many trials failed; they are tried again in the next run.

    Raises:
        ConfigError: another process is writing into the folder.
    """
    from .methods.method import SharedBase

    failed = 0
    with _exclusive(spec):
        base = SharedBase(spec)
        missing = schedule.missing
        for name, data in schedule.tasks.items():
            trials = [trial for trial in missing if trial.key.task == name]
            methods = _Methods(spec, data, base)
            for trial in trials:
                progress(f"{missing.index(trial) + 1} of {len(missing)}: {trial.key}")
                try:
                    result = _measure(spec, trial, data, methods, schedule.done)
                except SoftPromptError as error:
                    failed += 1
                    progress(f"  failed: {error}")
                    continue
                schedule.done[result.key] = result
                scores = f"macro-F1 {100 * result.macro_f1:.1f}, accuracy {100 * result.accuracy:.1f}"
                progress(f"  {scores}, {result.seconds:.1f} s")
            if trials and after_task:
                after_task()
    return failed


class _Methods:
    """The methods of one task, each created on first use."""

    def __init__(self, spec: QualityOptions, data: TaskData, base: SharedBase) -> None:
        from .methods.method import MethodContext

        self._spec = spec
        self._context = MethodContext(data, base)
        self._created: dict[str, Method] = {}

    def __getitem__(self, name: str) -> Method:
        if name not in self._created:
            method = self._spec.methods[name]
            self._created[name] = method_class(method.kind)(self._context, method.options)
        return self._created[name]


def _measure(
    spec: QualityOptions, trial: Trial, data: TaskData, methods: _Methods, done: Mapping[ResultKey, Result]
) -> Result:
    """Measure a trial, or copy the result of one with the same fingerprint (methods that read no training rows)."""
    from .result_metrics import metrics_of, predictions_of

    twin = next((result for result in done.values() if result.settings == trial.settings), None)
    kept = read_predictions(spec.output_dir, twin.key) if twin else None
    if twin is not None and kept is not None:
        result = replace(twin, **vars(trial.key))
        append_result(spec.output_dir, result, kept)
        return result
    method = methods[trial.key.method]
    if method.uses_base:
        _ = method.context.shared_base.base  # loaded before the clock starts
    started = time.perf_counter()
    fitted = method.fit(trial.rows, data.labels_of(trial.rows), trial.key.seed)
    seconds = time.perf_counter() - started
    predictions = predictions_of(fitted.log_probs, data.gold, data.labels)
    values: dict[str, Any] = {**vars(trial.key), **metrics_of(predictions)}
    result = Result(
        **values,
        test_rows=len(data.test),
        seconds=round(seconds, 2),
        trained_parameters=fitted.trained_parameters,
        settings=trial.settings,
        date=datetime.date.today().isoformat(),
        version=__version__,
    )
    append_result(spec.output_dir, result, predictions)
    return result


def _trial(spec: QualityOptions, data: TaskData, method: str, shots: int, seed: int) -> Trial:
    rows = data.draw(shots, seed)
    chosen = spec.methods[method]
    reads_rows = KINDS[chosen.kind].reads_rows
    settings = [
        chosen.kind,
        options_for_fingerprint(chosen.kind, chosen.options),
        spec.model_name_or_path,
        spec.revision,
        spec.dtype,
        seed if reads_rows else None,
    ]
    text = json.dumps([settings, data.fingerprint(rows if reads_rows else ())], sort_keys=True, default=str)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Trial(ResultKey(data.name, method, spec.model_name_or_path, shots, seed), rows, fingerprint)


@contextmanager
def _exclusive(spec: QualityOptions) -> Iterator[None]:
    """Hold the lock of the folder: two processes writing one CSV would measure the same results twice."""
    spec.output_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(spec.output_dir / LOCK, timeout=0):
            yield
    except Timeout:
        raise ConfigError(
            f"another process is measuring into {spec.output_dir}; wait for it, or give another output_dir"
        ) from None
