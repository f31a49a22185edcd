"""Records of a run: epochs, trainer state, metrics, log lines. Model cards and plots are made from these alone.

The files are plain JSON: a number that is not finite is written as ``null``, since other readers refuse ``NaN``.
Each field, and each item of a list of lists or objects, has its own line, so a confusion matrix reads as a table and
two runs can be compared with ``diff``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TypeVar

from .atomic import atomic_path, read_json, write_text
from .validation import validated

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

STATE_NAME = "trainer_state.json"
PROBE_NAME, ENSEMBLE_NAME = "linear_probe.safetensors", "ensemble.safetensors"
"""Files beside the adapter's weights; PEFT ignores them."""
OLD_PROBE_NAME = "readout.safetensors"  # old name
"""Name of the linear probe's file in version 0.1; still read."""
CLASSIFIER_FILES = (PROBE_NAME, OLD_PROBE_NAME, ENSEMBLE_NAME)
METRICS_NAME = "metrics.json"
TRAIN_METRICS_NAME = "train_metrics.json"  # metrics.json of training, once evaluate has written its own
LOG_NAME = "log.jsonl"
OPTIONS_NAME = "train_config.yaml"
LOSS_PICTURE = "training_loss.png"
CONFUSION_PICTURE = "confusion_matrix.png"
_MAX_BYTES = 64 << 20  # enough for a long history, or the confusion matrix of a thousand labels

RecordT = TypeVar("RecordT", bound="DataclassInstance")


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One line of the training table; losses are nats per supervised token, ``None`` if not measured."""

    epoch: float
    step: int  # optimiser steps done
    learning_rate: float
    train_loss: float | None = None
    eval_loss: float | None = None
    accuracy: float | None = None
    macro_f1: float | None = None
    seconds: float = 0.0  # this epoch alone, validation included

    @property
    def train_perplexity(self) -> float | None:
        """``exp(train_loss)``, infinity where that overflows."""
        if self.train_loss is None:
            return None
        return math.inf if self.train_loss > 709 else math.exp(self.train_loss)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialEpoch:
    """Sums over the steps of the epoch in progress, for a checkpoint in the middle of an epoch."""

    loss_sum: float = 0.0  # nats
    num_tokens: int = 0  # supervised
    seconds: float = 0.0

    def plus(self, loss: float, num_tokens: int, seconds: float) -> PartialEpoch:
        """The sums after a step with a mean ``loss`` over ``num_tokens``, ``seconds`` into the epoch."""
        return PartialEpoch(
            loss_sum=self.loss_sum + loss * num_tokens, num_tokens=self.num_tokens + num_tokens, seconds=seconds
        )

    @property
    def loss(self) -> float:
        """Mean loss per supervised token."""
        return self.loss_sum / self.num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerState:
    """Progress and history of a run: ``trainer_state.json``."""

    global_step: int
    epoch: float
    max_steps: int
    num_train_epochs: int
    best_metric: float | None = None
    metric_for_best_model: str | None = None
    best_step: int | None = None
    best_model_checkpoint: str | None = None
    history: tuple[EpochRecord, ...] = ()
    finished: bool = False
    seconds: float = 0.0  # of training, over all resumed parts
    num_train_examples: int | None = None
    fingerprint: str | None = None  # of rows and options; None in files of older releases
    tested: bool | None = None  # whether the run wrote metrics.json; None in files of older releases
    partial_epoch: PartialEpoch | None = None  # None at the end of an epoch

    def to_dict(self) -> dict[str, Any]:
        """Plain values as in the file (``None`` for a number that is not finite)."""
        return _plain(self)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``trainer_state.json`` into ``folder``."""
        _write(Path(folder, STATE_NAME), self.to_dict())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> TrainerState:
        """Read ``trainer_state.json`` of ``folder``; unknown keys are ignored.

        Raises:
            SoftPromptError: the file is missing or is not JSON.
            AdapterError: a field is missing or has the wrong type.
        """
        return _read(cls, Path(folder, STATE_NAME))


_TABLES = ("confusion_matrix", "labels", "per_class", "baselines")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Metrics:
    """Scores on one set of rows: ``metrics.json``. Fields that do not apply to the kind of task are ``None``.

    Attributes:
        accuracy: share of rows whose label is predicted correctly.
        macro_f1: mean F1 over all labels.
        eval_loss: mean loss in nats per supervised token.
        perplexity: its exponential; ``None`` in the file where that overflows.
        num_examples: rows scored.
        examples_per_second: rows scored per second.
        confusion_matrix: counts ``[C, C]``; a row per true label.
        labels: the C labels, in the order of the matrix.
        per_class: label, precision, recall, f1 and support, one mapping per label.
        expected_calibration_error: mean difference between confidence and accuracy, 0..1.
        exact_match: share of generated texts that equal the reference (or its answer, after a mark such as ``####``).
        rouge_l, bleu: overlap of generated texts with references, 0..1.
        baselines: name -> accuracy, macro_f1, eval_loss (and exact_match) of the methods to compare with.
        split: name of the rows: ``test``, ``validation``, ...
    """

    num_examples: int
    accuracy: float | None = None
    macro_f1: float | None = None
    eval_loss: float | None = None
    perplexity: float | None = None
    examples_per_second: float | None = None
    confusion_matrix: tuple[tuple[int, ...], ...] | None = None
    labels: tuple[str, ...] | None = None
    per_class: tuple[Mapping[str, Any], ...] | None = None
    expected_calibration_error: float | None = None
    exact_match: float | None = None
    rouge_l: float | None = None
    bleu: float | None = None
    baselines: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    split: str = "test"

    def __repr__(self) -> str:
        """The scores; tables (confusion matrix, classes, baselines) are left out."""
        shown = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in _TABLES}
        scores = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v!r}" for k, v in shown.items() if v is not None)
        return f"Metrics({', '.join(scores)})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values as in the file (``None`` for a number that is not finite)."""
        return _plain(self)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``metrics.json`` into ``folder``."""
        _write(Path(folder, METRICS_NAME), self.to_dict())

    @classmethod
    def load(cls, folder: str | os.PathLike[str], name: str = METRICS_NAME) -> Metrics:
        """Read ``metrics.json``, or ``name``, of ``folder``; unknown keys are ignored.

        Raises:
            SoftPromptError: the file is missing or is not JSON.
            AdapterError: a field is missing or has the wrong type.
        """
        return _read(cls, Path(folder, name))


class LogWriter:
    """Appends JSON lines to ``log.jsonl``; each is handed to the operating system before ``write`` returns.

    Args:
        folder: folder of the log, created if need be.
        resume_step: ``None`` starts a new log. With a step number, lines after that step, and a line that a crash cut
            off, are removed in one atomic write, and new lines follow.
    """

    def __init__(self, folder: str | os.PathLike[str], *, resume_step: int | None = None) -> None:
        path = Path(folder, LOG_NAME)
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume_step is not None and path.is_file():
            _drop_after(path, resume_step)
        mode = "w" if resume_step is None else "a"
        self._file: IO[str] = open(path, mode, encoding="utf-8", newline="\n")  # noqa: SIM115 (see close)

    def write(self, *, step: int, **values: Any) -> None:
        """Append one line: the step (optimiser steps done) and any JSON values."""
        line = json.dumps(_finite({"step": step, **values}), ensure_ascii=False, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; it may be closed already."""
        self._file.close()

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _drop_after(path: Path, last_step: int) -> None:
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="\n") as kept,
        open(path, encoding="utf-8", errors="replace", newline="\n") as lines,
    ):
        kept.writelines(line for line in lines if _is_upto(line, last_step))


def _is_upto(line: str, last_step: int) -> bool:
    """Whether ``line`` is complete and not of a later step."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return False
    step = values.get("step") if isinstance(values, dict) else None
    return line.endswith("\n") and not (isinstance(step, int | float) and step > last_step)


def _plain(record: DataclassInstance) -> dict[str, Any]:
    values: dict[str, Any] = _finite(asdict(record))
    return values


def _finite(value: Any) -> Any:
    """``value`` with tuples as lists and with ``None`` for each number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _write(path: Path, values: Mapping[str, Any]) -> None:
    fields = ",\n".join(f"  {json.dumps(key)}: {_field(value)}" for key, value in values.items())
    write_text(path, "{\n" + fields + "\n}\n")


def _field(value: Any) -> str:
    """JSON of one field: a line per item for a list of lists or objects, else one line."""
    if isinstance(value, list) and value and isinstance(value[0], list | dict):
        items = ",\n".join("    " + json.dumps(item, ensure_ascii=False, allow_nan=False) for item in value)
        return f"[\n{items}\n  ]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _read(cls: type[RecordT], path: Path) -> RecordT:
    return validated(cls, _finite(read_json(path, max_bytes=_MAX_BYTES)), path)
