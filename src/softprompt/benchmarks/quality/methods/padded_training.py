"""Training loop of a PEFT user: padded batches, AdamW, a linear schedule, the mean loss of each batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import get_linear_schedule_with_warmup

from ....errors import TrainingError
from ....models.device import seed_everything
from ....types import Example
from ...padding import padded_batch


def train_padded(model: Any, examples: Sequence[Example], seed: int, options: Any, **padding: Any) -> None:
    """Train the parameters of a PEFT model that require a gradient.

    Args:
        options: ``num_train_epochs``, ``per_device_train_batch_size`` and ``learning_rate``.
        padding: arguments of ``padded_batch``.

    Raises:
        TrainingError: the loss is not finite.
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
            loss = model(**padded_batch(batch, trained[0].device, **padding)).loss
            if not torch.isfinite(loss):
                raise TrainingError(f"the loss is {loss.item()}; try a lower learning_rate")
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()


def pad_token(tokenizer: Any) -> int:
    """Token id for padding."""
    given = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((int(token) for token in given if token is not None), 0)
