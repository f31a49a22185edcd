"""What a run tells whoever watches it. This one listens and says nothing; the command line prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..storage.record import EpochRecord, TrainerState


class Callback:
    """Receives the events of a run. Override what is of interest."""

    def note(self, text: str) -> None:
        """One line that a person should read (rows cut, a resumed step, ...)."""

    def begin(self, state: TrainerState, classification: bool) -> None:
        """Training starts, at ``state.global_step``."""

    def step(self, step: int, loss: float) -> None:
        """Optimiser step number ``step`` (from 1) is done."""

    def epoch(self, record: EpochRecord, best: bool) -> None:
        """A line of the table; ``best`` when no earlier one validated better."""

    @contextmanager
    def rows(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A pass over ``total`` rows: call what it yields with the number of rows just done."""
        yield lambda done: None
