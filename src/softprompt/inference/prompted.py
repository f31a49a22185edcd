"""A base model with one soft prompt: the value that evaluation, prediction and generation take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..engine.kv_cache import KVCache
from ..engine.row_prompts import RowPrompts
from ..engine.runner import ModelRunner
from ..types import Placement
from . import generate as decoding


@dataclass(frozen=True, eq=False)
class PromptedModel:
    """A frozen base model and one soft prompt.

    Attributes:
        runner: owns the base model and what is derived from it.
        prompt: ``[P, D]``, float32, on the base model's device.
        placement: whether the prompt is a prefix or a suffix of the text.
    """

    runner: ModelRunner
    prompt: Tensor
    placement: Placement = "prefix"

    @property
    def base(self) -> PreTrainedModel:
        """The base model."""
        return self.runner.base

    @torch.no_grad()
    def prefilled(self) -> Tensor | KVCache:
        """The KV cache of a prefix prompt, which all batches of a call share; the matrix ``[P, D]`` of a suffix."""
        return self.prompt if self.placement == "suffix" else self.runner.prefill_prompt(self.prompt)

    def generate(self, **kwargs: Any) -> Any:
        """transformers' ``generate`` with the prompt in every row; arguments and return value are the same."""
        prompts = RowPrompts.of([self.prompt]).detach()
        return decoding.generate(self.runner, prompts, suffix=self.placement == "suffix", **kwargs)
