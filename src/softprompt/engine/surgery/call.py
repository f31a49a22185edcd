"""The state of one call of a view, which travels in the call's arguments.

A view is shared by threads, and gradient checkpointing runs a layer again when other calls have begun. So nothing
about a call is stored on a module. transformers hands ``past_key_values`` to every decoder layer and every attention
layer, in all families; the cache of a call is therefore where its state lives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from torch import Tensor
from transformers import Cache


class CallCache(Cache):
    """The KV cache of one call of a view.

    Args:
        keep: keys and values are read after the call, so no layer may compute them twice (gradient checkpointing).
        capture: each decoder layer appends its output to ``layer_outputs``.
        **options: of ``transformers.Cache``.
    """

    def __init__(self, *, keep: bool = False, capture: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.keep = keep
        self.layer_outputs: list[Tensor] | None = [] if capture else None


def cache_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> CallCache | None:
    """The cache among a layer's arguments, whose name and position differ between families; ``None`` without one."""
    return next((each for each in chain(kwargs.values(), args) if isinstance(each, CallCache)), None)
