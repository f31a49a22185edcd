"""The scheduler: one thread that owns the model and runs the jobs of all clients together.

In each round, the thread takes waiting jobs, computes them in one mixed batch, and runs one decoding step for all texts
that are being generated. Texts to generate join between steps, and leave as soon as they are finished or cancelled.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import SoftPromptError
from ..inference.continuous import CONTEXT, Continuation, DecodingBatch
from ..inference.library import PromptLibrary
from ..inference.mixed import run_mixed
from .jobs import Job, TextJob, num_tokens

log = logging.getLogger(__name__)


class QueueFullError(SoftPromptError):
    """As many jobs wait as may wait."""


class ClosedError(SoftPromptError):
    """The scheduler is stopping, or was not started."""


@dataclass(frozen=True)
class Limits:
    """Bounds of a scheduler.

    Attributes:
        max_queue: most jobs that wait.
        max_rows: most texts that are generated together.
        max_batch_tokens: most tokens of texts that one round starts, or one text.
        max_cache_tokens: most tokens of the padded KV cache of the texts that are generated (46 kB per token in
            SmolLM2-135M, float32), or one text.
    """

    max_queue: int = 256
    max_rows: int = 32
    max_batch_tokens: int = 1024
    max_cache_tokens: int = 32_768


class Round(NamedTuple):
    """What a round did, for statistics.

    Attributes:
        jobs: jobs that were started.
        num_tokens: tokens of their texts.
        rows: texts that got a token in the decoding step.
        seconds: time it took.
    """

    jobs: int
    num_tokens: int
    rows: int
    seconds: float


class Entry(NamedTuple):
    """A job, and the future of its result."""

    job: Job
    future: Future[Any]


class Scheduler:
    """Runs jobs from any number of threads.

    Args:
        library: the adapters and the base model, which only the scheduler's thread runs.
        limits: bounds of queue and batch.
        on_round: called after each round, in the scheduler's thread.
    """

    def __init__(
        self, library: PromptLibrary, limits: Limits = Limits(), on_round: Callable[[Round], None] | None = None
    ) -> None:
        self.library, self.limits = library, limits
        self._on_round = on_round
        self._waiting: deque[Entry] = deque()
        self._running: dict[Continuation, Entry] = {}
        self._batch = DecodingBatch(library.runner)
        self._changed = threading.Condition()
        self._open = False
        self._thread = threading.Thread(target=self._work, name="softprompt-scheduler", daemon=True)

    # ---- for clients

    def start(self) -> None:
        """Start the thread."""
        self._open = True
        self._thread.start()

    def stop(self, drain: bool = True) -> None:
        """Accept no more jobs, and wait until those that were accepted are finished, or cancel them."""
        with self._changed:
            self._open = False
            if not drain:
                for entry in (*self._waiting, *self._running.values()):
                    entry.future.cancel()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_open(self) -> bool:
        """Whether jobs are accepted."""
        return self._open

    @property
    def num_waiting(self) -> int:
        """Jobs that have not been started."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Texts that are being generated."""
        return len(self._running)

    def submit(self, jobs: Sequence[Job]) -> list[Future[Any]]:
        """Queue jobs: all of them, or none.

        Returns:
            For each job a future with its result. ``cancel`` works at any time: a job that waits is dropped, and a text
            that is being generated leaves the batch before the next step.

        Raises:
            ClosedError: the scheduler is stopping.
            QueueFullError: too many jobs wait.
        """
        entries = [Entry(job, Future()) for job in jobs]
        with self._changed:
            if not self._open:
                raise ClosedError("the server is shutting down")
            if len(self._waiting) + len(jobs) > self.limits.max_queue:
                raise QueueFullError(f"{len(self._waiting)} requests wait already; try again later")
            self._waiting += entries
            self._changed.notify()
        return [entry.future for entry in entries]

    # ---- the thread

    def _work(self) -> None:
        while self._await_work():
            started = time.perf_counter()
            self._drop_cancelled()
            entries = self._take()
            rows = self._together(entries) if entries and self._joins else None
            if rows is None:
                self._start(entries)
                rows = self._step()
            if self._on_round:
                tokens = sum(num_tokens(entry.job) for entry in entries)
                self._on_round(Round(len(entries), tokens, rows, time.perf_counter() - started))

    def _await_work(self) -> bool:
        """Wait for jobs; false once the scheduler is stopped and has none."""
        with self._changed:
            while not self._waiting and not self._running:
                if not self._open:
                    return False
                self._changed.wait()
        return True

    def _take(self) -> list[Entry]:
        """The jobs that the next round starts, in order; texts to generate wait for room, others may overtake them."""
        taken, skipped, tokens = list[Entry](), list[Entry](), 0
        lengths = [entry.job.most_tokens for entry in self._running.values() if isinstance(entry.job, TextJob)]
        with self._changed:
            while self._waiting:
                entry = self._waiting.popleft()
                if entry.future.cancelled():
                    continue
                size = num_tokens(entry.job)
                if taken and tokens + size > self.limits.max_batch_tokens:
                    skipped.append(entry)
                    break
                if isinstance(entry.job, TextJob):
                    if not self._has_room([*lengths, entry.job.most_tokens]):
                        skipped.append(entry)
                        continue
                    lengths.append(entry.job.most_tokens)
                taken.append(entry)
                tokens += size
            self._waiting.extendleft(reversed(skipped))
        return taken

    def _has_room(self, lengths: Sequence[int]) -> bool:
        padded = len(lengths) * max(lengths)
        return len(lengths) == 1 or (len(lengths) <= self.limits.max_rows and padded <= self.limits.max_cache_tokens)

    @property
    def _joins(self) -> bool:
        """Whether a decoding step can be part of the batch that starts jobs, which then reads the weights only once.

        The levelwise backend would copy the keys and values of each row.
        """
        return bool(self._batch.rows) and self.library.runner.backend == "packed"

    def _together(self, entries: Sequence[Entry]) -> int | None:
        """Start jobs and run a decoding step in one mixed batch.

        Returns:
            The number of rows that got a token; ``None`` if the batch failed, so that both must be done apart.
        """
        try:
            jobs = [entry.job.row(self.library) for entry in entries]
            results = run_mixed(self.library.runner, [*jobs, *self._batch.step_rows()])
        except Exception:
            return None
        rows = self._step(results[len(jobs) :])
        self._deliver_all(entries, results[: len(jobs)])
        return rows

    def _start(self, entries: Sequence[Entry]) -> None:
        """Compute new jobs together. If that fails, each by itself, so that one does not fail the others."""
        if not entries:
            return
        try:
            self.run(entries)
        except Exception as error:
            if len(entries) == 1:
                _fail(entries, error)
                return
            for entry in entries:
                self._start([entry])

    def run(self, entries: Sequence[Entry]) -> None:
        """Compute jobs, and send their results; texts to generate join the decoding batch."""
        self._deliver_all(entries, run_mixed(self.library.runner, [entry.job.row(self.library) for entry in entries]))

    def _deliver_all(self, entries: Sequence[Entry], results: Sequence[Any]) -> None:
        for entry, result in zip(entries, results, strict=True):
            try:
                self._deliver(entry, result)
            except Exception as error:
                _fail([entry], error)

    def _deliver(self, entry: Entry, result: Any) -> None:
        job = entry.job
        if not isinstance(job, TextJob):
            finish(entry, job.result(result))
            return
        row = Continuation(result, job.sampling, self.library.tokenizer, job.input_ids[-CONTEXT:])
        if row.finish_reason is None:
            self._batch.add(row)
        self._running[row] = entry
        self._send([row])

    def _step(self, results: Sequence[Any] | None = None) -> int:
        """One decoding step, or the rest of one whose results are given; the number of rows that got a token."""
        try:
            rows = self._batch.step() if results is None else self._batch.accept(results)
        except Exception as error:
            _fail(self._running.values(), error)
            self._running.clear()
            self._batch = DecodingBatch(self.library.runner)
            return 0
        self._send(rows)
        return len(rows)

    def _send(self, rows: Iterable[Continuation]) -> None:
        """Send new text to clients, and results of finished rows."""
        for row in rows:
            entry = self._running[row]
            assert isinstance(entry.job, TextJob)
            delta = row.take()
            if entry.job.on_delta and (delta.text or delta.logprobs) and not entry.future.cancelled():
                try:
                    entry.job.on_delta(delta)
                except Exception:  # the client is gone
                    entry.future.cancel()
            if row.finish_reason is not None:
                del self._running[row]
                finish(entry, row.completion())

    def _drop_cancelled(self) -> None:
        for row, entry in list(self._running.items()):
            if entry.future.cancelled():
                del self._running[row]
                self._batch.remove(row)


def finish(entry: Entry, result: Any) -> None:
    """Hand over the result of a job."""
    with suppress(InvalidStateError):  # the client has cancelled it
        entry.future.set_result(result)


def _fail(entries: Iterable[Entry], error: Exception) -> None:
    if not isinstance(error, SoftPromptError):
        log.error("a job failed", exc_info=error)
    for entry in entries:
        with suppress(InvalidStateError):
            entry.future.set_exception(error)
