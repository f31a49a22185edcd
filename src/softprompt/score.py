"""Probabilities of labels behind texts, by one pass over a tree: prompt -> text -> label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .engine.loss import token_losses
from .engine.tree import plan_choices


@torch.no_grad()
def score_labels(
    base: PreTrainedModel, prompt: Tensor, texts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]
) -> Tensor:
    """Log-probability of each label behind each text.

    Args:
        prompt: ``[P, D]``.
        texts: B rows of token ids.
        labels: C labels of token ids, end token included, so that no label is a prefix of another.

    Returns:
        ``[B, C]`` float32: the sum of the log-probabilities of the label's tokens.
    """
    plan = plan_choices(len(prompt), texts, labels, prompt.device)
    totals = torch.zeros(plan.num_groups, device=prompt.device)
    totals.index_add_(0, plan.groups, -token_losses(base, plan, prompt))
    return totals.view(len(texts), len(labels))
