"""A prompt computed once: its keys, values and hidden states, read by everything behind it."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..families import check_depth
from .known import Known
from .run import compute
from .tree import ROOT, Tree


def compile_prompt(base: PreTrainedModel, prompt: Tensor) -> Known:
    """What a prompt ``[P, D]`` leaves behind in each layer; differentiable."""
    check_depth(base.config, len(prompt))
    dtype = next(base.get_input_embeddings().parameters()).dtype
    return compute(base.base_model, Tree((ROOT,), (len(prompt),)), prompt.to(dtype))[0]


class Compiled:
    """A compiled prompt, kept until its numbers change, or those of its base. Copies, pickled ones too, start empty."""

    def __init__(self) -> None:
        self._kept: tuple[tuple[Any, ...], Tensor, Known] | None = None

    @torch.no_grad()
    def get(self, base: PreTrainedModel, prompt: Tensor) -> Known:
        """The compiled prompt, computed anew where something differs from what it was made of."""
        state = _state(base, prompt)
        kept = self._kept
        if kept is None or kept[0] != state or not torch.equal(kept[1], prompt):
            # One assignment: threads (data parallelism) may overwrite each other's, but never mix them up.
            kept = self._kept = state, prompt.detach().clone(), compile_prompt(base, prompt)
        return kept[2]

    def __reduce__(self) -> Any:
        return Compiled, ()


def _state(base: PreTrainedModel, prompt: Tensor) -> tuple[Any, ...]:
    """All that a compiled prompt depends on beside the prompt's numbers.

    A weight that was moved or converted lies elsewhere, and one that was written to counts that.
    """
    device = prompt.device.type
    weights = (
        (weight.data_ptr(), 0 if weight.is_inference() else weight._version, weight.dtype, weight.device)
        for weight in chain(base.parameters(), base.buffers())
    )
    autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return (base, prompt.device, *autocast, *weights)
