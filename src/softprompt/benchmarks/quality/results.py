"""Cells and where they are kept: one line of ``scores.csv`` each, with its predictions in a file beside it. No torch.

A line is written, whole and to the disk, when its cell is finished; what stands there is not measured again.
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
_MOST_BYTES = 1 << 28


@dataclass(frozen=True, order=True)
class Key:
    """What tells one cell from another."""

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
class Cell:
    """A finished cell: a line of the CSV.

    Attributes:
        macro_f1: mean F1 over all labels of the task, 0 for one never guessed right; 0..1, as ``accuracy``.
        expected_calibration_error: 0..1, over ten bins of confidence.
        log_loss: mean of minus the log-probability of the right label among the labels, in nats.
        seconds: training and scoring.
        trained_numbers: how many numbers the method has learned from the rows.
        settings: fingerprint of rows and options.
        version: of softprompt.
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
    trained_numbers: int
    settings: str
    date: str
    version: str

    @property
    def key(self) -> Key:
        """What tells it from others."""
        return Key(self.task, self.method, self.model, self.shots, self.seed)


@dataclass(frozen=True)
class Predictions:
    """What a cell answered to the test rows, in their order.

    Attributes:
        labels: the C labels.
        gold, guesses: index of the right and of the guessed label, ``[N]``.
        confidences: probability of the guessed label, ``[N]``.
        gold_log_probs: log-probability of the right label, ``[N]`` in nats.
    """

    labels: tuple[str, ...]
    gold: tuple[int, ...]
    guesses: tuple[int, ...]
    confidences: tuple[float, ...]
    gold_log_probs: tuple[float, ...]


COLUMNS = tuple(field.name for field in fields(Cell))
_TYPES: dict[str, Any] = get_type_hints(Cell)


def read_cells(folder: Path) -> dict[Key, Cell]:
    """The finished cells of a folder; none where there is no CSV yet. A line that a crash cut off is removed.

    Raises:
        DataError: the CSV has other columns, or a line that does not fit them.
    """
    path = folder / SCORES
    if not path.exists():
        return {}
    _drop_torn_line(path)
    cells: dict[Key, Cell] = {}
    with open(path, encoding="utf-8", newline="") as handle:
        reader = csv.reader(handle)
        header = next(reader, None)
        if header is not None and tuple(header) != COLUMNS:
            raise DataError(f"{path} has other columns than those of this version; give another output_dir")
        for line in reader:
            cell = _cell(line, f"{path}, line {reader.line_num}")
            cells[cell.key] = cell
    return cells


def append_cell(folder: Path, cell: Cell, predictions: Predictions) -> None:
    """Write the predictions, then the line that says the cell is finished, each to the disk before going on."""
    compact = json.dumps(asdict(predictions), separators=(",", ":"), ensure_ascii=False)
    write_text(folder / PREDICTIONS / cell.key.file_name, compact + "\n")
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    path = folder / SCORES
    if not path.exists() or not path.stat().st_size:
        writer.writerow(COLUMNS)
    writer.writerow(asdict(cell).values())
    with open(path, "a", encoding="utf-8", newline="") as handle:
        handle.write(line.getvalue())
        handle.flush()
        os.fsync(handle.fileno())


def read_predictions(folder: Path, key: Key) -> Predictions | None:
    """The predictions of a cell; ``None`` where the file is absent.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / PREDICTIONS / key.file_name
    if not path.is_file():
        return None
    values = read_json(path, max_bytes=_MOST_BYTES)
    try:
        found = Predictions(**{field.name: tuple(values[field.name]) for field in fields(Predictions)})
        indices = {*found.gold, *found.guesses}
        if len(found.gold) != len(found.guesses) or not indices <= set(range(len(found.labels))):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path} is damaged; remove it and its line of {SCORES} to measure the cell again") from None
    return found


def _drop_torn_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _cell(line: Sequence[str], where: str) -> Cell:
    try:
        values = {name: _TYPES[name](value) for name, value in zip(COLUMNS, line, strict=True)}
    except ValueError:
        raise DataError(f"{where} does not fit the columns; remove the line to measure its cell again") from None
    return Cell(**values)
