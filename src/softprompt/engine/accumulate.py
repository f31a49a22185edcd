"""The loss of more rows than memory holds at once, with the gradient of all of them and one pass over the prompt.

Two stages. The prompt's keys and values are computed once and cut off from their history; each pack of rows
runs forward and backward against them and is forgotten; what has added up on the keys and values then goes
through the prompt. By the chain rule that is the gradient of the whole batch, with the memory of one pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from .compiled import compile_prompt
from .loss import token_losses
from .tree import Plan


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
    if len(plans) == 1:
        return token_losses(base, plans[0], prompt).sum() / count
    prompt = prompt if torch.is_grad_enabled() else prompt.detach()  # autograd functions see no other difference
    total: Tensor = _TwoStages.apply(prompt, base, plans)  # type: ignore[no-untyped-call]
    return total / count


class _TwoStages(torch.autograd.Function):
    """Summed loss of several packs, with its gradient computed on the way."""

    @staticmethod
    def forward(ctx: Any, prompt: Tensor, base: PreTrainedModel, plans: Sequence[Plan]) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        with torch.set_grad_enabled(wanted):
            virtual = prompt.detach().requires_grad_(wanted)
            compiled = compile_prompt(base, virtual)
            leaves = compiled.map(lambda tensor: tensor.detach().requires_grad_(wanted))
            total = torch.zeros((), dtype=torch.float64, device=prompt.device)
            for plan in plans:
                loss = token_losses(base, plan, leaves).sum()
                if wanted:
                    loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            if wanted:
                reached = [(of, leaf.grad) for of, leaf in zip(compiled.tensors, leaves.tensors, strict=True)]
                outputs = [(of, grad) for of, grad in reached if grad is not None]
                (gradient,) = torch.autograd.grad([o for o, _ in outputs], virtual, [g for _, g in outputs])
                ctx.save_for_backward(gradient)
        return total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.to(gradient.dtype), None, None
