"""What the scheduler is asked to do: a row of a mixed batch, and what its result means to a client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor

from ..inference.library import PromptLibrary
from ..inference.library_adapter import Adapter
from ..inference.mixed_rows import LabelRow, MixedRow, StatesRow, TextRow
from ..inference.probe import middle_layers
from ..inference.sampling import Sampling
from ..inference.text_stream import Delta
from ..types import Example


@dataclass(frozen=True, eq=False)
class LabelJob:
    """Classify a text. The result is the probability of each label, in the order of ``adapter.task.labels``."""

    adapter: Adapter
    example: Example

    def row(self, library: PromptLibrary) -> MixedRow:
        """The row of the batch."""
        assert self.adapter.classes is not None
        return LabelRow(library.prompt(self.adapter), self.adapter.classes, self.example)

    def result(self, log_probs: Tensor) -> list[float]:
        """The result, from that of the row."""
        probabilities: list[float] = log_probs.float().softmax(0).tolist()
        return probabilities


@dataclass(frozen=True, eq=False)
class StatesJob:
    """Embed a text. The result is a unit vector ``[D]``: the mean hidden state of the linear probe's layers.

    An adapter without a linear probe, and the base model (``None``), use the layers that a probe would have.
    """

    adapter: Adapter | None
    example: Example

    def row(self, library: PromptLibrary) -> MixedRow:
        """The row of the batch."""
        return StatesRow(None if self.adapter is None else library.prompt(self.adapter), self.example.input_ids)

    def result(self, states: Tensor) -> list[float]:
        """The result, from that of the row ``[layers, D]``."""
        probe = self.adapter and self.adapter.loaded.linear_probe
        layers = probe.layers if probe else middle_layers(len(states))
        vector: list[float] = F.normalize(states[layers].float().mean(0), dim=0).tolist()
        return vector


@dataclass(frozen=True, eq=False)
class TextJob:
    """Continue a text, under an adapter's prompt or with the base model alone. The result is a ``Completion``.

    ``on_delta`` is called with new text as it is generated, in the scheduler's thread.
    """

    adapter: Adapter | None
    input_ids: tuple[int, ...]
    sampling: Sampling
    on_delta: Callable[[Delta], None] | None = None

    def row(self, library: PromptLibrary) -> MixedRow:
        """The row of the batch."""
        return TextRow(None if self.adapter is None else library.prompt(self.adapter), self.input_ids)

    @property
    def most_tokens(self) -> int:
        """Most tokens that the row may have, virtual and new ones included."""
        virtual = 0 if self.adapter is None else len(self.adapter.loaded.model.prompt)
        return virtual + len(self.input_ids) + self.sampling.max_new_tokens


Job: TypeAlias = LabelJob | StatesJob | TextJob


def num_tokens(job: Job) -> int:
    """Tokens of a job's text."""
    return len(job.input_ids if isinstance(job, TextJob) else job.example.input_ids)
