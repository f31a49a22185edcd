"""Prefilled prompts of many adapters, in bounded memory."""

from __future__ import annotations

import threading
from collections import OrderedDict

import torch

from ..engine.runner import ModelRunner
from .mixed_rows import PlacedPrompt
from .prompted import PromptedModel


class PromptCache:
    """The KV caches of prefix prompts; the least recently used make room for others.

    Any number of threads may ``get``. A prompt that is in use stays valid when it is evicted.

    Args:
        runner: owns the base model, which must not change.
        memory: bytes of keys and values. A prompt that alone takes more is computed at each use.
    """

    def __init__(self, runner: ModelRunner, memory: int) -> None:
        self._runner, self._memory = runner, memory
        self._kept: OrderedDict[PromptedModel, tuple[PlacedPrompt, int]] = OrderedDict()
        self._used, self._lock = 0, threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Bytes in use."""
        return self._used

    @torch.no_grad()
    def get(self, model: PromptedModel) -> PlacedPrompt:
        """The prompt of an adapter, prefilled if it is a prefix; the same object at each call while it is kept."""
        with self._lock:
            if model in self._kept:
                self._kept.move_to_end(model)
                return self._kept[model][0]
        cache = self._runner.prefill_prompt(model.prompt) if model.placement == "prefix" else None
        found = PlacedPrompt(model.prompt, model.placement, cache)
        size = 0 if cache is None else sum(each.nbytes for each in cache.tensors)
        return self._keep(model, found, size)

    def drop(self, model: PromptedModel) -> None:
        """Forget the prompt of an adapter."""
        with self._lock:
            self._used -= self._kept.pop(model, (None, 0))[1]

    def _keep(self, model: PromptedModel, prompt: PlacedPrompt, size: int) -> PlacedPrompt:
        with self._lock:
            if model in self._kept:  # another thread was faster
                return self._kept[model][0]
            if size <= self._memory:
                self._kept[model] = prompt, size
                self._used += size
            while self._used > self._memory:
                self._used -= self._kept.popitem(last=False)[1][1]
        return prompt
