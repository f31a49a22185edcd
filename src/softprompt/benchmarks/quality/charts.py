"""Plots of a quality benchmark: scores by number of training rows and by seed, and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import MissingExtraError
from ...metrics import CalibrationBin, calibration_bins
from ...reporting.plots import figure_to
from .result_set import ResultSet
from .results import Predictions

BY_SHOTS, BY_SEED, RELIABILITY = "score_by_shots.png", "score_by_seed.png", "reliability.png"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00", "#56B4E9", "#222222", "#8A8A8A")
_MARKERS = "osD^vPX*"
_COLUMNS = 4
_ALL = "all tasks"


def draw(results: ResultSet) -> tuple[list[Path], str | None]:
    """Draw the plots into the benchmark's folder.

    Returns:
        The paths of the plots, and the reason if there are none.
    """
    try:
        plots = [plot_by_seed(results), plot_reliability(results)]
        if len(results.spec.shots) > 1:
            plots.append(plot_by_shots(results))
    except MissingExtraError as missing:
        return [], str(missing)
    return plots, None


def plot_by_shots(results: ResultSet) -> Path:
    """One panel per task and one for their mean: macro-F1 against training rows, one line per method.

    Error bars are one standard deviation over seeds.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    spec = results.spec
    path = spec.output_dir / BY_SHOTS
    with figure_to(_size(len(spec.tasks) + 1), path) as figure:
        for name, axes in _panels(figure, [*spec.tasks, _ALL]):
            for number, method in enumerate(spec.methods):
                spreads = [
                    (shots, results.over_tasks(method, shots) if name == _ALL else results.spread(name, method, shots))
                    for shots in spec.shots
                ]
                points = [(shots, each) for shots, each in spreads if each is not None]
                if points:
                    axes.errorbar(
                        [shots for shots, _ in points],
                        [100 * each.mean for _, each in points],
                        [100 * (each.deviation or 0) for _, each in points],
                        capsize=2,
                        **_look(number, method),
                    )
            axes.set_xscale("log")
            axes.set_xticks(spec.shots, [str(shots) for shots in spec.shots])
            axes.minorticks_off()
            axes.set_xlabel("training rows")
        _legend(figure)
    return path


def plot_by_seed(results: ResultSet) -> Path:
    """One panel per task: macro-F1 of each seed as a dot, the mean as a line, for the largest number of training rows.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    spec = results.spec
    path, shots = spec.output_dir / BY_SEED, max(spec.shots)
    with figure_to(_size(len(spec.tasks)), path) as figure:
        for task, axes in _panels(figure, list(spec.tasks)):
            for number, method in enumerate(spec.methods):
                values = [100 * result.macro_f1 for result in results.results(task, method, shots)]
                if values:
                    look = _look(number, method)
                    axes.plot(_offsets(number, len(values)), values, **{**look, "linestyle": "none"})
                    mean = sum(values) / len(values)
                    axes.plot((number - 0.35, number + 0.35), (mean, mean), color=look["color"], linewidth=1.0)
            axes.set_xlim(-0.6, len(spec.methods) - 0.4)
            axes.set_xticks(())
        _legend(figure)
    return path


def plot_reliability(results: ResultSet) -> Path:
    """Reliability diagrams, one panel per method: accuracy by confidence over all tasks and seeds.

    For the largest number of training rows. The area of a dot is the share of predictions in its bin. On the diagonal,
    accuracy equals confidence.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    path, shots = results.spec.output_dir / RELIABILITY, max(results.spec.shots)
    with figure_to(_size(len(results.spec.methods)), path) as figure:
        for method, axes in _panels(figure, list(results.spec.methods), "accuracy (%)"):
            axes.plot((0, 100), (0, 100), color=_COLOURS[-1], linewidth=0.8, linestyle="--")
            if predictions := results.predictions(method, shots):
                _plot_bins(axes, _bins(predictions))
            axes.set(xlim=(0, 102), ylim=(0, 102), xlabel="confidence (%)")
    return path


def _bins(predictions: Sequence[Predictions]) -> list[CalibrationBin]:
    confidences = [confidence for each in predictions for confidence in each.confidences]
    correct = [guess == gold for each in predictions for guess, gold in zip(each.guesses, each.gold, strict=True)]
    return calibration_bins(confidences, correct)


def _plot_bins(axes: Any, bins: Sequence[CalibrationBin]) -> None:
    confidences, accuracies = [100 * each.confidence for each in bins], [100 * each.accuracy for each in bins]
    total = sum(each.rows for each in bins)
    axes.plot(confidences, accuracies, color=_COLOURS[0], linewidth=1.0)
    axes.scatter(confidences, accuracies, [6 + 150 * each.rows / total for each in bins], color=_COLOURS[0])


def _size(panels: int) -> tuple[float, float]:
    columns = min(panels, _COLUMNS)
    return max(4.4, 2.5 * columns), 2.2 * -(-panels // columns) + 0.6  # inches


def _panels(figure: Any, names: Sequence[str], values: str = "macro-F1 (%)") -> list[tuple[str, Any]]:
    columns = min(len(names), _COLUMNS)
    grid = figure.subplots(-(-len(names) // columns), columns, squeeze=False)
    found = list(zip(names, grid.flat, strict=False))
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    for number, (name, axes) in enumerate(found):
        axes.set_title(name, parse_math=False)
        axes.grid(axis="y")
        if number % columns == 0:
            axes.set_ylabel(values)
    return found


def _look(number: int, method: str) -> dict[str, Any]:
    """Colour and marker of a method; the pair is unique for up to 64 methods."""
    marker = _MARKERS[(number + number // len(_COLOURS)) % len(_MARKERS)]
    return {"color": _COLOURS[number % len(_COLOURS)], "marker": marker, "label": method}


def _offsets(number: int, count: int) -> list[float]:
    """Horizontal positions of a method's seeds, next to each other in their order."""
    return [number + 0.4 * ((seed + 0.5) / count - 0.5) for seed in range(count)]


def _legend(figure: Any) -> None:
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
