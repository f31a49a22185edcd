"""The interface of all methods, and what they share: the base model and the task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from ....config.options import ModelOptions
from ....data.task import Task
from ....data.tokenize import Encoder
from ....models.families import context_length
from ....models.loading import Base, load_base
from ....training.prompt_init import default_init_text
from ....types import Row
from ..task_data import TaskData
from .hidden_states import HiddenStates


@dataclass(frozen=True)
class FittedScores:
    """The result of fitting a method.

    Attributes:
        log_probs: ``[N, C]`` on the CPU, log-probability of each label for each test row, up to a constant per row.
        trained_parameters: how many parameters were fitted to the training rows.
    """

    log_probs: Tensor
    trained_parameters: int


class SharedBase:
    """The base model of a benchmark, loaded on first use and shared by the methods that do not change it."""

    def __init__(self, options: ModelOptions) -> None:
        self.options = ModelOptions(**{name: getattr(options, name) for name in ModelOptions.model_fields})

    @cached_property
    def base(self) -> Base:
        """The shared base model."""
        return load_base(self.options)

    def fresh(self) -> Base:
        """Another copy, which the caller may change."""
        return load_base(self.options)

    @property
    def max_positions(self) -> int | None:
        """Maximum number of positions of the base; ``None`` if unlimited."""
        return context_length(self.base.model.config)

    def encoder(self, task: Task, *, num_virtual_tokens: int = 0, room: int = 0) -> Encoder:
        """An encoder of rows that leaves room for a prompt and for ``room`` tokens after the text."""
        bound = None if self.max_positions is None else self.max_positions - room
        return Encoder(self.base.tokenizer, task, num_virtual_tokens=num_virtual_tokens, context_length=bound)


class MethodContext:
    """A task, the base model, and intermediate results that methods share."""

    def __init__(self, data: TaskData, shared_base: SharedBase) -> None:
        self.data = data
        self.shared_base = shared_base

    @property
    def instruction(self) -> str:
        """The instruction for the model."""
        return self.data.options.instruction or default_init_text(self.data.task)

    @cached_property
    def states(self) -> HiddenStates:
        """Hidden states of texts, computed once per text."""
        task = replace(self.data.task, end_token_id=None)
        return HiddenStates(self.shared_base.base.model, self.shared_base.encoder(task))


class Method(ABC):
    """A classifier of texts: created for a task, then fitted to any number of samples of training rows.

    Attributes:
        context: task and base model.
        given: the given options of the method's kind, validated.
        uses_base: whether it uses the shared base model, which is then loaded before the clock starts.
    """

    uses_base: ClassVar[bool] = True

    def __init__(self, context: MethodContext, options: Mapping[str, Any]) -> None:
        self.context = context
        self.given = dict(options)

    @abstractmethod
    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> FittedScores:
        """Fit to n rows and their label indices, and score the task's N test rows."""
