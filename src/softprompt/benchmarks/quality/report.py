"""The report of a quality benchmark: page, plots and score tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .charts import draw
from .page import score_table, write_page
from .result_set import ResultSet
from .specification import QualityOptions


@dataclass(frozen=True)
class Report:
    """A written report.

    Attributes:
        files: the page and the plots.
        tables: macro-F1 in Markdown, by number of training rows.
        no_plots: why there are no plots, if there are none.
    """

    files: tuple[Path, ...]
    tables: dict[int, str]
    no_plots: str | None


def write_report(spec: QualityOptions) -> Report:
    """Write the page and the plots of the completed results.

    Raises:
        DataError: the CSV or a file of predictions is damaged.
    """
    page = write_page(spec)
    results = ResultSet(spec)
    plots, no_plots = draw(results)
    return Report((page, *plots), {shots: score_table(results, shots) for shots in spec.shots}, no_plots)
