"""One adapter of a prompt library: its texts as token ids, and the state of its files."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..config.adapter_config import CONFIG_NAME
from ..data.in_memory import fields_of
from ..data.task import TASK_NAME, Task
from ..data.tokenize import Encoder
from ..storage.adapter import WEIGHTS_NAME
from ..storage.record import CLASSIFIER_FILES
from ..types import Example, Row
from .classifier import Classes
from .load_adapter import LoadedAdapter
from .predict import default_max_new_tokens

ENCODERS_KEPT = 16
"""Encoders kept for different numbers of new tokens."""

Fingerprint: TypeAlias = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size and time of the last change (ns) of each of an adapter's files."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter of a prompt library.

    Attributes:
        name: in the library.
        loaded: the adapter; its base model is the library's.
        created: Unix time at which it was loaded.
    """

    name: str
    loaded: LoadedAdapter
    created: float = field(default_factory=time.time)

    @property
    def task(self) -> Task:
        """How rows become text, and the labels."""
        return self.loaded.task

    @functools.cached_property
    def classes(self) -> Classes | None:
        """The classes, with linear probe and ensemble; ``None`` for a generation task."""
        return self.loaded.classes(self._encoder(0))

    @property
    def max_new_tokens(self) -> int:
        """Tokens to generate unless a caller says otherwise."""
        return default_max_new_tokens(self.loaded)

    @functools.cached_property
    def _encoder(self) -> Any:
        return functools.lru_cache(ENCODERS_KEPT)(lambda room: self.loaded.encoder(self.task, room_for_answer=room))

    def encode(self, given: str | Mapping[str, Any], where: str = "the text", *, max_new_tokens: int = 0) -> Example:
        """A text, or the columns of a row, as token ids by the task's template; cut to fit.

        Args:
            given: a text for a task with one text column; else a dictionary of columns.
            where: its origin, for error messages.
            max_new_tokens: tokens that the context must leave for generation.

        Raises:
            ConfigError: the context has no room for ``max_new_tokens``.
            DataError: the text is empty, or a column is missing.
        """
        fields = fields_of(given, self.task.text_columns, self.task.label_column, where)
        self.task.check_text(fields, where)
        encoder: Encoder = self._encoder(max_new_tokens)
        return encoder.encode(Row(fields, where), with_label=False)


def fingerprint(folder: str) -> Fingerprint:
    """The state of an adapter's files on disk; empty for a Hub id, and for a folder that is gone."""
    found = list[tuple[str, int, int, int]]()
    for name in ("", CONFIG_NAME, WEIGHTS_NAME, TASK_NAME, *CLASSIFIER_FILES):
        with suppress(OSError):
            status = os.stat(os.path.join(folder, name))
            # The time of the last change cannot be set, unlike that of the last modification, which copying may keep.
            found.append((name, status.st_ino, status.st_size, status.st_ctime_ns))
    return tuple(found)


def age(state: Fingerprint) -> float:
    """Seconds since the last change; infinite for no files."""
    return (time.time_ns() - max((changed for *_, changed in state), default=0)) / 1e9
