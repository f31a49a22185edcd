"""The progress of a run on the terminal: a bar, and a table that grows by a line per epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status

from ..config.options import TrainOptions
from ..storage.record import EpochRecord, TrainerState
from ..training.callbacks import Callback
from .show import console, number


class Watcher(Callback):
    """Prints what a run tells."""

    def __init__(self, options: TrainOptions, status: Status) -> None:
        self._options = options
        self._status = status
        self._progress = progress_bar()
        self._classification = False
        self._steps: Any = None
        self.begun = False

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        """Print a line."""
        console.print(text, markup=False, soft_wrap=True)

    def begin(self, state: TrainerState, classification: bool) -> None:
        """Start the bar and print the head of the table."""
        self._status.stop()
        self.begun = True
        self._classification = classification
        scores = f"{'accuracy':>10}{'macro-F1':>10}" if classification else ""
        star = "  * best so far" if state.metric_for_best_model else ""
        self.note(f"{'epoch':>7}{'train loss':>12}{'perplexity':>12}{'eval loss':>11}{scores}{'seconds':>9}{star}")
        self._progress.start()
        self._steps = self._progress.add_task("training", total=state.max_steps, completed=state.global_step)

    def step(self, step: int, loss: float) -> None:
        """Move the bar."""
        self._progress.update(self._steps, completed=step, description=f"training, loss {loss:.3f}")

    def epoch(self, record: EpochRecord, best: bool) -> None:
        """Print a line of the table."""
        epoch = f"{record.epoch:g}" if record.epoch == round(record.epoch) else f"{record.epoch:.2f}"
        scores = f"{number(record.accuracy):>10}{number(record.macro_f1):>10}" if self._classification else ""
        self._progress.console.print(
            f"{epoch:>7}{number(record.train_loss):>12}{number(record.train_perplexity, 2):>12}"
            f"{number(record.eval_loss):>11}{scores}{number(record.seconds, 1):>9}{' *' if best else ''}",
            soft_wrap=True,
        )

    @contextmanager
    def rows(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar of its own while rows are scored."""
        task = self._progress.add_task(what, total=total)
        try:
            yield lambda done: self._progress.update(task, advance=done)
        finally:
            self._progress.remove_task(task)


def progress_bar() -> Progress:
    """A bar with a count and the time left; it disappears when done, and where there is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
