"""Warnings and progress of library calls on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from .progress import progress_bar
from .show import console, working


class Terminal:
    """Shows the warnings and the progress of a library call.

    Args:
        warnings_to_stderr: for commands whose output goes to stdout.
    """

    def __init__(self, *, warnings_to_stderr: bool = False) -> None:
        self._to_stderr = warnings_to_stderr

    def on_warning(self, text: str) -> None:
        """Print a line."""
        if self._to_stderr:
            typer.echo(f"softprompt: {text}", err=True)
        else:
            console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a bar; a spinner if the total is not known."""
        if not total:
            with working(f"{description} ..."):
                yield lambda done: None
            return
        with progress_bar() as bar:
            task = bar.add_task(description, total=total)
            yield lambda done: bar.update(task, advance=done)
