"""Library calls leave the settings of the process alone, also while they run: other threads would see a change."""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import utils as hub_utils
from transformers.utils import logging as transformers_logging

import softprompt
from cli_tools import PATIENCE, SOFTPROMPT, environment, make_base, rows, write_rows
from softprompt.config.options import ModelOptions, TrainOptions
from softprompt.inference.evaluate_adapter import evaluate
from softprompt.inference.pipeline import load
from softprompt.models.loading import load_base
from softprompt.storage.atomic import write_folder, write_text
from softprompt.training.pipeline import train

LONG = "x" * 200_000
"""More characters than Python's csv module takes in a field."""


def settings() -> dict[str, Any]:
    """Settings of the process that libraries are tempted to change."""
    mask = os.umask(0o22)
    os.umask(mask)
    loggers = [log for log in logging.root.manager.loggerDict.values() if isinstance(log, logging.Logger)]
    return {
        "umask": mask,
        "csv limit": csv.field_size_limit(),
        "log levels": {log.name: (log.level, log.disabled, list(log.filters)) for log in loggers},
        "log handlers": {
            log.name: [(handler.level, list(handler.filters)) for handler in log.handlers] for log in loggers
        },
        "progress bars": (transformers_logging.is_progress_bar_enabled(), hub_utils.are_progress_bars_disabled()),
        "warnings": list(warnings.filters),
        "streams": (sys.stdout, sys.stderr),
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch": (
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
        ),
    }


SETTERS = [
    (os, "umask"),
    (os._Environ, "__setitem__"),
    (os._Environ, "__delitem__"),
    (os._Environ, "setdefault"),
    (os, "chdir"),
    (csv, "field_size_limit"),
    (logging.Logger, "setLevel"),
    (logging, "disable"),
    (contextlib._RedirectStream, "__enter__"),
    (warnings, "filterwarnings"),
    (warnings, "simplefilter"),
    (signal, "signal"),
    (torch, "set_num_threads"),
    (torch, "set_default_dtype"),
    (torch, "use_deterministic_algorithms"),
    (transformers_logging, "set_verbosity_error"),
    (transformers_logging, "disable_progress_bar"),
    (hub_utils, "disable_progress_bars"),
]
STANDARD = {os.__file__, contextlib.__file__, os._Environ.update.__code__.co_filename}
"""Modules through which a setting may be changed: the caller is above them."""


@contextlib.contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Calls from softprompt's own code that change a setting, even for a moment."""
    calls: list[str] = []

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1)
            while caller.f_back and caller.f_code.co_filename in STANDARD:
                caller = caller.f_back
            if f"{os.sep}softprompt{os.sep}" in caller.f_code.co_filename:
                calls.append(f"{name} by {caller.f_code.co_filename}:{caller.f_lineno}")
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for owner, name in SETTERS:
            patch.setattr(owner, name, watched(name, getattr(owner, name)))
        yield calls


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("settings")
    make_base(place / "base")
    write_rows(place / "train.csv", rows(8))
    write_rows(place / "test.csv", [*rows(4, 8), {"id": "12", "text": f"good {LONG}", "label": "no"}])
    return place


@pytest.fixture(scope="module")
def adapter(place: Path) -> Path:
    files = {"train_file": place / "train.csv", "test_file": place / "test.csv", "output_dir": place / "run"}
    options = TrainOptions(model_name_or_path=str(place / "base"), num_train_epochs=1, num_virtual_tokens=3, **files)
    train(options)
    return place / "run"


def trains(place: Path, adapter: Path) -> None:
    files = {"train_file": place / "train.csv", "test_file": place / "test.csv", "output_dir": place / "again"}
    options = {"num_train_epochs": 1, "num_virtual_tokens": 3, "save_strategy": "epoch", "overwrite_output_dir": True}
    train(TrainOptions(model_name_or_path=str(place / "base"), **files, **options))


def loads(place: Path, adapter: Path) -> None:
    classifier = load(adapter, device="cpu")
    classifier.predict(["good", "bad"])
    classifier.generate(["good"], max_new_tokens=2)
    evaluate(classifier, place / "test.csv")


def loads_as_peft_does(place: Path, adapter: Path) -> None:
    model = softprompt.AutoPeftModelForCausalLM.from_pretrained(adapter, is_trainable=True)
    model(torch.tensor([[5, 6]]), labels=torch.tensor([[5, 6]])).loss.backward()
    model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, pad_token_id=0)
    model.save_pretrained(place / "saved")


def fails(place: Path, adapter: Path) -> None:
    (place / "damaged").mkdir(exist_ok=True)
    (place / "damaged" / "config.json").write_text("{")
    with pytest.raises(softprompt.BaseModelError):
        load_base(ModelOptions(model_name_or_path=str(place / "damaged"), device="cpu"))
    with pytest.raises(softprompt.BaseModelError):
        load_base(ModelOptions(model_name_or_path="nobody/absent", device="cpu"))
    with pytest.raises(softprompt.AdapterError):
        softprompt.PeftConfig.from_pretrained("nobody/absent")


@pytest.mark.parametrize("call", [trains, loads, loads_as_peft_does, fails])
def test_settings_of_the_process_stay(
    call: Callable[[Path, Path], None], place: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set to values that a change back to the defaults would not restore."""
    monkeypatch.setattr(warnings, "filters", [("ignore", None, ResourceWarning, None, 7), *warnings.filters])
    usual = csv.field_size_limit(1234)
    mask = os.umask(0o27)
    levels = [(log, log.get_verbosity()) for log in (transformers_logging, hub_utils.logging)]
    for log, _ in levels:
        log.set_verbosity(logging.CRITICAL)
    call(place, adapter)  # imports everything that it needs
    try:
        before = settings()
        with recorded(monkeypatch) as changes:
            call(place, adapter)
        after = settings()
    finally:
        csv.field_size_limit(usual)
        os.umask(mask)
        for log, level in levels:
            log.set_verbosity(level)
    assert not changes, "\n".join(changes)
    assert after == before


def test_the_recorder_finds_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded(monkeypatch) as changes:
        exec(compile("import os; os.umask(os.umask(0o22))", f"{os.sep}softprompt{os.sep}module.py", "exec"))
    assert [line.partition(" by ")[0] for line in changes] == ["umask", "umask"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_written_files_and_folders_have_the_usual_permissions(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "file", "new")
        write_folder(tmp_path / "folder", lambda folder: write_text(folder / "inside", "new"))
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask


def test_the_command_line_is_quiet(adapter: Path) -> None:
    """It sets what libraries read when they are imported; here without the variables that the tests set."""
    quiet = ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")
    env = {name: value for name, value in environment().items() if name not in quiet}
    command = [str(SOFTPROMPT), "predict", "--adapter", str(adapter), "--text", "good", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=env, check=False)
    assert (done.returncode, done.stderr) == (0, "")
