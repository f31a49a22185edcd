"""One optimizer step, for every objective: forward, backward, finite check, clipping, AdamW."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..config.options import OptimizerOptions
from ..engine.accumulate import summed_loss
from .objectives import Objective, Pack, RowT


class NonFiniteError(Exception):
    """A loss, gradient or prompt is not finite; the message says which. The loop and the folds turn it into advice."""


def make_optimizer(prompt: Tensor, options: OptimizerOptions) -> torch.optim.AdamW:
    """AdamW on a prompt, or on several. Its update is elementwise, so several prompts learn as if each were alone."""
    return torch.optim.AdamW(
        [prompt],
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        weight_decay=options.weight_decay,
    )


def forward_backward(
    objective: Objective[RowT], prompt: Tensor, batches: Sequence[Sequence[RowT]]
) -> tuple[float, int]:
    """Add the gradient of the mean loss of some batches to ``prompt.grad``.

    Args:
        prompt: ``[P, D]`` or ``[M, P, D]``.

    Returns:
        The mean loss, and the number of tokens or rows that it is the mean over.

    Raises:
        NonFiniteError: the loss or the gradient is not finite.
    """
    count = sum(objective.count(rows) for rows in batches)
    packs = [pack for rows in batches for pack in objective.packs(rows, prompt)]
    loss = backward(objective, prompt, packs, count)
    if not math.isfinite(loss):
        raise NonFiniteError(f"loss is {loss}")
    if prompt.grad is None or not bool(torch.isfinite(prompt.grad).all()):
        raise NonFiniteError("gradient is not finite")
    return loss, count


def backward(objective: Objective[RowT], prompt: Tensor, packs: Sequence[Pack], count: int) -> float:
    """Add the gradient of the summed loss of packs over ``count`` to ``prompt.grad``, with the memory of one pack.

    Packs that share the prompt go through the two stages of ``engine.accumulate``: the prompt is computed once,
    whatever their number. Packs that share nothing run one after the other, since their gradients just add up.

    Returns:
        The loss, in nats.
    """
    losses = [partial(objective.loss, pack) for pack in packs]
    total = 0.0
    for together in [losses] if objective.shares_prompt else [[loss] for loss in losses]:
        loss = summed_loss(objective.base, together, prompt) / count
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total


def update_prompt(prompt: Tensor, optimizer: torch.optim.Optimizer, max_grad_norm: float = 0.0) -> None:
    """Clip the gradient, and take a step of the optimizer, whose only parameter is the prompt.

    Args:
        max_grad_norm: largest norm of a prompt's gradient; 0 does not clip.

    Raises:
        NonFiniteError: the step overflows, or the updated prompt is not finite.
    """
    if max_grad_norm:
        _clip_gradient(prompt, max_grad_norm)
    try:
        optimizer.step()
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise NonFiniteError("learning rate overflows in AdamW") from None
    finally:
        optimizer.zero_grad()
    if not bool(torch.isfinite(prompt).all()):
        raise NonFiniteError("updated prompt is not finite")


def _clip_gradient(prompt: Tensor, max_norm: float) -> None:
    """Scale the gradient of each prompt, ``[P, D]`` or ``[M, P, D]``, to a norm of at most ``max_norm``."""
    assert prompt.grad is not None
    norms = torch.linalg.vector_norm(prompt.grad, dim=(-2, -1), keepdim=True)
    prompt.grad.mul_((max_norm / (norms + 1e-6)).clamp_max(1))
