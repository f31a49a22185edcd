"""The progress of a run on the terminal: a bar, and a table that grows by a line per epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status

from ..storage.record import EpochRecord, TrainerState
from ..training.callbacks import Callback
from .show import console, number


class TrainingProgress(Callback):
    """Prints the progress of a training run."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._progress = progress_bar()
        self._is_classification = False
        self._steps: Any = None
        self.has_begun = False

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_message(self, text: str) -> None:
        """Print a line."""
        console.print(text, markup=False, soft_wrap=True)

    def on_warning(self, text: str) -> None:
        """Print a line."""
        self.on_message(text)

    def on_train_begin(self, state: TrainerState, is_classification: bool) -> None:
        """Start the bar and print the header of the table."""
        self._status.stop()
        self.has_begun = True
        self._is_classification = is_classification
        scores = f"{'accuracy':>10}{'macro-F1':>10}" if is_classification else ""
        star = "  * best so far" if state.metric_for_best_model else ""
        losses = f"{'train loss':>12}{'perplexity':>12}{'eval loss':>11}"
        self.on_message(f"{'epoch':>7}{losses}{scores}{'seconds':>9}{star}")
        self._progress.start()
        self._steps = self._progress.add_task("training", total=state.max_steps, completed=state.global_step)

    def on_step_end(self, step: int, loss: float) -> None:
        """Move the bar."""
        self._progress.update(self._steps, completed=step, description=f"training, loss {loss:.3f}")

    def on_log(self, record: EpochRecord, is_best: bool) -> None:
        """Print a line of the table."""
        epoch = f"{record.epoch:g}" if record.epoch == round(record.epoch) else f"{record.epoch:.2f}"
        scores = f"{number(record.accuracy):>10}{number(record.macro_f1):>10}" if self._is_classification else ""
        self._progress.console.print(
            f"{epoch:>7}{number(record.train_loss):>12}{number(record.train_perplexity, 2):>12}"
            f"{number(record.eval_loss):>11}{scores}{number(record.seconds, 1):>9}{' *' if is_best else ''}",
            soft_wrap=True,
        )

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """A second bar, for a pass over rows or steps."""
        task = self._progress.add_task(description, total=total)
        try:
            yield lambda done: self._progress.update(task, advance=done)
        finally:
            self._progress.remove_task(task)


def progress_bar() -> Progress:
    """A bar with a count and the time left; it disappears when done, and where there is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
