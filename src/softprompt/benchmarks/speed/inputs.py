"""The encoded rows that all implementations compute, and padded batches of them for PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...data.sources import load_splits, make_task
from ...data.tokenize import Encoder, default_end_token_id
from ...errors import ConfigError
from ...inference.classifier import Classes, classes_of
from ...models.families import context_length
from ...types import Example
from ..padding import padded_batch
from .settings import SpeedOptions

MIN_ROWS = 64
"""Minimum number of rows to read; fewer might not have all labels."""

READ_PER_LONG_ROW = 16
"""Rows to read for each required row with a long text."""


@dataclass(frozen=True)
class Inputs:
    """Rows encoded as in ``softprompt train``.

    Attributes:
        examples: the rows.
        classes: their labels in tokens; ``None`` for free text.
        width: length to which the guide pads.
        min_tokens: rows with shorter texts were left out.
    """

    examples: list[Example]
    classes: Classes | None
    width: int
    min_tokens: int = 0

    def batches(self, size: int, max_batches: int) -> list[list[Example]]:
        """Up to ``max_batches`` batches of different rows.

        Raises:
            ConfigError: there are fewer rows than a batch takes. (Rows are not repeated: the engine computes equal rows
                once.)
        """
        if len(self.examples) < size:
            rows, remedy = f"{len(self.examples)} rows", "give more rows with train_file"
            if self.min_tokens:
                rows = f"{rows} with a text of at least {self.min_tokens} tokens"
                remedy = f"{remedy}, longer ones with text_tokens"
            raise ConfigError(f"{rows} do not fill a batch of {size}; {remedy}, or lower per_device_train_batch_size")
        count = min(max_batches, len(self.examples) // size)
        return [self.examples[i * size : (i + 1) * size] for i in range(count)]


def read_inputs(options: SpeedOptions, tokenizer: Any, base: Any, rows: int, min_tokens: int = 0) -> Inputs:
    """The first ``rows`` training rows, or as many as there are.

    Args:
        min_tokens: leave out rows with shorter texts; validation and test rows are then used too, since few rows may
            remain (of the packaged rows, one in twelve has 30 tokens).

    Raises:
        ConfigError: ``text_tokens`` does not fit into the model's context.
    """
    limit = options.max_train_samples or max(rows * (READ_PER_LONG_ROW if min_tokens else 1), MIN_ROWS)
    splits = load_splits(options.model_copy(update={"max_train_samples": limit}))
    task = make_task(splits, options, end_token_id=default_end_token_id(tokenizer))
    room = context_length(base.config)
    encoder = Encoder(tokenizer, task, num_virtual_tokens=options.num_virtual_tokens, context_length=room)
    examples = encoder.encode_all(splits.train)
    if min_tokens:
        examples += encoder.encode_all([*splits.validation, *splits.test])
    width = options.max_length or 0
    if options.text_tokens is not None:
        examples = _with_text_length(options.text_tokens, examples)
        width = max(len(example.input_ids) + len(example.label_ids) for example in examples)
        if room is not None and options.num_virtual_tokens + width > room:
            given = f"text_tokens={options.text_tokens} with {options.num_virtual_tokens} virtual tokens"
            raise ConfigError(f"{given} does not fit: the model's context is {room} positions")
    examples = [example for example in examples if len(example.input_ids) >= min_tokens]
    return Inputs(examples, classes_of(task, encoder), width, min_tokens)


def require_classes(inputs: Inputs) -> Classes:
    """The labels to score.

    Raises:
        ConfigError: the targets are free text.
    """
    if inputs.classes is None:
        raise ConfigError("this workload scores labels, but the targets are free text; give a label_column of classes")
    return inputs.classes


def _with_text_length(length: int, examples: Sequence[Example]) -> list[Example]:
    """Each example with a text of exactly ``length`` tokens: its own and those of the next rows, truncated."""
    made = []
    for start, example in enumerate(examples):
        ids: list[int] = []
        row = start
        while len(ids) < length:
            ids += examples[row % len(examples)].input_ids
            row += 1
        made.append(Example(tuple(ids[:length]), example.label_ids, example.label))
    return made


def left_padded(batch: Sequence[Example], max_length: int | None, device: torch.device) -> dict[str, Tensor]:
    """The batch as in the guide: ``input_ids``, ``attention_mask`` and ``labels``, ``[B, max_length]``.

    Args:
        max_length: ``None`` for the length of the longest row.
    """
    return padded_batch(batch, device, width=max_length or 0, left=True)


def left_padded_texts(batch: Sequence[Example], device: torch.device) -> dict[str, Tensor]:
    """The texts without labels, padded to the longest: ``input_ids`` and ``attention_mask`` ``[B, T]``."""
    texts = [Example(example.input_ids, ()) for example in batch]
    padded = left_padded(texts, None, device)
    return {name: padded[name] for name in ("input_ids", "attention_mask")}
