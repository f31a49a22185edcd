"""Events of a training run. Methods that mean the same as in ``transformers.TrainerCallback`` have its names."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..storage.record import EpochRecord, TrainerState


class Callback:
    """Receives the events of a run. Override the methods you need; here, warnings are Python's, and the others do
    nothing."""

    def on_train_begin(self, state: TrainerState, is_classification: bool) -> None:
        """Training starts, at ``state.global_step``."""

    def on_step_end(self, step: int, loss: float) -> None:
        """Optimizer step number ``step`` (from 1) is done."""

    def on_log(self, record: EpochRecord, is_best: bool) -> None:
        """A line of the training table: at the end of an epoch, and at each validation within one.

        Args:
            is_best: whether this prompt has validated best so far.
        """

    def on_message(self, text: str) -> None:
        """A line for the user, such as the number of rows or the resumed step."""

    def on_warning(self, text: str) -> None:
        """A line on a possible mistake, such as the number of truncated rows."""
        warnings.warn(text, stacklevel=2)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """A pass over ``total`` rows or steps; the function it yields takes the number just done."""
        yield lambda done: None
