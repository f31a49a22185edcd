"""The small frozen values that pass between layers. No torch here.

Legend used throughout the package: B rows, T tokens, P virtual tokens, D size of an embedding,
V size of the vocabulary, S supervised positions, N nodes of a token tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Placement = Literal["prefix", "suffix"]
"""Position of a prompt: before the text (PEFT's prompt tuning), or after the text, before the label."""

IGNORE_INDEX = -100
"""Label of a position that has no loss (the value that torch's cross-entropy ignores)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data source, as read: column name -> value, and where it was read."""

    fields: Mapping[str, Any]
    where: str  # for messages: "train.csv, row 3"


@dataclass(frozen=True, slots=True)
class Example:
    """One row as the model sees it.

    The model reads ``input_ids + label_ids``; exactly the positions of ``label_ids`` are supervised.
    Alignment is settled here once: position ``i`` of the concatenation is predicted by what precedes it,
    and nothing later shifts labels again.
    """

    input_ids: tuple[int, ...]
    label_ids: tuple[int, ...]  # with the end token; empty when the row has no label
    label: str | None = None
    num_cut: int = 0  # tokens of the text that max_length removed
