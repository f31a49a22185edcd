"""Results and their files: a line of ``scores.csv`` for each, and its predictions in a file of its own. No torch.

A line is written and flushed to disk when its result is complete; a result in the file is not measured again.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from ...errors import DataError
from ...storage.atomic import read_json, write_text

SCORES, PREDICTIONS = "scores.csv", "predictions"
_MAX_BYTES = 1 << 28


@dataclass(frozen=True, order=True)
class ResultKey:
    """What identifies a result."""

    task: str
    method: str
    model: str
    shots: int
    seed: int

    @property
    def file_name(self) -> str:
        """Name of the file of predictions."""
        model = re.sub(r"[^\w.+-]+", "-", self.model).strip("-")
        return f"{self.task}--{self.method}--{model}--{self.shots}--{self.seed}.json"

    def __str__(self) -> str:
        return f"{self.task}, {self.method}, {self.shots} shots, seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """A completed result: one line of the CSV.

    Attributes:
        macro_f1: mean F1 over all labels of the task, 0 for a label without a correct prediction; 0..1, as
            ``accuracy``.
        expected_calibration_error: 0..1, over ten confidence bins.
        log_loss: mean negative log-probability of the correct label among the labels, in nats.
        seconds: time of training and scoring.
        trained_parameters: how many parameters the method has fitted to the training rows.
        settings: fingerprint of rows and options.
        version: version of softprompt.
    """

    task: str
    method: str
    model: str
    shots: int
    seed: int
    macro_f1: float
    accuracy: float
    expected_calibration_error: float
    log_loss: float
    test_rows: int
    seconds: float
    trained_parameters: int
    settings: str
    date: str
    version: str

    @property
    def key(self) -> ResultKey:
        """What identifies it."""
        return ResultKey(self.task, self.method, self.model, self.shots, self.seed)


@dataclass(frozen=True)
class Predictions:
    """The predictions of a method for the N test rows, in their order.

    Attributes:
        labels: the C labels.
        gold, guesses: index of the correct and of the predicted label, ``[N]``.
        confidences: probability of the predicted label, ``[N]``.
        gold_log_probs: log-probability of the correct label, ``[N]``, in nats.
    """

    labels: tuple[str, ...]
    gold: tuple[int, ...]
    guesses: tuple[int, ...]
    confidences: tuple[float, ...]
    gold_log_probs: tuple[float, ...]


COLUMNS = tuple(field.name for field in fields(Result))
RENAMED_COLUMNS = {"trained_numbers": "trained_parameters"}
"""Column names of version 0.1, still read: old name -> new name."""
_TYPES: dict[str, Any] = get_type_hints(Result)


def read_results(folder: Path) -> dict[ResultKey, Result]:
    """The completed results in a folder; none if there is no CSV yet. An incomplete last line is removed.

    Raises:
        DataError: the CSV has other columns, or an invalid line.
    """
    path = folder / SCORES
    if not path.exists():
        return {}
    _drop_incomplete_line(path)
    results: dict[ResultKey, Result] = {}
    with open(path, encoding="utf-8", newline="") as handle:
        reader = csv.reader(handle)
        header = next(reader, None)
        if header is not None and tuple(RENAMED_COLUMNS.get(name, name) for name in header) != COLUMNS:
            raise DataError(f"{path} has other columns than this version writes; give another output_dir")
        for line in reader:
            result = _parse(line, f"{path}, line {reader.line_num}")
            results[result.key] = result
    return results


def append_result(folder: Path, result: Result, predictions: Predictions) -> None:
    """Write the predictions, then the line that marks the result as complete; each is flushed to disk."""
    compact = json.dumps(asdict(predictions), separators=(",", ":"), ensure_ascii=False)
    write_text(folder / PREDICTIONS / result.key.file_name, compact + "\n")
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    path = folder / SCORES
    if not path.exists() or not path.stat().st_size:
        writer.writerow(COLUMNS)
    writer.writerow(asdict(result).values())
    with open(path, "a", encoding="utf-8", newline="") as handle:
        handle.write(line.getvalue())
        handle.flush()
        os.fsync(handle.fileno())


def read_predictions(folder: Path, key: ResultKey) -> Predictions | None:
    """The predictions of a result; ``None`` if the file does not exist.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / PREDICTIONS / key.file_name
    if not path.is_file():
        return None
    values = read_json(path, max_bytes=_MAX_BYTES)
    try:
        found = Predictions(**{field.name: tuple(values[field.name]) for field in fields(Predictions)})
        indices = {*found.gold, *found.guesses}
        if len(found.gold) != len(found.guesses) or not indices <= set(range(len(found.labels))):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path} is damaged; remove it and its line of {SCORES} to measure the result again") from None
    return found


def _drop_incomplete_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _parse(line: Sequence[str], where: str) -> Result:
    try:
        values = {name: _TYPES[name](value) for name, value in zip(COLUMNS, line, strict=True)}
    except ValueError:
        raise DataError(f"{where} does not fit the columns; remove the line to measure its result again") from None
    return Result(**values)
