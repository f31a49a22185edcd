"""Frozen layers, computed with less time and memory than the stock ones, to the same numbers.

Three facts pay: a frozen weight needs no gradient, so nothing but activations is kept; oneDNN multiplies
faster than the library torch takes for float32 (twice as fast on AMD, where MKL leaves half of each vector
register unused); and chains of small operations are one function with a backward pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.bloom.modeling_bloom import BloomGelu

from ...errors import BaseModelError
from .view import recast

LARGE = 6_000_000
"""Multiplications from which a product of a batch of them is worth a call of its own."""

_PRODUCT = getattr(getattr(torch.ops, "mkldnn", None), "_linear_pointwise", None)


def fused(module: nn.Module) -> type[nn.Module]:
    """The class that computes what ``module`` does, faster; its own where there is none.

    For ``view``. Only exact classes are exchanged: a subclass (quantized, with LoRA, ...) knows better.
    """
    kind = type(module)
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        return kind  # it chooses each operation's number type
    if not all(_is_plain(parameter) for parameter in module.parameters(recurse=False)):
        return OpaqueLinear if kind is nn.Linear else kind  # the weight's class defines the operation
    if isinstance(module, nn.Linear):
        suits = kind is nn.Linear and _suits(module.weight) and _is_dense(module.weight)
        return FrozenLinear if suits and not _trains(module) else kind
    if kind is BloomGelu:
        return Gelu
    if kind.__name__.endswith("RMSNorm"):
        return _norm_class(module)
    if {"gate_proj", "up_proj", "down_proj"} == {*module._modules} - {"act_fn"} and callable(
        getattr(module, "act_fn", None)
    ):
        return _gated_class(module)
    return kind


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is an ordinary one, not of a subclass with operations of its own (torchao, DTensor)."""
    return type(tensor) in (Tensor, nn.Parameter)


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _suits(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and product_library() == "onednn"


def _is_dense(matrix: Tensor) -> bool:
    """Whether a matrix, or its transpose, lies in one piece."""
    return matrix.is_contiguous() or matrix.t().is_contiguous()


def product_library() -> str:
    """Which library multiplies float32 matrices on the CPU here: ``onednn`` or ``torch`` (its own choice)."""
    return "onednn" if _PRODUCT is not None and torch.backends.mkldnn.enabled else "torch"


# -- products ----------------------------------------------------------------------------------------


class FrozenLinear(nn.Linear):
    """``nn.Linear`` on the CPU whose weight takes no gradient."""

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
    """``x @ weight.T + bias`` by oneDNN, float32 on the CPU.

    ``weight`` ``[N, K]`` should be dense: a part of a larger matrix comes out right as well, but a thousand
    times slower. ``x`` may have any strides.
    """
    assert _PRODUCT is not None
    result: Tensor = _PRODUCT(x, weight, bias, "none", [], "")
    return result


def batched(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """``left @ right`` for ``[H, n, k]`` and ``[H, k, m]``, into ``out`` if it is given.

    Large ones matrix by matrix: torch has no batched product by oneDNN, which is twice as fast there.
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
    """``nn.Linear`` whose weight is a tensor subclass with a product of its own; checks that gradients flow through.

    Raises:
        BaseModelError: they do not, so the gradient of the prompt would be wrong.
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


# -- gated MLPs --------------------------------------------------------------------------------------


class GatedMLP(nn.Module):
    """``down(act(gate(x)) * up(x))``, of which only gate and up are kept for the backward pass.

    Stock code keeps act(gate) as well: a quarter more.
    """

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    act_fn: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` -> ``[..., D]``."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        if torch.is_grad_enabled() and gate.requires_grad:
            product = _Gated.apply(gate, up, self.act_fn)  # type: ignore[no-untyped-call]
        else:
            product = self.act_fn(gate) * up
        result: Tensor = self.down_proj(product)
        return result


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act = act
        activated = act(gate)
        return activated * up if activated is gate else activated.mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            activated = ctx.act(gate)
        (to_gate,) = torch.autograd.grad(activated, gate, grad * up)
        return to_gate, activated.detach().mul_(grad), None


def _gated_class(module: nn.Module) -> type[nn.Module]:
    width = getattr(module.gate_proj, "in_features", None)
    parameter = next(module.parameters(), None)
    if parameter is not None and parameter.is_cuda:
        return type(module)  # a backward pass in Python costs a GPU more than the two operations it saves
    return _if_same(module, GatedMLP, width)


# -- RMSNorm -----------------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    """``x / rms(x) * weight``, which keeps only ``x`` and one number a row."""

    offset = 0.0
    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` -> ``[..., D]``."""
        scale = self.weight if not self.offset else self.weight + self.offset
        named = getattr(self, "variance_epsilon", None)
        epsilon: float = self.eps if named is None else named  # type: ignore[assignment]
        if x.is_cuda:  # one kernel each way in recent versions of torch
            return F.rms_norm(x, scale.shape, scale, epsilon)
        result: Tensor = _RMSNorm.apply(x, scale, epsilon)  # type: ignore[no-untyped-call]
        return result


class OffsetRMSNorm(RMSNorm):
    """Gemma's, whose stored weight is the difference from one."""

    offset = 1.0


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
        inverse: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = inverse.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, scale, inverse)
        return (x * inverse).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, scale, inverse = ctx.saved_tensors
        grad = grad * scale
        along = torch.linalg.vecdot(grad, x)[..., None].mul_(inverse.square()).div_(x.shape[-1])
        return torch.addcmul(grad, x, along, value=-1).mul_(inverse), None, None


def _norm_class(module: nn.Module) -> type[nn.Module]:
    weight = getattr(module, "weight", None)
    if weight is None or weight.ndim != 1 or _trains(module):
        return type(module)
    found = _if_same(module, RMSNorm, len(weight))
    if found is RMSNorm or weight.dtype not in _DTYPES["cpu"]:  # in 16 bits, 1 + weight would be too coarse
        return found
    return _if_same(module, OffsetRMSNorm, len(weight))


# -- Bloom's GeLU ------------------------------------------------------------------------------------


class Gelu(nn.Module):
    """Bloom's GeLU as one operation instead of ten (its constant is torch's, rounded to float32)."""

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` -> ``[..., D]``."""
        result: Tensor = F.gelu(x, approximate="tanh")
        return result


# -- is it the same? ---------------------------------------------------------------------------------

_known: dict[tuple[Any, ...], bool] = {}
_DTYPES = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
}
"""Where, and in what numbers, a layer is exchanged."""


def _if_same(module: nn.Module, kind: type[nn.Module], width: int | None) -> type[nn.Module]:
    """``kind`` if it computes what ``module`` does: tried on a few numbers, once a class and its settings."""
    parameter = next(module.parameters(), None)
    if not width or parameter is None or parameter.device.type not in _DTYPES or "forward" in module.__dict__:
        return type(module)
    if parameter.dtype not in _DTYPES[parameter.device.type]:
        return type(module)
    if any(child._forward_hooks or child._forward_pre_hooks for child in module.children()):
        return type(module)  # they are not to see the numbers of a trial
    plain = (each for each in vars(module).items() if isinstance(each[1], bool | int | float | str))
    where = parameter.dtype, parameter.device
    key = (type(module), kind, *where, type(getattr(module, "act_fn", None)).__name__, *sorted(plain))
    if key not in _known:
        _known[key] = _same(module, kind, width, *where)
    return kind if _known[key] else type(module)


@torch.no_grad()
def _same(module: nn.Module, kind: type[nn.Module], width: int, dtype: torch.dtype, device: torch.device) -> bool:
    copied = recast(module, kind)
    x = torch.linspace(-2, 3, 3 * width, dtype=dtype, device=device).view(3, width).cos()
    rtol, atol = (1e-5, 1e-6) if dtype in _DTYPES["cpu"] else (2e-2, 1e-2)
    try:
        return torch.allclose(copied.forward(x), module.forward(x), rtol=rtol, atol=atol)
    except (AttributeError, TypeError, RuntimeError):
        return False
