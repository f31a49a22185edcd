"""Fused layers: frozen layers that take less time and memory than the stock ones, to the same numbers.

A frozen weight needs no gradient, so nothing but activations is kept; and chains of small operations are one function
with a backward pass of its own. ``linear.py`` has the matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.bloom.modeling_bloom import BloomGelu

from .linear import FrozenLinear, OpaqueLinear, trains
from .view import has_hooks, recast


def fused(module: nn.Module) -> type[nn.Module]:
    """The fused class for a view of ``module``; its own class where there is none.

    Only exact classes are exchanged: a subclass (quantized, with LoRA, ...) computes something else.
    """
    kind = type(module)
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        return kind  # it chooses the dtype of each operation
    if not all(_is_plain(parameter) for parameter in module.parameters(recurse=False)):
        return OpaqueLinear if kind is nn.Linear else kind  # the weight's class defines the operation
    if isinstance(module, nn.Linear):
        return FrozenLinear if kind is nn.Linear and FrozenLinear.fits(module) else kind
    if kind is BloomGelu:
        return Gelu
    if kind.__name__.endswith("RMSNorm"):
        return _norm_class(module)
    children = {name for name, _ in module.named_children()}
    if children - {"act_fn"} == {"gate_proj", "up_proj", "down_proj"} and callable(getattr(module, "act_fn", None)):
        return _gated_class(module)
    return kind


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is an ordinary one, not of a subclass with operations of its own (torchao, DTensor)."""
    return type(tensor) in (Tensor, nn.Parameter)


# -- gated MLPs --------------------------------------------------------------------------------------


class GatedMLP(nn.Module):
    """``down(act(gate(x)) * up(x))`` that keeps only gate and up for the backward pass.

    Stock code also keeps act(gate), a quarter more.
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
    """``x / rms(x) * weight`` that keeps only ``x`` and one number per row for the backward pass."""

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
    """Gemma's RMSNorm, whose stored weight is the difference from one."""

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
    if weight is None or weight.ndim != 1 or trains(module):
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

_same_results: dict[tuple[Any, ...], bool] = {}
_DTYPES = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
}
"""Devices and dtypes for which layers are exchanged."""


def _if_same(module: nn.Module, kind: type[nn.Module], width: int | None) -> type[nn.Module]:
    """``kind`` if it computes what ``module`` does: tried on a few numbers, once per class and settings."""
    parameter = next(module.parameters(), None)
    if not width or parameter is None or parameter.device.type not in _DTYPES or "forward" in module.__dict__:
        return type(module)
    if parameter.dtype not in _DTYPES[parameter.device.type]:
        return type(module)
    if any(has_hooks(child) for child in module.children()):
        return type(module)  # hooks must not see the trial's numbers
    plain = (each for each in vars(module).items() if isinstance(each[1], bool | int | float | str))
    where = parameter.dtype, parameter.device
    key = (type(module), kind, *where, type(getattr(module, "act_fn", None)).__name__, *sorted(plain))
    if key not in _same_results:
        _same_results[key] = _same(module, kind, width, *where)
    return kind if _same_results[key] else type(module)


@torch.no_grad()
def _same(module: nn.Module, kind: type[nn.Module], width: int, dtype: torch.dtype, device: torch.device) -> bool:
    copied = recast(module, kind)
    x = torch.linspace(-2, 3, 3 * width, dtype=dtype, device=device).view(3, width).cos()
    rtol, atol = (1e-5, 1e-6) if dtype in _DTYPES["cpu"] else (2e-2, 1e-2)
    try:
        return torch.allclose(copied.forward(x), module.forward(x), rtol=rtol, atol=atol)
    except (AttributeError, TypeError, RuntimeError):
        return False
