"""Probabilities of labels behind texts, by one pass over a tree: prompt -> text -> label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..engine.execute import backends
from ..engine.kv_cache import KVCache
from ..engine.loss import group_log_probs
from ..engine.plans import branch_tokens, packs, plan_candidates
from ..engine.surgery.capture import Means, but_first

TOKENS_PER_CALL = 4096
"""Most tokens of texts and label branches in one call."""
TOKENS_WITH_STATES = 1024
"""The same where hidden states of all layers are kept for a moment (70 kB a token in SmolLM2-135M, float32)."""
KEYS_PER_CALL = 1 << 14
"""Most keys that the label branches of one call attend to, level by level. Each branch then has a copy of its text's
keys and values (46 kB a key in SmolLM2-135M, float32), so many classes mean few texts at a time."""


@torch.no_grad()
def score_labels(
    base: PreTrainedModel,
    prompt: Tensor | KVCache,
    texts: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    means: list[Tensor] | None = None,
) -> Tensor:
    """Log-probability of each label behind each text.

    Args:
        prompt: ``[P, D]``, or the compiled prompt.
        texts: B rows of token ids.
        labels: C labels of token ids, end token included, so that no label is a prefix of another.
        means: parts ``[b, layers, D]`` of the texts' mean hidden states are put here, in order.

    Returns:
        ``[B, C]`` float32: the sum of the log-probabilities of the label's tokens.
    """
    cuts = calls(base, texts, labels, num_virtual_tokens=len(prompt), with_states=means is not None)
    parts = [_scores(base, prompt, texts[rows.start : rows.stop], labels, means) for rows in cuts]
    return torch.cat(parts) if parts else torch.empty(0, len(labels), device=base.device)


def calls(
    base: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    *,
    num_virtual_tokens: int,
    suffix: int = 0,
    with_states: bool = False,
) -> Iterator[range]:
    """Cut texts into what one call computes.

    Args:
        num_virtual_tokens: of a prompt.
        behind: how many prompts stand behind each text; 0 for one in front of all.
        with_states: whether the hidden states of all layers are kept.
    """
    if backends(base.base_model)[0] == "levelwise":
        longest = num_virtual_tokens + max((len(text) for text in texts), default=0)
        return packs([longest * max(len(labels), 1) * max(suffix, 1)] * len(texts), KEYS_PER_CALL)
    branches = branch_tokens(labels)
    below = suffix * (num_virtual_tokens + branches) or branches
    return packs([len(text) + below for text in texts], TOKENS_WITH_STATES if with_states else TOKENS_PER_CALL)


def _scores(
    base: PreTrainedModel,
    prompt: Tensor | KVCache,
    texts: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    means: list[Tensor] | None,
) -> Tensor:
    plan = plan_candidates(len(prompt), texts, labels, base.device)
    collected = Means(*but_first(plan.places, [len(text) for text in texts]), len(texts))
    found = group_log_probs(base, plan, prompt, means=None if means is None else collected)
    if means is not None:
        means.append(collected.found)
    return found.view(len(texts), len(labels))
