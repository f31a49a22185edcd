"""Padded batches as PEFT users build them; softprompt itself pads nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import IGNORE_INDEX, Example


def padded_batch(
    batch: Sequence[Example], device: torch.device, *, fill: int = 0, width: int = 0, left: bool = False
) -> dict[str, Tensor]:
    """``input_ids``, ``attention_mask`` and ``labels`` of B rows, each ``[B, T]``.

    Args:
        fill: token id of the padding.
        width: T; at least the length of the longest row.
        left: pad on the left.
    """
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
