"""From a plan to losses: embeddings, hidden states, and logits at supervised positions only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from ..families import check_depth
from .between import Means
from .head import logits_of
from .known import Known
from .run import run
from .tree import ROOT, Plan

LOGITS_PER_CHUNK = 1 << 22
"""Most logits alive at once (16 MiB in float32, a few such tensors); supervised positions are taken in chunks."""

Prompts = Tensor | Known | Sequence[Known]
"""A prompt ``[P, D]`` (several: one after the other), or what is known of it (of each): keys and values."""


def token_losses(
    base: PreTrainedModel,
    plan: Plan,
    prompt: Prompts,
    known: Mapping[int, Known] | None = None,
    means: Means | None = None,
) -> Tensor:
    """Negative log-likelihood of each supervised token of a plan.

    Args:
        base: the frozen causal language model.
        plan: tokens under one prompt or several, or texts with a prompt behind them.
        prompt: ``[P, D]`` virtual tokens, where the gradient arrives; or the compiled prompt.
        known: other nodes of the plan that have been computed already.
        means: takes mean hidden states on the way.

    Returns:
        ``[S]`` in float32, in nats.
    """
    return losses_of(base, hidden_states(base, plan, prompt, known=known, means=means), plan)


def group_log_probs(
    base: PreTrainedModel,
    plan: Plan,
    prompt: Prompts,
    known: Mapping[int, Known] | None = None,
    means: Means | None = None,
) -> Tensor:
    """Log-probability ``[num_groups]`` of each group's supervised tokens together; arguments as ``token_losses``."""
    losses = token_losses(base, plan, prompt, known, means)
    return losses.new_zeros(plan.num_groups).index_add(0, plan.groups, -losses)


def hidden_states(
    base: PreTrainedModel,
    plan: Plan,
    prompt: Prompts,
    embeds: Tensor | None = None,
    known: Mapping[int, Known] | None = None,
    means: Means | None = None,
) -> Tensor:
    """Last hidden states ``[T, D']`` of a plan in flat order.

    Args:
        embeds: ``[t, D]``, in place of the embeddings of the caller's tokens (at ``plan.places``).
        means: takes mean hidden states on the way.
    """
    check_depth(base.config, plan.tree.depth)
    known = _compiled(plan, prompt) | dict(known or {})
    computed = _to_compute(plan, known)
    inputs = embed(base, plan, prompt, embeds, computed)
    if means is None:
        return run(base.base_model, plan.tree, inputs, known)
    states: list[Tensor] = []
    hidden = run(base.base_model, plan.tree, inputs, known, states=states)
    if not states:  # nothing was computed: empty texts behind a compiled prompt
        config = base.config.get_text_config()
        states = [hidden.new_zeros(0, config.hidden_size)] * config.num_hidden_layers
    means.take(states, computed)
    return hidden


def _compiled(plan: Plan, prompt: Prompts) -> dict[int, Known]:
    if isinstance(prompt, Tensor):
        return {}
    roots = [node for node, parent in enumerate(plan.tree.parents) if parent == ROOT]
    return dict(zip(roots, [prompt] if isinstance(prompt, Known) else prompt, strict=True))


def _to_compute(plan: Plan, known: Mapping[int, Known]) -> Tensor:
    """Flat positions of the tokens that are not known."""
    flat = torch.arange(len(plan.tokens), device=plan.tokens.device)
    if not known:
        return flat
    kept = torch.ones_like(flat, dtype=torch.bool)
    for node in known:
        span = plan.tree.span(node)
        kept[span.start : span.stop] = False
    return flat[kept]


def embed(
    base: PreTrainedModel, plan: Plan, prompt: Prompts, given: Tensor | None = None, flat: Tensor | None = None
) -> Tensor:
    """Input embeddings ``[t, D]`` of a plan's tokens.

    Args:
        given: ``[t, D]``, in place of the embeddings of the caller's tokens (at ``plan.places``).
        flat: flat positions of the tokens that are wanted; all by default.
    """
    tokens = plan.tokens if flat is None else plan.tokens[flat]
    if given is None:
        embeds: Tensor = base.get_input_embeddings()(tokens.clamp_min(0))
    else:
        embeds = torch.zeros(len(plan.tokens), given.shape[-1], dtype=given.dtype, device=given.device)
        embeds = embeds.index_put((plan.places,), given)
        embeds = embeds if flat is None else embeds[flat]
    virtual = (tokens < 0).nonzero()[:, 0]
    if isinstance(prompt, Tensor) and len(virtual):
        embeds = embeds.index_put((virtual,), prompt[-1 - tokens[virtual]].to(embeds.dtype))
    return embeds


def losses_of(base: PreTrainedModel, hidden: Tensor, plan: Plan) -> Tensor:
    """Negative log-likelihood ``[S]`` of the supervised tokens, given all hidden states ``[T, D']``."""
    picked = hidden[plan.predictors]
    result: Tensor = _CrossEntropy.apply(picked, base, plan.targets)  # type: ignore[no-untyped-call]
    return result


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy behind the base's head, a few positions at a time.

    Each chunk's gradient is taken at once, with respect to its hidden states, so its logits can go: memory
    holds one chunk of logits, however many positions and words there are, and no product is made twice.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, base: PreTrainedModel, targets: Tensor) -> Tensor:
        chunk = max(1, LOGITS_PER_CHUNK // base.config.get_text_config().vocab_size)
        losses = hidden.new_empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            with torch.set_grad_enabled(gradient is not None):
                states = hidden[part].detach().requires_grad_(gradient is not None)
                found = _cross_entropy(base, states, targets[part])
                losses[part] = found.detach()
                if gradient is not None:
                    gradient[part] = torch.autograd.grad(found.sum(), states)[0]
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.to(gradient.dtype)[:, None], None, None


def _cross_entropy(base: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = logits_of(base, hidden).float()
    return F.cross_entropy(logits, targets.to(logits.device), reduction="none").to(targets.device)
