"""From hidden states to losses, at supervised positions only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ..families import check_depth
from .head import logits_of
from .run import run
from .tree import Plan

LOGITS_PER_CHUNK = 1 << 25
"""Most logits alive at once (128 MiB in float32); more supervised positions are taken in chunks."""


def token_losses(base: PreTrainedModel, plan: Plan, prompt: Tensor) -> Tensor:
    """Negative log-likelihood of each supervised token of a plan.

    Args:
        base: the frozen causal language model.
        plan: tokens under one prompt.
        prompt: ``[P, D]`` virtual tokens; the gradient arrives here.

    Returns:
        ``[S]`` in float32, in nats.
    """
    return losses_of(base, hidden_states(base, plan, prompt), plan)


def hidden_states(base: PreTrainedModel, plan: Plan, prompt: Tensor, embeds: Tensor | None = None) -> Tensor:
    """Last hidden states ``[T, D']`` of a plan, virtual tokens first.

    ``embeds`` ``[T - P, D]`` stand in for the embeddings of ``plan.input_ids`` when given.
    """
    check_depth(base.config, plan.tree.depth)
    if embeds is None:
        embeds = base.get_input_embeddings()(plan.input_ids)
    return run(base.base_model, plan.tree, (prompt.to(embeds.dtype), embeds))


def losses_of(base: PreTrainedModel, hidden: Tensor, plan: Plan) -> Tensor:
    """Negative log-likelihood ``[S]`` of the supervised tokens, given all hidden states ``[T, D']``."""
    picked = hidden[plan.predictors]
    chunk = max(1, LOGITS_PER_CHUNK // base.config.get_text_config().vocab_size)
    if len(picked) <= chunk:
        return _cross_entropy(base, picked, plan.targets)
    pairs = zip(torch.split(picked, chunk), torch.split(plan.targets, chunk), strict=True)
    return torch.cat([checkpoint(_cross_entropy, base, h, t, use_reentrant=False) for h, t in pairs])


def _cross_entropy(base: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = logits_of(base, hidden).float()
    return F.cross_entropy(logits, targets.to(logits.device), reduction="none").to(targets.device)
