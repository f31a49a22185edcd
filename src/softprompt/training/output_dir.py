"""The output folder of a run: what may be there before, and clearing it of an older run's files only."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..config.adapter_config import CONFIG_NAME
from ..config.options import TrainOptions
from ..data.task import TASK_NAME
from ..errors import ConfigError
from ..storage.adapter import START_NAME, WEIGHTS_NAME
from ..storage.record import (
    CONFUSION_PICTURE,
    ENSEMBLE_NAME,
    LOG_NAME,
    LOSS_PICTURE,
    METRICS_NAME,
    OLD_PROBE_NAME,
    OPTIONS_NAME,
    PROBE_NAME,
    STATE_NAME,
    TRAIN_METRICS_NAME,
)
from .checkpoint import checkpoints

RUN_FILES = (
    WEIGHTS_NAME,
    CONFIG_NAME,
    START_NAME,
    PROBE_NAME,
    OLD_PROBE_NAME,
    ENSEMBLE_NAME,
    TASK_NAME,
    OPTIONS_NAME,
    STATE_NAME,
    METRICS_NAME,
    TRAIN_METRICS_NAME,
    LOG_NAME,
    LOSS_PICTURE,
    CONFUSION_PICTURE,
)

_FALSE_START = {START_NAME, OPTIONS_NAME, LOG_NAME}
"""All that a run has written before its first checkpoint: nothing that anybody would miss."""


def check_output_dir(options: TrainOptions) -> Path | None:
    """Check what is in the output folder, and whether one can be there; nothing is removed yet.

    Returns:
        The checkpoint to resume from, if any.

    Raises:
        ConfigError: it is a file, holds a run or files that nobody asked to replace, or has no checkpoint to
            resume.
    """
    folder = options.output_dir
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir {folder} is a file; give a folder")
    if options.resume_from_checkpoint:
        return _checkpoint(options)
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


def _check_unused(folder: Path) -> None:
    if (folder / WEIGHTS_NAME).exists():
        raise ConfigError(
            f"output_dir {folder} holds a finished run; choose another folder, give --overwrite_output_dir to "
            "replace it, or --resume_from_checkpoint last to go on (with more epochs)"
        )
    if checkpoints(folder):
        raise ConfigError(
            f"output_dir {folder} holds an unfinished run; go on with --resume_from_checkpoint last, "
            "or give --overwrite_output_dir"
        )
    there = [name for name in RUN_FILES if (folder / name).exists()]
    if there and not (START_NAME in there and _FALSE_START.issuperset(there)):
        raise ConfigError(
            f"output_dir {folder} has a {there[0]}, which the run would overwrite; choose another folder, "
            "or give --overwrite_output_dir"
        )


def _checkpoint(options: TrainOptions) -> Path:
    asked = str(options.resume_from_checkpoint)
    if asked.lower() not in ("true", "last"):
        if not Path(asked).is_dir():
            raise ConfigError(f"resume_from_checkpoint: there is no folder {asked}; 'last' takes the newest one")
        if Path(asked).resolve().parent != options.output_dir.resolve():
            raise ConfigError(
                f"resume_from_checkpoint {asked} does not lie in output_dir {options.output_dir}, where the run's "
                "best prompt and log are; copy it there, or give the output_dir that it is in"
            )
        return Path(asked)
    found = checkpoints(options.output_dir)
    if not found:
        raise ConfigError(
            f"resume_from_checkpoint: there is no checkpoint in {options.output_dir} to resume from; "
            "leave the option out to start anew"
        )
    return found[-1]


def _clear(folder: Path) -> None:
    """Remove an older run's files. What else lies there is not ours, and stays.

    The names alone do not make a file ours: anybody may have a ``metrics.json``.
    """
    marks = (WEIGHTS_NAME, STATE_NAME, OPTIONS_NAME)
    if not checkpoints(folder) and not any((folder / name).is_file() for name in marks):
        return
    for name in RUN_FILES:
        (folder / name).unlink(missing_ok=True)
    for checkpoint in checkpoints(folder):
        shutil.rmtree(checkpoint)
