"""What all methods have in common: their interface, the frozen base, and the task they are made for."""

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
from .features import States


@dataclass(frozen=True)
class Fitted:
    """What a method has come to.

    Attributes:
        log_probs: ``[N, C]`` on the CPU, of each label for each test row; only differences within a row count.
        trained_numbers: how many numbers were learned from the training rows.
    """

    log_probs: Tensor
    trained_numbers: int


class Frozen:
    """The base model of a benchmark, loaded when it is first asked for, and shared by what leaves it as it is."""

    def __init__(self, options: ModelOptions) -> None:
        self.options = ModelOptions(**{name: getattr(options, name) for name in ModelOptions.model_fields})

    @cached_property
    def base(self) -> Base:
        """The shared one."""
        return load_base(self.options)

    def fresh(self) -> Base:
        """One of one's own, to change."""
        return load_base(self.options)

    @property
    def context(self) -> int | None:
        """The most positions of the base; ``None`` where there is no bound."""
        return context_length(self.base.model.config)

    def encoder(self, task: Task, *, num_virtual_tokens: int = 0, room: int = 0) -> Encoder:
        """An encoder of rows that leaves room for a prompt, and for ``room`` tokens behind the text."""
        bound = None if self.context is None else self.context - room
        return Encoder(self.base.tokenizer, task, num_virtual_tokens=num_virtual_tokens, context_length=bound)


class Work:
    """A task on a base, with what methods share while they work on it."""

    def __init__(self, data: TaskData, frozen: Frozen) -> None:
        self.data = data
        self.frozen = frozen

    @property
    def instruction(self) -> str:
        """What to do, in words."""
        return self.data.options.instruction or default_init_text(self.data.task)

    @cached_property
    def states(self) -> States:
        """Hidden states of texts, each computed once."""
        task = replace(self.data.task, end_token_id=None)
        return States(self.frozen.base.model, self.frozen.encoder(task))


class Method(ABC):
    """A way to label texts; made for a task, fitted to any number of drawn rows.

    Attributes:
        work: task and base.
        given: options of the method's kind, checked; those that are absent have their defaults.
        uses_base: whether the base is needed; it is then loaded before the clock starts.
    """

    uses_base: ClassVar[bool] = True

    def __init__(self, work: Work, options: Mapping[str, Any]) -> None:
        self.work = work
        self.given = dict(options)

    @abstractmethod
    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> Fitted:
        """Learn from rows ``[n]`` and the indices of their labels ``[n]``, and score the task's test rows."""
