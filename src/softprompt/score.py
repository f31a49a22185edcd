"""Probabilities of labels behind texts, by one pass over a tree: prompt -> text -> label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .engine.known import Known
from .engine.loss import token_losses
from .engine.plans import plan_choices

KEYS_PER_CALL = 1 << 14
"""Most keys that the label branches of one call attend to. Each branch has a copy of its text's keys and values (46 kB
a key in SmolLM2-135M, float32), so many classes mean few texts at a time."""


@torch.no_grad()
def score_labels(
    base: PreTrainedModel, prompt: Tensor | Known, texts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]
) -> Tensor:
    """Log-probability of each label behind each text.

    Args:
        prompt: ``[P, D]``, or the compiled prompt.
        texts: B rows of token ids.
        labels: C labels of token ids, end token included, so that no label is a prefix of another.

    Returns:
        ``[B, C]`` float32: the sum of the log-probabilities of the label's tokens.
    """
    longest = len(prompt) + max((len(text) for text in texts), default=0)
    at_once = max(1, KEYS_PER_CALL // (longest * len(labels)))
    parts = [_scores(base, prompt, texts[i : i + at_once], labels) for i in range(0, len(texts), at_once)]
    return torch.cat(parts) if parts else torch.empty(0, len(labels), device=base.device)


def _scores(
    base: PreTrainedModel, prompt: Tensor | Known, texts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]
) -> Tensor:
    plan = plan_choices(len(prompt), texts, labels, base.device)
    totals = torch.zeros(plan.num_groups, device=base.device)
    totals.index_add_(0, plan.groups, -token_losses(base, plan, prompt))
    return totals.view(len(texts), len(labels))
