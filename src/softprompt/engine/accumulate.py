"""Gradient accumulation over packs of rows, with one pass over the prompt.

It has two stages. The prompt's keys and values are computed once and detached. Each pack of rows then runs forward and
backward against them, and its activations are freed. Last, the gradients accumulated on the keys and values go through
the prompt. By the chain rule the result is the gradient of the whole batch, with the memory of one pack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .kv_cache import KVCache
from .loss import token_losses
from .runner import BaseOrRunner, ModelRunner
from .tree import Plan

PackLoss = Callable[[Tensor | KVCache], Tensor]
"""Summed loss of one pack, a scalar, given a prompt ``[P, D]`` or a prefilled prompt."""


def mean_loss(base: BaseOrRunner, plans: Sequence[Plan], prompt: Tensor, count: Tensor | int | None = None) -> Tensor:
    """Mean loss over the supervised tokens of all plans under one prompt.

    Args:
        base: the frozen causal language model, or the runner that owns it.
        plans: packs of rows. With several, the forward pass also computes the gradient, pack by pack.
        prompt: ``[P, D]``, which receives the gradient.
        count: divisor of the summed loss; ``None`` for the number of supervised tokens.

    Returns:
        Scalar, float32. It can be differentiated once.
    """
    if count is None:
        count = sum(len(plan.targets) for plan in plans)
    runner = ModelRunner.of(base)
    return summed_loss(runner, [partial(_of_tokens, runner, plan) for plan in plans], prompt) / count


def _of_tokens(runner: ModelRunner, plan: Plan, prompt: Tensor | KVCache) -> Tensor:
    return token_losses(runner, plan, prompt).sum()


def summed_loss(base: BaseOrRunner, losses: Sequence[PackLoss], prompt: Tensor) -> Tensor:
    """Sum of the losses of all packs after one prefix prompt, which is computed once.

    Args:
        base: as for ``mean_loss``.
        losses: one per pack. With several, the forward pass also computes the gradient, pack by pack.
        prompt: ``[P, D]``, which receives the gradient.

    Returns:
        Scalar, float32. It can be differentiated once.
    """
    if len(losses) == 1:
        return losses[0](prompt)
    prompt = prompt if torch.is_grad_enabled() else prompt.detach()  # an autograd function cannot tell otherwise
    total: Tensor = _TwoStages.apply(prompt, ModelRunner.of(base), losses)  # type: ignore[no-untyped-call]
    return total


class _TwoStages(torch.autograd.Function):
    """Summed loss of several packs; the forward pass also computes its gradient."""

    @staticmethod
    def forward(ctx: Any, prompt: Tensor, runner: ModelRunner, losses: Sequence[PackLoss]) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        with torch.set_grad_enabled(wanted):
            virtual = prompt.detach().requires_grad_(wanted)
            prefilled = runner.prefill_prompt(virtual)
            leaves = prefilled.map(lambda tensor: tensor.detach().requires_grad_(wanted))
            total = torch.zeros((), device=prompt.device)
            for of_pack in losses:
                loss = of_pack(leaves)
                if wanted:
                    loss.backward(inputs=leaves.tensors)  # type: ignore[no-untyped-call]
                total = total + loss.detach()
            if wanted:
                reached = [(of, leaf.grad) for of, leaf in zip(prefilled.tensors, leaves.tensors, strict=True)]
                outputs = [(of, grad) for of, grad in reached if grad is not None]
                (gradient,) = torch.autograd.grad([o for o, _ in outputs], virtual, [g for _, g in outputs])
                ctx.save_for_backward(gradient)
        return total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.to(gradient.dtype), None, None
