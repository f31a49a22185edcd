"""``softprompt train [CONFIG.yaml] [--option value ...]``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..config.options import TrainOptions, build_options, current_names
from ..config.yaml_file import read_yaml
from . import ResumableInterrupt
from .arguments import takes


@takes(TrainOptions)
def command(
    config: Annotated[Path | None, typer.Argument(help="YAML file of options; the command line overrides it.")] = None,
    **given: Any,
) -> None:
    """Train a soft prompt."""
    values: dict[str, Any] = {}
    if config:
        values = current_names(TrainOptions, read_yaml(config, as_written=True), where=str(config))
        build_options(TrainOptions, {"output_dir": "-", **values}, where=str(config))  # its errors name the file
    options = build_options(TrainOptions, values | current_names(TrainOptions, given))

    from ..data.sources import load_training_splits
    from .progress import TrainingProgress
    from .show import console, metrics_table, what_next, working

    with working("starting ...") as status, TrainingProgress(status) as progress:
        splits = load_training_splits(options)  # mistakes in the data show at once; importing torch takes seconds

        from ..training.pipeline import train

        try:
            result = train(options, progress, splits)
        except KeyboardInterrupt:
            if not progress.has_begun:  # the checkpoints in output_dir, if any, are of an older run
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
