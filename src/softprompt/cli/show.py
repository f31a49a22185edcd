"""Tables and lines on the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.status import Status
from rich.table import Table
from rich.text import Text

from ..storage.record import CONFUSION_PICTURE, LOSS_PICTURE, METRICS_NAME, Metrics

console = Console(highlight=False)


def working(text: str) -> Status:
    """A spinner with a text while its block runs, if stdout is a terminal."""
    return console.status(text, spinner="line" if console.options.ascii_only else "dots")


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table; a dash for ``None``."""
    return "-" if value is None else f"{value:.{digits}f}"


def metrics_table(metrics: Metrics) -> RenderableType:
    """Scores of the prompt and of the baselines, and of each class."""
    parts: list[RenderableType] = [_scores(metrics)]
    if metrics.per_class:
        classes = Table(box=None, pad_edge=False, header_style="bold")
        classes.add_column("class")
        for name in ("precision", "recall", "F1", "rows"):
            classes.add_column(name, justify="right")
        for each in metrics.per_class:
            shares = [number(each[name]) for name in ("precision", "recall", "f1")]
            classes.add_row(Text(str(each["label"])), *shares, str(each["support"]))
        parts += [Text(""), classes]
    return Group(*parts)


def _scores(metrics: Metrics) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"{metrics.split} ({metrics.num_examples} rows)")
    names = {"accuracy": "accuracy", "macro_f1": "macro-F1", "exact_match": "exact match", "rouge_l": "ROUGE-L"}
    names |= {"bleu": "BLEU", "eval_loss": "loss"}
    names = {key: name for key, name in names.items() if getattr(metrics, key) is not None}
    for name in names.values():
        table.add_column(name, justify="right")
    table.add_row("this prompt", *(number(getattr(metrics, key)) for key in names), style="bold")
    for name, scores in metrics.baselines.items():
        table.add_row(name, *(number(scores.get(key)) for key in names))
    return table


def what_next(folder: Path, text_columns: Sequence[str]) -> None:
    """Print the paths of the results, and a command to try."""
    console.print()
    for what, name in (("metrics", METRICS_NAME), ("loss curve", LOSS_PICTURE), ("confusion", CONFUSION_PICTURE)):
        if (folder / name).is_file():
            console.print(f"{what:<12}{folder / name}", soft_wrap=True)
    console.print(f"{'adapter':<12}{folder}", soft_wrap=True)
    if len(text_columns) == 1:
        adapter = shlex.quote(str(folder))
        console.print(f'try it:     softprompt predict --adapter {adapter} --text "..."', soft_wrap=True)
