"""The output folder of a run: checked, cleared of an older run's files, and written."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import yaml
from torch import Tensor

from ..config.adapter_config import CONFIG_NAME
from ..config.options import TrainOptions
from ..data.task import TASK_NAME
from ..errors import ConfigError, MissingExtraError
from ..inference.classifier import Classes
from ..reporting.folder import write_card
from ..reporting.plots import plot_confusion_matrix, plot_loss
from ..storage.adapter import START_NAME, WEIGHTS_NAME, read_prompt, write_prompt
from ..storage.atomic import write_text
from ..storage.record import (
    CLASSIFIER_FILES,
    CONFUSION_PICTURE,
    LOG_NAME,
    LOSS_PICTURE,
    METRICS_NAME,
    OPTIONS_NAME,
    STATE_NAME,
    TRAIN_METRICS_NAME,
    Metrics,
    TrainerState,
)
from .callbacks import Callback
from .checkpoint import checkpoints
from .run import Run

RUN_FILES = (
    WEIGHTS_NAME,
    CONFIG_NAME,
    START_NAME,
    *CLASSIFIER_FILES,
    TASK_NAME,
    OPTIONS_NAME,
    STATE_NAME,
    METRICS_NAME,
    TRAIN_METRICS_NAME,
    LOG_NAME,
    LOSS_PICTURE,
    CONFUSION_PICTURE,
)

_INITIAL_FILES = {START_NAME, OPTIONS_NAME, LOG_NAME}
"""The files of a run without a checkpoint; they may be overwritten."""


def check_output_dir(options: TrainOptions) -> Path | None:
    """Check what is in the output folder, and whether it can be written; nothing is removed yet.

    Returns:
        The checkpoint to resume from, if any.

    Raises:
        ConfigError: it is a file, holds a run or other files that would be overwritten, or has no checkpoint to
            resume.
    """
    folder = options.output_dir
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir {folder} is a file; give a folder")
    if options.resume_from_checkpoint:
        return _find_checkpoint(options)
    if not options.overwrite_output_dir:
        _check_unused(folder)
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ConfigError(f"output_dir {folder} cannot be written: {nearest} is a file or read-only; give another")
    return None


def make_output_dir(options: TrainOptions) -> None:
    """Make the output folder; ``overwrite_output_dir`` removes an older run's files from it.

    Raises:
        ConfigError: it cannot be made.
    """
    if options.overwrite_output_dir and not options.resume_from_checkpoint:
        _clear(options.output_dir)
    try:
        options.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make output_dir {options.output_dir}: {error.strerror}") from None


def write_initial_files(options: TrainOptions, prompt: Tensor) -> Tensor:
    """Write the resolved options and the initial prompt, which ``inspect`` compares with the trained one.

    Returns:
        The initial prompt; that of the first part of the run if it is resumed.
    """
    values = options.model_dump(mode="json", exclude={"dry_run", "overwrite_output_dir", "resume_from_checkpoint"})
    write_text(options.output_dir / OPTIONS_NAME, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    saved = options.output_dir / START_NAME
    if options.resume_from_checkpoint and saved.is_file():
        return read_prompt(saved).to(prompt)
    write_prompt(options.output_dir, prompt, name=START_NAME)
    return prompt


def write_results(run: Run, classes: Classes | None, state: TrainerState, metrics: Metrics | None) -> None:
    """Write the finished adapter folder. The weights come last, so a folder that has them is complete."""
    folder = run.options.output_dir
    if run.options.resume_from_checkpoint:  # they belong to the prompt before it was trained further
        for name in (METRICS_NAME, TRAIN_METRICS_NAME, CONFUSION_PICTURE, *CLASSIFIER_FILES):
            (folder / name).unlink(missing_ok=True)
    if metrics is not None:
        metrics.save(folder)
    _plot(folder, state, metrics, run.callback)
    run.task.save(folder)
    state.save(folder)
    for part in (classes.linear_probe, classes.ensemble) if classes else ():
        if part is not None:
            part.save(folder)
    replace(run.config, inference_mode=True).save_pretrained(folder)
    write_card(folder)
    write_prompt(folder, run.prompt, placement=run.config.prompt_placement)


def _plot(folder: Path, state: TrainerState, metrics: Metrics | None, callback: Callback) -> None:
    try:
        plot_loss(state.history, folder / LOSS_PICTURE, best_step=state.best_step)
        if metrics is not None and metrics.confusion_matrix and metrics.labels:
            plot_confusion_matrix(metrics.confusion_matrix, metrics.labels, folder / CONFUSION_PICTURE)
    except MissingExtraError as missing:
        callback.on_warning(f"no plots: {missing}")


def _check_unused(folder: Path) -> None:
    if (folder / WEIGHTS_NAME).exists():
        raise ConfigError(
            f"output_dir {folder} holds a finished run; choose another folder, give --overwrite_output_dir to "
            "replace it, or --resume_from_checkpoint last to continue it (with more epochs)"
        )
    if checkpoints(folder):
        raise ConfigError(
            f"output_dir {folder} holds an unfinished run; continue it with --resume_from_checkpoint "
            "last, or give --overwrite_output_dir"
        )
    found = [name for name in RUN_FILES if (folder / name).exists()]
    if found and not (START_NAME in found and _INITIAL_FILES.issuperset(found)):
        raise ConfigError(
            f"output_dir {folder} has a {found[0]}, which the run would overwrite; choose another folder, "
            "or give --overwrite_output_dir"
        )


def _find_checkpoint(options: TrainOptions) -> Path:
    asked = str(options.resume_from_checkpoint)
    if asked.lower() not in ("true", "last"):
        if not Path(asked).is_dir():
            raise ConfigError(f"resume_from_checkpoint: there is no folder {asked}; 'last' takes the newest one")
        if Path(asked).resolve().parent != options.output_dir.resolve():
            raise ConfigError(
                f"resume_from_checkpoint {asked} is not in output_dir {options.output_dir}, where the run's best "
                "prompt and log are; copy it there, or set output_dir to its folder"
            )
        return Path(asked)
    found = checkpoints(options.output_dir)
    if not found:
        raise ConfigError(
            f"resume_from_checkpoint: there is no checkpoint in {options.output_dir} to resume from; "
            "omit the option to start a new run"
        )
    return found[-1]


def _clear(folder: Path) -> None:
    """Remove the files of an older run; other files stay.

    Names alone do not tell: a folder without a run may also have a ``metrics.json``.
    """
    marks = (WEIGHTS_NAME, STATE_NAME, OPTIONS_NAME)
    if not checkpoints(folder) and not any((folder / name).is_file() for name in marks):
        return
    for name in RUN_FILES:
        (folder / name).unlink(missing_ok=True)
    for checkpoint in checkpoints(folder):
        shutil.rmtree(checkpoint)
