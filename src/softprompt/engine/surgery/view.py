"""A base model with parts exchanged, while the base itself stays untouched.

This is the one module that reads or replaces a module's tables of children and hooks, which torch calls private and
has kept since its first release.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import nn
from transformers import PreTrainedModel

M = TypeVar("M", bound=nn.Module)


def variant(
    base: PreTrainedModel, *, modules: dict[str, nn.Module] | None = None, **attributes: Any
) -> PreTrainedModel:
    """A shallow copy of ``base``: same weights, with some children or attributes exchanged.

    The base itself is not patched, so nothing needs restoring, and other threads notice nothing.
    """
    view = copy.copy(base)
    view.__dict__["_modules"] = {**base._modules, **(modules or {})}
    view.__dict__.update(attributes)
    return view


def without_hooks(view: PreTrainedModel) -> PreTrainedModel:
    """A variant, now without forward hooks of its own; those of the modules below stay."""
    view.__dict__.update(_forward_hooks=OrderedDict(), _forward_pre_hooks=OrderedDict())
    return view


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has forward hooks."""
    return bool(hooks_of(module))


def hooks_of(module: nn.Module) -> list[Callable[..., Any]]:
    """A module's forward hooks, those before the forward last."""
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]


Exchange = Callable[[nn.Module], type[nn.Module]]
"""The class that a module's view gets; the module's own class for no exchange."""


def view(module: M, exchange: Exchange, shared: dict[str, Any] | None = None) -> M:
    """A shallow copy of a module and of all below it, in which some modules behave as another class does.

    A copy has the attributes of its original (weights, hooks, sizes) and the class that ``exchange`` returns, so a
    class with another ``forward`` is enough to compute something differently. Leaves that keep their class are not
    copied.

    Args:
        shared: attributes to set on each copy that has an attribute of that name already.
    """
    return cast(M, _copy(module, exchange, shared or {}))


def _copy(module: nn.Module, exchange: Exchange, shared: dict[str, Any]) -> nn.Module:
    kind, children = exchange(module), module._modules
    if kind is type(module) and not children:
        return module
    copied = recast(module, kind)
    own = copied.__dict__
    own["_modules"] = {name: child and _copy(child, exchange, shared) for name, child in children.items()}
    own.update((name, value) for name, value in shared.items() if name in module.__dict__)
    return copied


def recast(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """A module of another class with the attributes of ``module``, children and weights among them."""
    copied: nn.Module = object.__new__(kind)  # FSDP's classes make more of their own __new__
    copied.__dict__.update(module.__dict__)
    return copied
