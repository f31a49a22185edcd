"""Matrix products with frozen weights, float32 on the CPU by oneDNN where this torch has it.

oneDNN multiplies float32 matrices faster than the library that torch takes (twice as fast on AMD, where MKL leaves half
of each vector register unused). torch reaches it only through an operator for its own use, ``_linear_pointwise``. This
is the one module that calls it; without it, products are torch's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...errors import BaseModelError

LARGE = 6_000_000
"""Multiplications from which each product of a batch is worth a call of its own."""

FEW_ROWS = 3
"""Most rows that torch multiplies faster: a call of oneDNN takes about 50 µs more, a fifth of a decoding step."""

_PRODUCT = getattr(getattr(torch.ops, "mkldnn", None), "_linear_pointwise", None)


def product_library() -> str:
    """The library that multiplies float32 matrices on the CPU here: ``onednn`` or ``torch`` (its own choice)."""
    return "onednn" if _PRODUCT is not None and torch.backends.mkldnn.enabled else "torch"


def trains(module: nn.Module) -> bool:
    """Whether one of a module's own weights takes a gradient."""
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _suits(matrix: Tensor) -> bool:
    return matrix.dtype == torch.float32 and matrix.device.type == "cpu" and product_library() == "onednn"


def _is_dense(matrix: Tensor) -> bool:
    """Whether a matrix, or its transpose, lies in one piece."""
    return matrix.is_contiguous() or matrix.t().is_contiguous()


class FrozenLinear(nn.Linear):
    """``nn.Linear`` on the CPU whose weight takes no gradient."""

    @staticmethod
    def fits(module: nn.Linear) -> bool:
        """Whether a layer can be one."""
        return _suits(module.weight) and _is_dense(module.weight) and not trains(module)

    def forward(self, input: Tensor) -> Tensor:
        """``[..., K]`` -> ``[..., N]``."""
        return frozen_linear(input, self.weight, self.bias)


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias`` for ``x`` ``[..., K]`` and a float32 ``weight`` ``[N, K]`` without gradient."""
    if torch.is_grad_enabled() and x.requires_grad:
        result: Tensor = _FrozenLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return result
    return multiply(x, weight, bias)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, float32 on the CPU.

    ``weight`` ``[N, K]`` should be dense: with a part of a larger matrix the result is right too, but takes oneDNN a
    thousand times longer. ``x`` may have any strides.
    """
    if _PRODUCT is None or x.numel() <= FEW_ROWS * x.shape[-1]:
        return F.linear(x, weight, bias)
    result: Tensor = _PRODUCT(x, weight, bias, "none", [], "")
    return result


def batched(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """``left @ right`` for ``[H, n, k]`` and ``[H, k, m]``, into ``out`` if it is given.

    Large ones matrix by matrix, since oneDNN has no batched product and is twice as fast there.
    """
    if left.shape[1] * left.shape[2] * right.shape[2] < LARGE or not _suits(left):
        return torch.bmm(left, right, out=out)
    if left[0].t().is_contiguous():  # the other way round, so that the smaller one is copied
        return torch.stack([multiply(other.t(), one).t() for one, other in zip(left, right, strict=True)], out=out)
    right = right if _is_dense(right[0]) else right.contiguous()
    return torch.stack([multiply(one, other.t()) for one, other in zip(left, right, strict=True)], out=out)


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight  # frozen: neither changes nor counts as memory
        return multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return multiply(grad, ctx.weight.t()), None, None


class OpaqueLinear(nn.Linear):
    """``nn.Linear`` whose weight is a tensor subclass with a product of its own; checks that it passes gradients on.

    Raises:
        BaseModelError: it does not, so the gradient of the prompt would be wrong.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``[..., K]`` -> ``[..., N]``."""
        output = super().forward(input)
        if torch.is_grad_enabled() and input.requires_grad and not output.requires_grad:
            raise BaseModelError(
                f"no gradient flows through the base model's weights ({type(self.weight).__name__}), so no prompt can "
                "be trained on it; use weight-only quantization, or load the model unquantized"
            )
        return output
