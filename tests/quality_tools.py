"""A benchmark in a folder: a tiny base model, two small tasks of words, and the YAML file over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cli_tools import make_base, rows, write_rows
from softprompt.benchmarks.quality.methods.method import MethodContext, SharedBase
from softprompt.benchmarks.quality.results import Predictions
from softprompt.benchmarks.quality.specification import QualityOptions, TaskOptions, read_spec
from softprompt.benchmarks.quality.task_data import TaskData, read_task


def make_place(folder: Path) -> Path:
    """Write base model and rows."""
    make_base(folder / "base")
    write_rows(folder / "train.jsonl", rows(24))
    write_rows(folder / "test.jsonl", rows(15, 24))
    return folder


def values(place: Path, **changes: Any) -> dict[str, Any]:
    """The content of a YAML file: one task with four methods that take no time."""
    task = {"train_file": str(place / "train.jsonl"), "test_file": str(place / "test.jsonl"), "labels": ["no", "yes"]}
    given = {
        "output_dir": str(place / "out"),
        "model_name_or_path": str(place / "base"),
        "tasks": {"words": task},
        "methods": ["majority", "knn"],
        "shots": [8],
        "seeds": [0, 1],
    }
    return {name: value for name, value in {**given, **changes}.items() if value is not None}


def write_config(place: Path, **changes: Any) -> Path:
    """Write the YAML file."""
    path = place / "quality.yaml"
    path.write_text(yaml.safe_dump(values(place, **changes), sort_keys=False))
    return path


def make_spec(place: Path, **changes: Any) -> QualityOptions:
    """The options that the YAML file gives."""
    return read_spec(write_config(place, **changes))


def make_data(place: Path, most: int | None = None, **changes: Any) -> TaskData:
    """The rows of the one task."""
    return read_task("words", TaskOptions(**{**values(place)["tasks"]["words"], **changes}), most)


def make_context(place: Path, **changes: Any) -> MethodContext:
    """The one task on the tiny base."""
    return MethodContext(make_data(place, **changes), SharedBase(make_spec(place)))


def answers(gold: str, guesses: str, labels: str = "ab") -> Predictions:
    """Predictions written as letters: ``answers("aabb", "abbb")``."""
    right, guessed = ([labels.index(letter) for letter in word] for word in (gold, guesses))
    return Predictions(tuple(labels), tuple(right), tuple(guessed), (0.5,) * len(gold), (-0.5,) * len(gold))
