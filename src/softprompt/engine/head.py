"""The base's own head over hidden states of our choice, and a base with parts exchanged, untouched itself."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast


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


def logits_of(base: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits ``[S, V]`` of hidden states ``[S, D]``.

    Runs the ``forward`` of the base's class with its backbone exchanged for one that answers ``hidden``:
    families scale, cap or project logits there, so applying the output matrix by hand would be wrong
    (Gemma 2, Cohere, Granite).
    """
    given = _Given(hidden[None])
    view = variant(base, modules={base.base_model_prefix: given})
    logits: Tensor = type(base).forward(view, inputs_embeds=hidden[None], use_cache=False, return_dict=True).logits
    return logits[0]


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
