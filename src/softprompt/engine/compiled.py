"""A prompt computed once: its keys, values and hidden states, read by everything behind it."""

from __future__ import annotations

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
    """A compiled prompt, kept until the prompt's numbers (or its base) change."""

    def __init__(self) -> None:
        self._made_of: tuple[PreTrainedModel, Tensor] | None = None
        self._known: Known

    @torch.no_grad()
    def get(self, base: PreTrainedModel, prompt: Tensor) -> Known:
        """The compiled prompt, computed anew where the numbers differ from those it was made of."""
        made = self._made_of
        stale = made is None or made[0] is not base or made[1].device != prompt.device
        if made is None or stale or not torch.equal(made[1], prompt):
            self._known = compile_prompt(base, prompt)
            self._made_of = base, prompt.detach().clone()
        return self._known
