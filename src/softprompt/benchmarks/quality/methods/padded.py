"""Training as a PEFT user writes it: padded batches, AdamW, a rate that falls linearly, the mean loss of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from ....errors import TrainingError
from ....models.device import seed_everything
from ....types import IGNORE_INDEX, Example


def padded(
    batch: Sequence[Example], fill: int, device: torch.device, *, width: int = 0, left: bool = False
) -> dict[str, Tensor]:
    """``input_ids``, ``attention_mask`` and ``labels`` ``[B, T]``; T is ``width`` or the longest row's length."""
    rows = [(*example.input_ids, *example.label_ids) for example in batch]
    width = max(width, *map(len, rows))
    shape = len(rows), width
    ids, mask = torch.full(shape, fill), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORE_INDEX)
    for i, (row, example) in enumerate(zip(rows, batch, strict=True)):
        start = width - len(row) if left else 0
        stop = start + len(row)
        ids[i, start:stop] = torch.tensor(row)
        mask[i, start:stop] = 1
        labels[i, stop - len(example.label_ids) : stop] = torch.tensor(example.label_ids)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device), "labels": labels.to(device)}


def train_padded(model: Any, examples: Sequence[Example], seed: int, options: Any, **padding: Any) -> None:
    """Train what of a PEFT model has a gradient.

    Args:
        options: ``num_train_epochs``, ``per_device_train_batch_size`` and ``learning_rate``.
        padding: of ``padded``.

    Raises:
        TrainingError: the loss is no number.
    """
    size, epochs = options.per_device_train_batch_size, options.num_train_epochs
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.learning_rate)
    steps = epochs * math.ceil(len(examples) / size)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, steps)
    order = torch.Generator().manual_seed(seed)
    seed_everything(seed)
    model.train()
    for _ in range(epochs):
        shuffled = torch.randperm(len(examples), generator=order).tolist()
        for start in range(0, len(shuffled), size):
            batch = [examples[row] for row in shuffled[start : start + size]]
            loss = model(**padded(batch, device=trained[0].device, **padding)).loss
            if not torch.isfinite(loss):
                raise TrainingError(f"the loss is {loss.item()}; try a lower learning_rate")
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()


def pad_token(tokenizer: Any) -> int:
    """The id to fill rows up with."""
    given = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((int(token) for token in given if token is not None), 0)
