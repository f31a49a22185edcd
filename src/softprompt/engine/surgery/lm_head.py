"""The LM head: a base model's logits from hidden states, and whether hooks or gradients forbid a short cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from ...errors import ConfigError
from .fused import fused
from .view import hooks_of, variant, view

_HARMLESS = ("accelerate", "torch", "transformers", "trl")
"""Packages whose hooks and replaced ``forward`` do not change the result of an ordinary call: they move weights, enable
gradients, or need a keyword to act."""


def is_intercepted(module: nn.Module) -> bool:
    """Whether a module has hooks, or a ``forward`` other than its class's; harmless ones do not count."""
    own = [module.__dict__["forward"]] if "forward" in module.__dict__ else []
    return any(_package(function) not in _HARMLESS for function in (*hooks_of(module), *own))


def is_hooked(base: PreTrainedModel) -> bool:
    """Whether any module of the base is intercepted, and may so depend on the shape ``[B, P + T, D]``."""
    return any(is_intercepted(module) for module in base.modules())


def is_frozen(base: PreTrainedModel) -> bool:
    """Whether no weight takes a gradient: a caller may have set some free, or train LoRA layers as well."""
    return not any(parameter.requires_grad for parameter in base.parameters())


def is_head_frozen(base: PreTrainedModel) -> bool:
    """``is_frozen`` for the modules above the backbone."""
    above = (child for child in base.children() if child is not base.base_model)
    return not any(parameter.requires_grad for child in above for parameter in child.parameters())


def _package(function: Any) -> str:
    """The top-level package that defines a function; with ``functools.wraps``, ``__module__`` names another."""
    function = getattr(function, "func", function)  # of a partial
    function = getattr(function, "__func__", function)  # of a method
    written = getattr(function, "__globals__", {}).get("__name__") or type(function).__module__
    return str(written).partition(".")[0]


def head_view(base: PreTrainedModel) -> PreTrainedModel:
    """A view of ``base`` that computes logits from hidden states, with all else that stands above its backbone.

    Its backbone returns the ``inputs_embeds`` of the call. Families scale, cap or project logits in the ``forward`` of
    their class, so applying the output matrix by hand would be wrong (Gemma 2, Cohere, Granite).

    Raises:
        ConfigError: the base is intercepted; its hooks would not run.
    """
    if is_intercepted(base):
        raise ConfigError(
            f"{type(base).__name__} has forward hooks or a replaced forward on the model itself, which scoring and "
            "training do not call; put the hooks on a module inside the model, or remove them"
        )
    above = {name: view(child, fused) for name, child in base.named_children() if child is not base.base_model}
    return without_backbone(base, above)


def without_backbone(base: PreTrainedModel, modules: dict[str, nn.Module] | None = None) -> PreTrainedModel:
    """A variant of ``base`` that takes hidden states ``[B, S, D']`` as ``inputs_embeds``.

    Args:
        modules: further children to replace.
    """
    exchanged = {**(modules or {}), base.base_model_prefix: _Passing()}
    head = base.get_output_embeddings  # transformers' own looks for input embeddings in the backbone first
    return variant(base, modules=exchanged, get_output_embeddings=head)


def head_logits(view: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits ``[S, V]`` of hidden states ``[S, D']``, on a view from ``head_view``."""
    output = type(view).forward(view, inputs_embeds=hidden[None], use_cache=False, return_dict=True)
    logits: Tensor = output.logits
    return logits[0]


class _Passing(nn.Module):
    """A backbone that returns its inputs as hidden states."""

    @property
    def decoder(self) -> _Passing:
        """OPT's head model calls the decoder inside its backbone."""
        return self

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _Output:
        return _Output(last_hidden_state=inputs_embeds)


@dataclass
class _Output(BaseModelOutputWithPast):
    """Hidden states, and ``None`` for whatever else a family's head reads from its backbone (router logits, ...)."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
