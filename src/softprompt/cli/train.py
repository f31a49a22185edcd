"""``softprompt train [CONFIG.yaml] [--option value ...]``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..config.options import TrainOptions, build_options, read_yaml
from . import ResumableInterrupt
from .arguments import takes


@takes(TrainOptions)
def command(
    config: Annotated[Path | None, typer.Argument(help="YAML file of options; the command line overrides it.")] = None,
    **given: Any,
) -> None:
    """Train a soft prompt."""
    values = read_yaml(config, as_written=True) if config else {}
    if config:
        build_options(TrainOptions, {"output_dir": "-", **values}, where=str(config))
    options = build_options(TrainOptions, {**{k.replace("-", "_"): v for k, v in values.items()}, **given})

    from ..training.task_rows import read_task_rows
    from .show import console, metrics_table, what_next, working
    from .watch import Watcher

    with working("starting ...") as status, Watcher(options, status) as watcher:
        rows = read_task_rows(options)  # mistakes in the data show at once; torch takes seconds to import

        from ..training.pipeline import train

        try:
            result = train(options, watcher, rows)
        except KeyboardInterrupt:
            if not watcher.begun:  # what lies in output_dir is not of this run
                raise
            from ..training.checkpoint import checkpoints

            if not checkpoints(options.output_dir):
                raise
            raise ResumableInterrupt from None
    if result is None:
        return
    if result.metrics is not None:
        console.print(metrics_table(result.metrics))
    what_next(result.output_dir, options.text_column)
