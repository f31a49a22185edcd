"""Taking turns, the clock, and memory: what all subjects share."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...errors import TrainingError
from ..quiet import quiet
from .inputs import read_work
from .models import load_models, twin
from .names import DROP_IN, GUIDE, KEY_PREFIX, OURS, PEFT_BEST, PEFT_GUIDE, PREFIX, TITLES
from .settings import BenchOptions

Progress = Callable[[str], None]

BATCHES = 4
"""Batches of different rows that the rounds go through."""

COARSE = 0.2
"""Relative difference that the rounding of 16-bit numbers explains; 1e-2 that of float32."""

COMPARED_ROWS = 8
"""Rows that warm a side up, and that are computed alone to compare with."""


class Side(ABC):
    """One way to do the work."""

    def prepare(self, batch: Sequence[Any]) -> Any:
        """What lies ready before the clock starts."""
        return batch

    @abstractmethod
    def run(self, prepared: Any) -> Any:
        """What is timed."""


class Subject(ABC):
    """What is measured: a model, batches of rows, and the sides that work on them.

    Attributes:
        base: what our sides run on.
        stock: what PEFT's sides run on; the same weights in memory.
        alone: what the rows alone run on; the same weights.
        batches: of rows; the rounds go through them.
        num_batches: batches of ``per_device_train_batch_size`` rows that are read.
        least_tokens: rows with shorter texts are left out.
    """

    name: str
    num_batches = BATCHES
    least_tokens = 0

    def __init__(self, options: BenchOptions) -> None:
        torch.set_num_threads(options.num_threads)
        self.options = options
        self.base, self.tokenizer = load_models(options)
        self.stock, self.alone = twin(self.base).eval(), twin(self.base).eval()
        self.device = self.base.get_input_embeddings().weight.device
        rows = self.num_batches * options.per_device_train_batch_size
        self.work = read_work(options, self.tokenizer, self.base, rows, self.least_tokens)
        self.batches = self.lay_out()

    def lay_out(self) -> list[Any]:
        """The batches that the rounds go through."""
        return list(self.work.batches(self.options.per_device_train_batch_size, self.num_batches))

    @property
    def tolerance(self) -> float:
        """Largest relative difference from the rows alone with which a speed means something."""
        return 1e-2 if self.base.dtype == torch.float32 else COARSE

    @abstractmethod
    def make_side(self, name: str) -> Side:
        """A side by name.

        Raises:
            MissingExtraError: PEFT is not installed.
        """

    @abstractmethod
    def agreement(self, sides: dict[str, Side]) -> dict[str, Any]:
        """How far our results are from those of each row alone (``reference.py``).

        Raises:
            TrainingError: so far that speed would mean nothing.
        """

    def after_round(self) -> None:  # noqa: B027 - most subjects have nothing to add
        """Something else to measure in turn with the sides."""

    def more(self, times: Sequence[float]) -> dict[str, Any]:
        """Further figures, from the seconds of our turns, the first on the first batch."""
        return {}


def side_names(options: BenchOptions, subject: str) -> list[str]:
    """The sides to measure in turn; ``suffix`` and ``classes`` have a baseline of our own, even without PEFT."""
    names = list(TITLES[subject])
    return [name for name in names if name in (PREFIX, GUIDE, OURS)] if options.against == "none" else names


def measure(subject: Subject, progress: Progress) -> dict[str, Any]:
    """Measure the speed of all sides of a subject.

    Returns:
        Rows per second of each side (medians), their ratios, spreads, agreement.
    """
    options = subject.options
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of position ids at each token that transformers' generate makes
        sides = {name: subject.make_side(name) for name in side_names(options, subject.name)}
        progress("comparing with each row alone")
        agreement = subject.agreement(sides)
        times = _in_turns(subject, sides, progress)
    result = {
        "subject": subject.name,
        "model": options.shape or options.model_name_or_path,
        "num_virtual_tokens": options.num_virtual_tokens,
        "per_device_train_batch_size": options.per_device_train_batch_size,
        "rows_per_batch": len(subject.batches[0]),
        "rounds": options.rounds,
        "num_threads": options.num_threads,
        "dtype": str(subject.base.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(subject.device) if subject.device.type == "cuda" else subject.device.type,
        **speeds(len(subject.batches[0]), times),
        **agreement,
        **subject.more(times[OURS]),
    }
    if options.text_tokens is not None:
        result["text_tokens"] = options.text_tokens
    return result


def _in_turns(subject: Subject, sides: dict[str, Side], progress: Progress) -> dict[str, list[float]]:
    """Seconds of each turn: every round, each side does the same batch, after a few rows to warm up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side.run(side.prepare(subject.batches[0][:COMPARED_ROWS]))
    for number in range(subject.options.rounds):
        progress(f"round {number + 1} of {subject.options.rounds}")
        batch = subject.batches[number % len(subject.batches)]
        # Each side finds the memory as the one before it has left it: there and back again is fair.
        for name, side in reversed(sides.items()) if number % 2 else sides.items():
            times[name].append(seconds_of(side.run, side.prepare(batch), subject.device))
        subject.after_round()
    return times


def seconds_of(run: Callable[[Any], Any], given: Any, device: torch.device) -> float:
    """Seconds that ``run(given)`` takes, until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run(given)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def speeds(rows: int, times: dict[str, list[float]]) -> dict[str, Any]:
    """Rows per second (of the median turn), ratios and spreads."""
    speed = {name: rows / statistics.median(seconds) for name, seconds in times.items()}
    found: dict[str, Any] = {f"{KEY_PREFIX[name]}rows_per_second": value for name, value in speed.items()}
    for name in (OURS, DROP_IN):
        for other in (PEFT_GUIDE, PEFT_BEST, PREFIX, GUIDE):
            if name in speed and other in speed:
                versus = KEY_PREFIX[other].rstrip("_")
                found[f"{KEY_PREFIX[name]}speedup_vs_{versus}"] = speed[name] / speed[other]
    found["spread"] = {name: spread(seconds) for name, seconds in times.items()}
    return found


def spread(times: Sequence[float]) -> float:
    """Half the distance between the quartiles, relative to the median."""
    if len(times) < 4:
        return (max(times) - min(times)) / 2 / statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4)
    return (high - low) / 2 / statistics.median(times)


def peaks(subject: str, options: BenchOptions, progress: Progress) -> dict[str, Any]:
    """Peak memory of our side and of what it is compared with, each in a process of its own, weights included."""
    own = _peak_in_own_process(subject, OURS, options, progress)
    found: dict[str, Any] = {"peak_memory_bytes": own}
    sides = side_names(options, subject)
    others = (PEFT_GUIDE, "peft", "memory_ratio"), *((n, n, f"memory_ratio_vs_{n}") for n in (PREFIX, GUIDE))
    for other, key, ratio in others:
        if other in sides:
            peak = _peak_in_own_process(subject, other, options, progress)
            found |= {f"{key}_peak_memory_bytes": peak, ratio: own / peak}
    return found


def _peak_in_own_process(subject: str, side: str, options: BenchOptions, progress: Progress) -> int:
    """Peak resident memory in bytes of a process that loads the model and does each batch once."""
    progress(f"memory of {side}")
    values = json.dumps({"subject": subject, "side": side, "options": options.model_dump(mode="json")})
    command = [sys.executable, "-m", "softprompt.benchmarks.speed.memory"]
    done = subprocess.run(command, input=values, text=True, capture_output=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise TrainingError(f"measuring the memory of {side} failed: {reason}")
    return int(done.stdout.strip().splitlines()[-1])
