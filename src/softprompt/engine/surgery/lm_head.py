"""The base's own head over hidden states of our choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from ...errors import ConfigError
from .fused import fused
from .view import variant, view

_HARMLESS = ("accelerate", "torch", "transformers", "trl")
"""Packages whose hooks and replaced ``forward`` do not change the result of an ordinary call: they move weights, enable
gradients, or act only on a keyword."""


def is_intercepted(module: nn.Module) -> bool:
    """Whether a module has hooks, or a ``forward`` other than its class's; harmless ones do not count."""
    own = [module.__dict__["forward"]] if "forward" in module.__dict__ else []
    added = (*module._forward_hooks.values(), *module._forward_pre_hooks.values(), *own)
    return any(_package(function) not in _HARMLESS for function in added)


def is_hooked(base: PreTrainedModel) -> bool:
    """Whether any module of the base is intercepted, and may so depend on the shape ``[B, P + T, D]``."""
    return any(is_intercepted(module) for module in base.modules())


def is_frozen(base: PreTrainedModel) -> bool:
    """Whether no weight takes a gradient: a caller may have set some free, or train LoRA layers as well."""
    return not any(parameter.requires_grad for parameter in base.parameters())


def is_head_frozen(base: PreTrainedModel) -> bool:
    """``is_frozen`` of what is above the backbone."""
    above = (child for child in base.children() if child is not base.base_model)
    return not any(parameter.requires_grad for child in above for parameter in child.parameters())


def _package(function: Any) -> str:
    """The top-level package that defines a function; with ``functools.wraps``, ``__module__`` names another."""
    function = getattr(function, "func", function)  # of a partial
    function = getattr(function, "__func__", function)  # of a method
    written = getattr(function, "__globals__", {}).get("__name__") or type(function).__module__
    return str(written).partition(".")[0]


def logits_of(base: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits ``[S, V]`` of hidden states ``[S, D]``.

    Runs the ``forward`` of the base's class with its backbone exchanged for one that answers ``hidden``:
    families scale, cap or project logits there, so applying the output matrix by hand would be wrong
    (Gemma 2, Cohere, Granite).

    Raises:
        ConfigError: the base is intercepted; its hooks would not run.
    """
    if is_intercepted(base):
        raise ConfigError(
            f"{type(base).__name__} has forward hooks or a replaced forward on the model itself, which scoring and "
            "training do not call; put the hooks on a module inside the model, or remove them"
        )
    above = {name: view(child, fused) for name, child in base.named_children() if child is not base.base_model}
    copied = with_hidden_states(base, hidden, above)
    logits: Tensor = type(base).forward(copied, inputs_embeds=hidden[None], use_cache=False, return_dict=True).logits
    return logits[0]


def with_hidden_states(
    base: PreTrainedModel, hidden: Tensor, modules: dict[str, nn.Module] | None = None
) -> PreTrainedModel:
    """A variant of ``base`` whose backbone returns the hidden states ``[S, D]``, as ``[1, S, D]``, for any input.

    Args:
        modules: further children to replace.
    """
    exchanged = {**(modules or {}), base.base_model_prefix: _Given(hidden[None])}
    head = base.get_output_embeddings  # transformers' own looks for input embeddings in the backbone first
    return variant(base, modules=exchanged, get_output_embeddings=head)


class _Given(nn.Module):
    """A backbone that answers with hidden states it was given."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    @property
    def decoder(self) -> _Given:
        """OPT's head model calls the decoder inside its backbone."""
        return self

    def forward(self, *_: Any, **__: Any) -> _Answer:
        return _Answer(last_hidden_state=self.hidden)


@dataclass
class _Answer(BaseModelOutputWithPast):
    """Hidden states, and ``None`` for whatever else a family's head asks of its backbone (router logits, ...)."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
