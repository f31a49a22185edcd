"""``results.md`` of a quality benchmark: scores, differences from the reference with intervals, and other metrics."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ...storage.atomic import write_text
from .bootstrap import Interval
from .result_set import ResultSet, Spread
from .specification import QualityOptions

PAGE = "results.md"
NOTHING = "-"


def write_page(spec: QualityOptions) -> Path:
    """Write ``results.md`` from the completed results.

    Returns:
        The path of the file.

    Raises:
        DataError: the CSV or a file of predictions is damaged.
    """
    path = spec.output_dir / PAGE
    write_text(path, as_markdown(ResultSet(spec)))
    return path


def as_markdown(results: ResultSet) -> str:
    """The whole page."""
    spec = results.spec
    parts = ["# Quality", _preface(results)]
    for shots in spec.shots:
        parts += [f"## {shots} training rows", score_table(results, shots)]
        if len(spec.methods) > 1:
            parts += [_about_intervals(spec), difference_table(results, shots)]
        parts += ["Means over all tasks and seeds:", other_table(results, shots)]
    return "\n\n".join(parts) + "\n"


def score_table(results: ResultSet, shots: int) -> str:
    """Macro-F1 in percent, one line per method."""

    def line(method: str) -> list[str]:
        seeds = len(results.spec.seeds_of(method))
        spreads = [results.spread(task, method, shots) for task in results.spec.tasks]
        return [_spread(each, seeds) for each in (*spreads, results.over_tasks(method, shots))]

    return _by_method(results, line)


def difference_table(results: ResultSet, shots: int) -> str:
    """Difference in macro-F1 from the reference, in points, with intervals."""

    def line(method: str) -> list[str]:
        found: Mapping[str, Interval] = results.compare(method, shots)
        return [_interval(found.get(task)) for task in (*results.spec.tasks, "")]

    others = [method for method in results.spec.methods if method != results.spec.compared_with]
    return _by_method(results, line, others)


def other_table(results: ResultSet, shots: int) -> str:
    """Accuracy, calibration error, log loss, time and number of parameters."""
    head = ["method", "accuracy (%)", "calibration error (%)", "log loss (nats)", "seconds", "trained parameters"]
    lines = []
    for method in results.spec.methods:
        found = results.all_of(method, shots)
        if not found:
            lines.append([method, *[NOTHING] * (len(head) - 1)])
            continue
        expected = len(results.spec.tasks) * len(results.spec.seeds_of(method))
        name = method if len(found) == expected else f"{method} ({len(found)} of {expected} results)"
        mean = {column: statistics.fmean(getattr(each, column) for each in found) for column in _SCALES}
        lines.append([name, *(form.format(_SCALES[column] * mean[column]) for column, form in _FORMATS.items())])
    return _markdown(head, lines)


_SCALES = {"accuracy": 100, "expected_calibration_error": 100, "log_loss": 1, "seconds": 1, "trained_parameters": 1}
_FORMATS = dict(zip(_SCALES, ("{:.1f}", "{:.1f}", "{:.3f}", "{:.1f}", "{:,.0f}"), strict=True))


def _preface(results: ResultSet) -> str:
    spec = results.spec
    found = [each for shots in spec.shots for method in spec.methods for each in results.all_of(method, shots)]
    expected = len(spec.tasks) * len(spec.shots) * sum(len(spec.seeds_of(method)) for method in spec.methods)
    rows = sorted({each.test_rows for each in found})
    versions = sorted({each.version for each in found})
    seeds = ", ".join(map(str, spec.seeds))
    more = "".join(f" ({name}: {', '.join(map(str, spec.seeds_of(name)))})" for name in spec.more_seeds)
    state = "" if len(found) == expected else f" {len(found)} of {expected} results are complete."
    tested = f" {'-'.join(map(str, (rows[0], rows[-1])[: len(rows)]))} test rows per task," if rows else ""
    return (
        "Macro-F1 in percent over all labels of a task (0 for a label without a correct prediction), mean ± standard "
        f"deviation over seeds {seeds}{more}; each seed draws and orders its own training rows. "
        f"Base model {spec.model_name_or_path},{tested} softprompt {', '.join(versions) or NOTHING}.{state}"
    )


def _about_intervals(spec: QualityOptions) -> str:
    return (
        f"Difference from {spec.compared_with} in points of macro-F1, with the 95% interval of a paired bootstrap "
        f"({spec.bootstrap_samples} resamples of seeds and test rows, the same for both; bold if it excludes 0):"
    )


def _by_method(results: ResultSet, line: Callable[[str], list[str]], methods: Sequence[str] | None = None) -> str:
    head = ["method", *results.spec.tasks, "all tasks"]
    return _markdown(head, [[method, *line(method)] for method in methods or results.spec.methods])


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(columns) + " |" for columns in (head, rule, *lines))


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
