"""The rows that all sides work on, and the guide's padded batches of them."""

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
from ...types import IGNORE_INDEX, Example
from .settings import BenchOptions

FEWEST_ROWS = 64
"""Rows that are read at least: fewer might not have all the labels."""

ROWS_PER_LONG_ONE = 16
"""Rows that are read for each that must have a long text."""


@dataclass(frozen=True)
class Work:
    """Rows as ``softprompt train`` encodes them.

    Attributes:
        examples: the rows.
        classes: their labels in tokens; ``None`` for free targets.
        width: length that the guide pads to.
        least_tokens: rows with shorter texts were left out.
    """

    examples: list[Example]
    classes: Classes | None
    width: int
    least_tokens: int = 0

    def batches(self, size: int, most: int) -> list[list[Example]]:
        """Up to ``most`` batches of different rows.

        Raises:
            ConfigError: there are fewer rows than a batch takes. (Rows are not repeated: equal rows cost our
                engine less.)
        """
        if len(self.examples) < size:
            rows, remedy = f"{len(self.examples)} rows", "give more rows with train_file"
            if self.least_tokens:
                rows = f"{rows} with a text of at least {self.least_tokens} tokens"
                remedy = f"{remedy}, longer ones with text_tokens"
            raise ConfigError(f"{rows} do not fill a batch of {size}; {remedy}, or lower per_device_train_batch_size")
        count = min(most, len(self.examples) // size)
        return [self.examples[i * size : (i + 1) * size] for i in range(count)]


def read_work(options: BenchOptions, tokenizer: Any, base: Any, rows: int, least_tokens: int = 0) -> Work:
    """The first ``rows`` training rows, or as many as there are.

    Args:
        least_tokens: leave out rows with shorter texts. Where few are left (of the packaged rows, one in twelve has
            30 tokens), those of validation and test follow.
    """
    limit = options.max_train_samples or max(rows * (ROWS_PER_LONG_ONE if least_tokens else 1), FEWEST_ROWS)
    splits = load_splits(options.model_copy(update={"max_train_samples": limit}))
    task = make_task(splits, options, end_token_id=default_end_token_id(tokenizer))
    room = context_length(base.config)
    encoder = Encoder(tokenizer, task, num_virtual_tokens=options.num_virtual_tokens, context_length=room)
    examples = encoder.encode_all(splits.train)
    if least_tokens:
        examples += encoder.encode_all([*splits.validation, *splits.test])
    width = options.max_length or 0
    if options.text_tokens is not None:
        examples = _with_texts_of(options.text_tokens, examples)
        width = max(len(example.input_ids) + len(example.label_ids) for example in examples)
        if room is not None and options.num_virtual_tokens + width > room:
            given = f"text_tokens={options.text_tokens} with {options.num_virtual_tokens} virtual tokens"
            raise ConfigError(f"{given} does not fit: the model's context is {room} positions")
    examples = [example for example in examples if len(example.input_ids) >= least_tokens]
    return Work(examples, classes_of(task, encoder), width, least_tokens)


def need_classes(work: Work) -> Classes:
    """The labels to score.

    Raises:
        ConfigError: the rows have free targets.
    """
    if work.classes is None:
        raise ConfigError("labels are scored here, but the rows have free targets; give a label_column of classes")
    return work.classes


def _with_texts_of(length: int, examples: Sequence[Example]) -> list[Example]:
    """Each example with a text of exactly ``length`` tokens: its own and those of the rows after it, cut there."""
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
    """The batch as the guide makes it: ``input_ids``, ``attention_mask`` and ``labels``, ``[B, max_length]``."""
    rows = [(*example.input_ids, *example.label_ids) for example in batch]
    width = max_length or max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE_INDEX)
    for i, (row, example) in enumerate(zip(rows, batch, strict=True)):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
        labels[i, width - len(example.label_ids) :] = torch.tensor(example.label_ids)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device), "labels": labels.to(device)}


def left_padded_texts(batch: Sequence[Example], device: torch.device) -> dict[str, Tensor]:
    """The texts alone, padded to the longest: ``input_ids`` and ``attention_mask`` ``[B, T]``, for generation."""
    texts = [Example(example.input_ids, ()) for example in batch]
    padded = left_padded(texts, None, device)
    return {name: padded[name] for name in ("input_ids", "attention_mask")}
