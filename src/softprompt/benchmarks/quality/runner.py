"""The loop over tasks, methods, shots and seeds: what is finished stays finished, what is missing is measured."""

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
from .methods import KINDS, check_needs, method_class, resolved_options
from .results import SCORES, Cell, Key, append_cell, read_cells, read_predictions
from .specification import QualityOptions
from .task_data import TaskData, read_task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .methods.method import Frozen, Method

Say = Callable[[str], None]
LOCK = ".lock"


@dataclass(frozen=True)
class Job:
    """A cell to measure: its key, its rows, and the fingerprint of all that it depends on."""

    key: Key
    rows: Sequence[Row]
    settings: str


@dataclass(frozen=True)
class Plan:
    """A benchmark, read and checked.

    Attributes:
        tasks: by name.
        jobs: all cells, task after task.
        done: cells of the folder that are finished, these and others.
    """

    tasks: Mapping[str, TaskData]
    jobs: list[Job]
    done: dict[Key, Cell]

    @property
    def missing(self) -> list[Job]:
        """Cells that are not finished."""
        return [job for job in self.jobs if job.key not in self.done]


def plan(spec: QualityOptions) -> Plan:
    """Read all tasks and what is finished; nothing is measured, and torch is not needed.

    Raises:
        ConfigError: a finished cell was measured with other rows or options than it would be now.
        DataError: a source, column or label is wrong, there are too few rows, or the CSV does not fit.
        MissingExtraError: a package is absent that a method needs for a missing cell.
    """
    tasks = {name: read_task(name, options, spec.max_test_rows) for name, options in spec.tasks.items()}
    jobs = [
        _job(spec, data, method, shots, seed)
        for data in tasks.values()
        for method in spec.methods
        for shots in spec.shots
        for seed in spec.seeds_of(method)
    ]
    found = Plan(tasks, jobs, read_cells(spec.output_dir))
    for job in jobs:
        finished = found.done.get(job.key)
        if finished is not None and finished.settings != job.settings:
            raise ConfigError(
                f"{spec.output_dir / SCORES} has {job.key} with other rows or options than it would have now; give "
                "the method another name, or another output_dir, or remove its lines"
            )
    for name in {job.key.method: None for job in found.missing}:
        check_needs(spec.methods[name].kind, name)
    return found


def run(spec: QualityOptions, planned: Plan, say: Say, after_task: Callable[[], object] | None = None) -> int:
    """Measure what is missing, each cell kept as soon as it is finished.

    Args:
        say: told each cell and what came of it.
        after_task: called behind the last cell of each task.

    Returns:
        How many cells failed; they are tried again when the benchmark is.

    Raises:
        ConfigError: another process writes into the folder.
    """
    failed = 0
    with _alone(spec):
        frozen = _frozen(spec)
        missing = planned.missing
        for name, data in planned.tasks.items():
            jobs = [job for job in missing if job.key.task == name]
            methods = _Methods(spec, data, frozen)
            for job in jobs:
                say(f"{missing.index(job) + 1} of {len(missing)}: {job.key}")
                try:
                    cell = _measure(spec, job, data, methods, planned.done)
                except SoftPromptError as error:
                    failed += 1
                    say(f"  failed: {error}")
                    continue
                planned.done[cell.key] = cell
                say(f"  macro-F1 {100 * cell.macro_f1:.1f}, accuracy {100 * cell.accuracy:.1f}, {cell.seconds:.1f} s")
            if jobs and after_task:
                after_task()
    return failed


class _Methods:
    """The methods of one task, each made when it is first needed."""

    def __init__(self, spec: QualityOptions, data: TaskData, frozen: Frozen) -> None:
        from .methods.method import Work

        self._spec = spec
        self._work = Work(data, frozen)
        self._made: dict[str, Method] = {}

    def __getitem__(self, name: str) -> Method:
        if name not in self._made:
            method = self._spec.methods[name]
            self._made[name] = method_class(method.kind)(self._work, method.options)
        return self._made[name]


def _measure(spec: QualityOptions, job: Job, data: TaskData, methods: _Methods, done: Mapping[Key, Cell]) -> Cell:
    """Measure one cell, or copy one of the same settings: a method that reads no rows answers alike for all seeds."""
    from .scores import figures, predictions_of

    twin = next((cell for cell in done.values() if cell.settings == job.settings), None)
    kept = read_predictions(spec.output_dir, twin.key) if twin else None
    if twin is not None and kept is not None:
        cell = replace(twin, **vars(job.key))
        append_cell(spec.output_dir, cell, kept)
        return cell
    method = methods[job.key.method]
    if method.uses_base:
        _ = method.work.frozen.base  # loading it is no cell's work
    started = time.perf_counter()
    fitted = method.fit(job.rows, data.labels_of(job.rows), job.key.seed)
    seconds = time.perf_counter() - started
    predictions = predictions_of(fitted.log_probs, data.gold, data.labels)
    values: dict[str, Any] = {**vars(job.key), **figures(predictions)}
    cell = Cell(
        **values,
        test_rows=len(data.test),
        seconds=round(seconds, 2),
        trained_numbers=fitted.trained_numbers,
        settings=job.settings,
        date=datetime.date.today().isoformat(),
        version=__version__,
    )
    append_cell(spec.output_dir, cell, predictions)
    return cell


def _job(spec: QualityOptions, data: TaskData, method: str, shots: int, seed: int) -> Job:
    rows = data.draw(shots, seed)
    chosen = spec.methods[method]
    reads = KINDS[chosen.kind].reads_rows
    told = [
        chosen.kind,
        resolved_options(chosen.kind, chosen.options),
        spec.model_name_or_path,
        spec.revision,
        spec.dtype,
        seed if reads else None,
    ]
    text = json.dumps([told, data.fingerprint(rows if reads else ())], sort_keys=True, default=str)
    settings = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Job(Key(data.name, method, spec.model_name_or_path, shots, seed), rows, settings)


def _frozen(spec: QualityOptions) -> Frozen:
    from .methods.method import Frozen

    return Frozen(spec)


@contextmanager
def _alone(spec: QualityOptions) -> Iterator[None]:
    """Two processes that write one CSV would measure the same cells twice."""
    spec.output_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(spec.output_dir / LOCK, timeout=0):
            yield
    except Timeout:
        raise ConfigError(
            f"another process measures into {spec.output_dir}; wait for it, or give another folder"
        ) from None
