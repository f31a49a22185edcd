"""Losses of a plan: embeddings, hidden states, and logits at supervised positions only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from ..models.families import check_depth
from .kv_cache import KVCache
from .runner import BaseOrRunner, ModelRunner
from .surgery.capture import Means
from .surgery.lm_head import is_head_frozen
from .tree import Plan

LOGITS_PER_CHUNK = 1 << 22
"""Most logits in memory at once (16 MiB in float32, a few such tensors). Supervised positions are taken in chunks."""
WORTH_SHARING = 1.5
"""Average number of targets per position from which logits are computed once per position. Forward and backward, that
takes three products with the output matrix per position instead of two per target."""

Prompts = Tensor | KVCache | Sequence[KVCache]
"""A prompt ``[P, D]`` (several are concatenated), a prefilled prompt, or several prefilled prompts."""


def token_losses(
    base: BaseOrRunner,
    plan: Plan,
    prompt: Prompts,
    cached: Mapping[int, KVCache] | None = None,
    means: Means | None = None,
) -> Tensor:
    """Negative log-likelihood of each supervised token of a plan.

    Args:
        base: the frozen causal language model, or the runner that owns it.
        plan: of either placement.
        prompt: the virtual tokens ``[P, D]``, which receive the gradient; or a prefilled prompt.
        cached: KV caches of other nodes, such as texts before suffix prompts.
        means: collects mean hidden states.

    Returns:
        ``[S]`` in float32, in nats.
    """
    runner = ModelRunner.of(base)
    return losses_of(runner, hidden_states(runner, plan, prompt, cached=cached, means=means), plan)


def group_log_probs(
    base: BaseOrRunner,
    plan: Plan,
    prompt: Prompts,
    cached: Mapping[int, KVCache] | None = None,
    means: Means | None = None,
) -> Tensor:
    """Log-probability ``[num_groups]`` of the supervised tokens of each group; arguments as for ``token_losses``."""
    losses = token_losses(base, plan, prompt, cached, means)
    return losses.new_zeros(plan.num_groups).index_add(0, plan.groups, -losses)


def hidden_states(
    base: BaseOrRunner,
    plan: Plan,
    prompt: Prompts,
    embeds: Tensor | None = None,
    cached: Mapping[int, KVCache] | None = None,
    means: Means | None = None,
) -> Tensor:
    """Last hidden states ``[T, D']`` of a plan in flat order.

    Args:
        embeds: ``[t, D]``, input embeddings of the tokens at ``plan.places``, in place of those of their ids.
        means: collects mean hidden states.
    """
    runner = ModelRunner.of(base)
    check_depth(runner.base.config, plan.tree.depth)
    cached = _prefilled(plan, prompt) | dict(cached or {})
    computed = to_compute(plan, cached)
    inputs = embed(runner.base, plan, prompt, embeds, computed)
    if means is None:
        return runner.forward(plan.tree, inputs, cached)
    outputs: list[Tensor] = []
    hidden = runner.forward(plan.tree, inputs, cached, outputs)
    means.take(outputs or no_outputs(runner, hidden), computed)
    return hidden


def no_outputs(runner: ModelRunner, hidden: Tensor) -> list[Tensor]:
    """Layer outputs ``[0, D]`` where nothing was computed: empty texts after a prefilled prompt."""
    config = runner.base.config.get_text_config()
    return [hidden.new_zeros(0, config.hidden_size)] * config.num_hidden_layers


def _prefilled(plan: Plan, prompt: Prompts) -> dict[int, KVCache]:
    if isinstance(prompt, Tensor):
        return {}
    return dict(zip(plan.tree.roots, [prompt] if isinstance(prompt, KVCache) else prompt, strict=True))


def to_compute(plan: Plan, cached: Mapping[int, KVCache]) -> Tensor:
    """Flat positions of the tokens without a KV cache."""
    tree, device = plan.tree, plan.tokens.device
    if not cached:
        return torch.arange(len(plan.tokens), device=device)
    new = [position for node in range(len(tree.lengths)) if node not in cached for position in tree.span(node)]
    return torch.tensor(new, dtype=torch.long, device=device)


def embed(
    base: PreTrainedModel, plan: Plan, prompt: Prompts, given: Tensor | None = None, flat: Tensor | None = None
) -> Tensor:
    """Input embeddings ``[t, D]`` of a plan's tokens.

    Args:
        given: ``[t, D]``, input embeddings of the tokens at ``plan.places``, in place of those of their ids.
        flat: flat positions of the tokens to embed; all by default.
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


def losses_of(base: BaseOrRunner, hidden: Tensor, plan: Plan) -> Tensor:
    """Negative log-likelihood ``[S]`` of the supervised tokens, given all hidden states ``[T, D']``.

    A position that predicts several tokens (the first tokens of all labels) goes through the head once.
    """
    runner = ModelRunner.of(base)
    positions, places = plan.predictors, torch.arange(len(plan.predictors), device=plan.predictors.device)
    different, of = torch.unique(positions, return_inverse=True)
    if WORTH_SHARING * len(different) <= len(positions):
        positions, places = different, of
    if torch.is_grad_enabled() and not is_head_frozen(runner.base):
        return _with_history(hidden[positions], runner, places, plan.targets)
    result: Tensor = _CrossEntropy.apply(hidden[positions], runner, places, plan.targets)  # type: ignore[no-untyped-call]
    return result


def _with_history(hidden: Tensor, runner: ModelRunner, places: Tensor, targets: Tensor) -> Tensor:
    """As ``_CrossEntropy``, with all logits kept for the backward pass, so that the head's weights get a gradient."""
    losses, order = [hidden[:0].sum(1)], [places[:0]]
    for part, which in _chunks(runner, places, len(hidden)):
        losses.append(_cross_entropy(runner, hidden[part], places[which] - part.start, targets[which]))
        order.append(which)
    return torch.cat(losses)[torch.cat(order).argsort()]


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy of the base's logits, a few positions at a time.

    If each position has one target, the forward pass also computes each chunk's gradient with respect to its hidden
    states and frees its logits: memory holds one chunk of logits, whatever the number of positions, and no
    product is computed twice. If positions have several targets, the gradient depends on the weight of each target's
    loss, so the backward pass computes the logits again.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, runner: ModelRunner, places: Tensor, targets: Tensor) -> Tensor:
        losses = hidden.new_empty(len(targets), dtype=torch.promote_types(hidden.dtype, torch.float32))
        wanted, shared = ctx.needs_input_grad[0], len(targets) > len(hidden)
        gradient = torch.empty_like(hidden) if wanted and not shared else None
        for part, which in _chunks(runner, places, len(hidden)):
            with torch.set_grad_enabled(gradient is not None):
                states = hidden[part].detach().requires_grad_(gradient is not None)
                found = _cross_entropy(runner, states, places[which] - part.start, targets[which])
                losses[which] = found.detach()
                if gradient is not None:
                    gradient[part] = torch.autograd.grad(found.sum(), states)[0]
        if wanted:
            ctx.save_for_backward(hidden if shared else gradient, places, targets)
            ctx.runner, ctx.shared = runner, shared
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        saved, places, targets = ctx.saved_tensors
        if not ctx.shared:
            return saved * grad.to(saved.dtype)[:, None], None, None, None
        gradient = torch.empty_like(saved)
        for part, which in _chunks(ctx.runner, places, len(saved)):
            with torch.enable_grad():
                states = saved[part].detach().requires_grad_()
                found = _cross_entropy(ctx.runner, states, places[which] - part.start, targets[which])
                gradient[part] = torch.autograd.grad(found, states, grad[which])[0]
        return gradient, None, None, None


def _chunks(runner: ModelRunner, places: Tensor, number: int) -> Iterator[tuple[slice, Tensor]]:
    """Slices of ``number`` positions whose logits fit into memory together, and the indices of each slice's targets."""
    chunk = max(1, LOGITS_PER_CHUNK // runner.base.config.get_text_config().vocab_size)
    ordered, order = places.sort(stable=True)
    starts = range(0, number, chunk)
    cuts = torch.searchsorted(ordered, torch.tensor([*starts, number], device=places.device)).tolist()
    for start, (low, high) in zip(starts, pairwise(cuts), strict=True):
        yield slice(start, min(start + chunk, number)), order[low:high]


def _cross_entropy(runner: ModelRunner, hidden: Tensor, places: Tensor, targets: Tensor) -> Tensor:
    """Losses ``[s]`` of ``targets`` ``[s]``, predicted at ``places`` ``[s]`` of hidden states ``[n, D']``."""
    logits = runner.logits(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # sums in 16 bits would be too coarse
    at = places.to(logits.device), targets.to(logits.device)
    if len(targets) == len(hidden):  # one operation, which saves half as much for the backward pass
        return F.cross_entropy(logits, at[1], reduction="none").to(targets.device)
    return (logits.logsumexp(-1)[at[0]] - logits[at]).to(targets.device)
