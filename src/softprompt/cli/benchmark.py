"""``softprompt benchmark CONFIG.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..benchmarks.quality.runner import Plan, plan, run
from ..benchmarks.quality.specification import QualityOptions, read_spec
from .show import console, working


def command(
    config: Annotated[Path, typer.Argument(help="YAML file: tasks, methods, seeds, shots (benchmarks/quality.yaml).")],
    table: Annotated[
        bool, typer.Option("--table", help="Measure nothing; only write table and pictures anew.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry_run", help="List the cells that are missing, and stop.")] = False,
) -> None:
    """Compare methods over tasks, seeds and numbers of training rows; goes on where it stopped."""
    spec = read_spec(config)
    if table:
        _report(spec)
        return
    with working("reading the tasks ..."):
        planned = plan(spec)
    if dry_run:
        _list(planned)
        return
    failed = run(spec, planned, _say, after_task=lambda: _page(spec))
    _report(spec)
    if failed:
        _say(f"{failed} cells failed; run it again to try them again")
        raise typer.Exit(1)


def _list(planned: Plan) -> None:
    for job in planned.missing:
        _say(str(job.key))
    _say(f"{len(planned.missing)} of {len(planned.jobs)} cells are missing")


def _page(spec: QualityOptions) -> Path:
    from ..benchmarks.quality.table import write_page

    return write_page(spec)


def _report(spec: QualityOptions) -> None:
    """Write table and pictures, and show the scores."""
    path = _page(spec)

    from ..benchmarks.quality.charts import draw
    from ..benchmarks.quality.table import Scores, score_table

    scores = Scores(spec)
    for shots in spec.shots:
        _say(f"\n{shots} training rows, macro-F1 (%)\n{score_table(scores, shots)}")
    pictures, reason = draw(scores)
    _say("")
    for each in (path, *pictures):
        _say(str(each))
    if reason:
        _say(f"no pictures: {reason}")


def _say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
