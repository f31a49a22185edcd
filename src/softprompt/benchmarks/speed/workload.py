"""The interfaces of the speed benchmark: a workload, and the implementations that are compared on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from .base_models import load_models, twin
from .inputs import read_inputs
from .settings import SpeedOptions

NUM_BATCHES = 4
"""Number of different batches that the rounds cycle through."""

FLOAT32_TOLERANCE, COARSE_TOLERANCE = 1e-2, 0.2
"""Largest relative difference that rounding explains, in float32 and in 16-bit dtypes."""

COMPARED_ROWS = 8
"""Rows that warm up an implementation, and that are also computed one by one for comparison."""


class Implementation(ABC):
    """One way to compute a workload."""

    def prepare(self, batch: Sequence[Any]) -> Any:
        """Prepare a batch; not timed."""
        return batch

    @abstractmethod
    def run(self, prepared: Any) -> Any:
        """Compute a prepared batch; timed."""


class Workload(ABC):
    """What is measured: a model, batches of rows, and implementations.

    Attributes:
        base: the model of softprompt's implementations.
        stock: the model of PEFT's implementations; it shares its weights with ``base``.
        alone: the model that computes rows one by one for comparison; it shares its weights with ``base``.
        batches: batches of rows; the rounds cycle through them.
        num_batches: how many batches of ``per_device_train_batch_size`` rows are read.
        min_tokens: rows with shorter texts are left out.
    """

    name: str
    num_batches = NUM_BATCHES
    min_tokens = 0

    def __init__(self, options: SpeedOptions) -> None:
        torch.set_num_threads(options.num_threads)
        self.options = options
        self.base, self.tokenizer = load_models(options)
        self.stock, self.alone = twin(self.base).eval(), twin(self.base).eval()
        self.device = self.base.get_input_embeddings().weight.device
        rows = self.num_batches * options.per_device_train_batch_size
        self.inputs = read_inputs(options, self.tokenizer, self.base, rows, self.min_tokens)
        self.batches = self.make_batches()

    def make_batches(self) -> list[Any]:
        """The batches that the rounds cycle through."""
        return list(self.inputs.batches(self.options.per_device_train_batch_size, self.num_batches))

    @property
    def tolerance(self) -> float:
        """Largest relative difference from rows computed one by one with which a measurement is valid."""
        return FLOAT32_TOLERANCE if self.base.dtype == torch.float32 else COARSE_TOLERANCE

    @abstractmethod
    def make_implementation(self, name: str) -> Implementation:
        """An implementation by name.

        Raises:
            MissingExtraError: PEFT is not installed.
        """

    @abstractmethod
    def agreement(self, implementations: dict[str, Implementation]) -> dict[str, Any]:
        """Differences between softprompt's results and those of rows computed one by one (``plain_forward.py``).

        Raises:
            TrainingError: a difference is larger than the tolerance.
        """

    def close(self) -> None:  # noqa: B027
        """Stop what was started."""

    def after_round(self) -> None:  # noqa: B027 - most workloads have nothing to add
        """Measure something else, once per round."""

    def more(self, times: Sequence[float]) -> dict[str, Any]:
        """Further figures.

        Args:
            times: seconds of softprompt's turns, the first on the first batch.
        """
        return {}
