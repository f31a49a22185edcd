"""From the CSV to a page of Markdown: scores, differences with intervals, and what else there is to know."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...storage.atomic import write_text
from .bootstrap import Interval, differences, interval
from .results import Cell, Key, Predictions, read_cells, read_predictions
from .specification import QualityOptions

PAGE = "results.md"
NOTHING = "-"


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1) over seeds; one seed has no deviation."""

    mean: float
    deviation: float | None
    seeds: int


class Scores:
    """The cells of a benchmark that are finished, by place."""

    def __init__(self, spec: QualityOptions) -> None:
        self.spec = spec
        self._cells = read_cells(spec.output_dir)
        self._predictions: dict[Key, Predictions | None] = {}

    def cells(self, task: str, method: str, shots: int) -> list[Cell]:
        """The finished cells of all seeds, in the order of these."""
        keys = (self._key(task, method, shots, seed) for seed in self.spec.seeds_of(method))
        return [self._cells[key] for key in keys if key in self._cells]

    def spread(self, task: str, method: str, shots: int) -> Spread | None:
        """Macro-F1 of a method on a task."""
        return spread_of([cell.macro_f1 for cell in self.cells(task, method, shots)])

    def over_tasks(self, method: str, shots: int) -> Spread | None:
        """Mean macro-F1 over all tasks, with its deviation over seeds; ``None`` unless every cell is there."""
        by_task = [self.cells(task, method, shots) for task in self.spec.tasks]
        if any(len(cells) < len(self.spec.seeds_of(method)) for cells in by_task):
            return None
        return spread_of([statistics.fmean(c.macro_f1 for c in cells) for cells in zip(*by_task, strict=True)])

    def all_of(self, method: str, shots: int) -> list[Cell]:
        """The finished cells of a method, all tasks together."""
        return [cell for task in self.spec.tasks for cell in self.cells(task, method, shots)]

    def answers(self, method: str, shots: int) -> list[Predictions]:
        """What the finished cells of a method answered, all tasks together, as far as it is kept."""
        return [found for cell in self.all_of(method, shots) if (found := self._read(cell.key)) is not None]

    def compare(self, method: str, shots: int) -> dict[str, Interval]:
        """Differences from the reference, by task where both have the common seeds; under ``""`` their mean.

        The CSV is enough for a difference; an interval needs the predictions of all cells.
        """
        found: dict[str, Interval] = {}
        parts: list[torch.Tensor] = []
        for task in self.spec.tasks:
            difference = self._difference(task, method, shots)
            if difference is None:
                continue
            found[task] = Interval(difference)
            pairs = self._pairs(task, method, shots)
            if len(pairs) == len(self.spec.seeds):
                ours, theirs = zip(*pairs, strict=True)
                _, resampled = differences(ours, theirs, self.spec.bootstrap_samples)
                found[task] = interval(difference, resampled)
                parts.append(resampled)
        if len(found) == len(self.spec.tasks):
            mean = statistics.fmean(each.difference for each in found.values())
            # Tasks have rows of their own, so their resamples are shuffled against each other.
            order = torch.Generator().manual_seed(1)
            mixed = [resampled[torch.randperm(len(resampled), generator=order)] for resampled in parts]
            found[""] = interval(mean, torch.stack(mixed).mean(0)) if len(mixed) == len(found) else Interval(mean)
        return found

    def _difference(self, task: str, method: str, shots: int) -> float | None:
        """Mean over the common seeds; ``None`` where a cell is missing."""
        gaps = []
        for seed in self.spec.seeds:
            ours, theirs = (
                self._cells.get(self._key(task, each, shots, seed)) for each in (method, self.spec.compared_with)
            )
            if ours is None or theirs is None:
                return None
            gaps.append(ours.macro_f1 - theirs.macro_f1)
        return statistics.fmean(gaps)

    def _pairs(self, task: str, method: str, shots: int) -> list[tuple[Predictions, Predictions]]:
        """Predictions of method and reference, of the seeds that both have."""
        pairs = []
        for seed in self.spec.seeds:
            ours, theirs = (self._read(self._key(task, m, shots, seed)) for m in (method, self.spec.compared_with))
            if ours is not None and theirs is not None:
                pairs.append((ours, theirs))
        return pairs

    def _read(self, key: Key) -> Predictions | None:
        if key not in self._cells:
            return None
        if key not in self._predictions:
            self._predictions[key] = read_predictions(self.spec.output_dir, key)
        return self._predictions[key]

    def _key(self, task: str, method: str, shots: int, seed: int) -> Key:
        return Key(task, method, self.spec.model_name_or_path, shots, seed)


def spread_of(values: Sequence[float]) -> Spread | None:
    """Mean and deviation of some values."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def write_page(spec: QualityOptions) -> Path:
    """Write ``results.md`` of what is finished; returns its path.

    Raises:
        DataError: the CSV or a file of predictions is damaged.
    """
    path = spec.output_dir / PAGE
    write_text(path, as_markdown(Scores(spec)))
    return path


def as_markdown(scores: Scores) -> str:
    """The whole page."""
    spec = scores.spec
    parts = ["# Quality", _preface(scores)]
    for shots in spec.shots:
        parts += [f"## {shots} training rows", score_table(scores, shots)]
        if len(spec.methods) > 1:
            parts += [_about_intervals(spec), difference_table(scores, shots)]
        parts += ["Means over all tasks and seeds:", other_table(scores, shots)]
    return "\n\n".join(parts) + "\n"


def score_table(scores: Scores, shots: int) -> str:
    """Macro-F1 in percent, a line for each method."""

    def line(method: str) -> list[str]:
        seeds = len(scores.spec.seeds_of(method))
        spreads = [scores.spread(task, method, shots) for task in scores.spec.tasks]
        return [_spread(each, seeds) for each in (*spreads, scores.over_tasks(method, shots))]

    return _by_method(scores, line)


def difference_table(scores: Scores, shots: int) -> str:
    """Points of macro-F1 above the reference, with intervals."""

    def line(method: str) -> list[str]:
        found: Mapping[str, Interval] = scores.compare(method, shots)
        return [_interval(found.get(task)) for task in (*scores.spec.tasks, "")]

    others = [method for method in scores.spec.methods if method != scores.spec.compared_with]
    return _by_method(scores, line, others)


def other_table(scores: Scores, shots: int) -> str:
    """Accuracy, calibration, log loss, time and size."""
    head = ["method", "accuracy (%)", "calibration error (%)", "log loss (nats)", "seconds a cell", "trained numbers"]
    lines = []
    for method in scores.spec.methods:
        cells = scores.all_of(method, shots)
        if not cells:
            lines.append([method, *[NOTHING] * (len(head) - 1)])
            continue
        whole = len(scores.spec.tasks) * len(scores.spec.seeds_of(method))
        shown = method if len(cells) == whole else f"{method} ({len(cells)} of {whole} cells)"
        mean = {name: statistics.fmean(getattr(cell, name) for cell in cells) for name in _MEANS}
        lines.append([shown, *(form.format(_MEANS[name] * mean[name]) for name, form in _FORMS.items())])
    return _markdown(head, lines)


_MEANS = {"accuracy": 100, "expected_calibration_error": 100, "log_loss": 1, "seconds": 1, "trained_numbers": 1}
_FORMS = dict(zip(_MEANS, ("{:.1f}", "{:.1f}", "{:.3f}", "{:.1f}", "{:,.0f}"), strict=True))


def _preface(scores: Scores) -> str:
    spec = scores.spec
    cells = [cell for shots in spec.shots for method in spec.methods for cell in scores.all_of(method, shots)]
    whole = len(spec.tasks) * len(spec.shots) * sum(len(spec.seeds_of(method)) for method in spec.methods)
    rows = sorted({cell.test_rows for cell in cells})
    versions = sorted({cell.version for cell in cells})
    seeds = ", ".join(map(str, spec.seeds))
    more = "".join(f" ({name}: {', '.join(map(str, spec.seeds_of(name)))})" for name in spec.more_seeds)
    state = "" if len(cells) == whole else f" {len(cells)} of {whole} cells are finished."
    tested = f" {'-'.join(map(str, (rows[0], rows[-1])[: len(rows)]))} test rows a task," if rows else ""
    return (
        "Macro-F1 in percent over all labels of a task (0 for one never guessed right), mean ± standard deviation "
        f"over seeds {seeds}{more}; each seed draws and orders the training rows. Base model {spec.model_name_or_path},"
        f"{tested} softprompt {', '.join(versions) or NOTHING}.{state}"
    )


def _about_intervals(spec: QualityOptions) -> str:
    return (
        f"Method minus {spec.compared_with}, in points, with the 95% interval of a paired bootstrap "
        f"({spec.bootstrap_samples} resamples of seeds and test rows, the same for both; bold where it excludes 0):"
    )


def _by_method(scores: Scores, line: Callable[[str], list[str]], methods: Sequence[str] | None = None) -> str:
    head = ["method", *scores.spec.tasks, "all tasks"]
    return _markdown(head, [[method, *line(method)] for method in methods or scores.spec.methods])


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))


def _spread(spread: Spread | None, seeds: int) -> str:
    if spread is None:
        return NOTHING
    deviation = "" if spread.deviation is None else f" ± {100 * spread.deviation:.1f}"
    partial = "" if spread.seeds == seeds else f" ({spread.seeds} of {seeds})"
    return f"{100 * spread.mean:.1f}{deviation}{partial}"


def _interval(found: Interval | None) -> str:
    if found is None:
        return NOTHING
    text = f"{100 * found.difference:+.1f}"
    if math.isfinite(found.low):
        text += f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return f"**{text}**" if found.excludes_zero else text
