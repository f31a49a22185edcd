"""The loss of more rows than memory holds at once, with the gradient of all of them and one pass over the prompt.

Two stages. The prompt's keys and values are computed once and cut off from their history; each pack of rows
runs forward and backward against them and is forgotten; what has added up on the keys and values then goes
through the prompt. By the chain rule that is the gradient of the whole batch, with the memory of one pack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from .kv_cache import KVCache
from .loss import token_losses
from .prefill import prefill
from .tree import Plan

PackLoss = Callable[[Tensor | KVCache], Tensor]
"""Computes the summed loss of one pack, a scalar, from a prompt ``[P, D]`` or a compiled one."""


def mean_loss(
    base: PreTrainedModel, plans: Sequence[Plan], prompt: Tensor, count: Tensor | int | None = None
) -> Tensor:
    """Mean loss over the supervised tokens of all plans under one prompt.

    Args:
        plans: packs of rows; with several, the gradient is taken at once, pack by pack.
        prompt: ``[P, D]``; the gradient arrives here.
        count: divisor of the summed loss; ``None`` for the number of supervised tokens.

    Returns:
        Scalar, float32. It can be differentiated once.
    """
    if count is None:
        count = sum(len(plan.targets) for plan in plans)
    return summed_loss(base, [partial(_of_tokens, base, plan) for plan in plans], prompt) / count


def _of_tokens(base: PreTrainedModel, plan: Plan, prompt: Tensor | KVCache) -> Tensor:
    return token_losses(base, plan, prompt).sum()


def summed_loss(base: PreTrainedModel, losses: Sequence[PackLoss], prompt: Tensor) -> Tensor:
    """Sum of the losses of all packs behind one prompt, which is computed once.

    Args:
        losses: one per pack; if there are several, gradients are computed right away, pack by pack.
        prompt: ``[P, D]``; the gradient arrives here.

    Returns:
        Scalar, float32. It can be differentiated once.
    """
    if len(losses) == 1:
        return losses[0](prompt)
    prompt = prompt if torch.is_grad_enabled() else prompt.detach()  # autograd functions see no other difference
    total: Tensor = _TwoStages.apply(prompt, base, losses)  # type: ignore[no-untyped-call]
    return total


class _TwoStages(torch.autograd.Function):
    """Summed loss of several packs, with its gradient computed on the way."""

    @staticmethod
    def forward(ctx: Any, prompt: Tensor, base: PreTrainedModel, losses: Sequence[PackLoss]) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        with torch.set_grad_enabled(wanted):
            virtual = prompt.detach().requires_grad_(wanted)
            prefilled = prefill(base, virtual)
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
