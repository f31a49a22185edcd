"""The sides that are compared. Each makes a training step of the same rows: loss and gradient of the prompt.

``peft guide``  PEFT as the guide uses it: left-padded to ``max_length``, logits at all positions.
``peft best``   PEFT padded to the longest row of the batch.
``drop-in``     our ``get_peft_model`` on the guide's padded batches: only the import changed.
``softprompt``  what ``softprompt train`` does: rows straight to the engine.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import PromptTuningConfig
from ..engine.loss import token_losses
from ..errors import MissingExtraError
from ..evaluate import plan_examples
from ..types import IGNORE_INDEX, Example
from ..wrap import get_peft_model

PEFT_GUIDE, PEFT_BEST, DROP_IN, OURS = "peft guide", "peft best", "drop-in", "softprompt"
SIDES = (PEFT_GUIDE, PEFT_BEST, DROP_IN, OURS)


class Side(ABC):
    """One way to train: a base model of its own, and the same prompt as the others."""

    def __init__(self, prompt: Tensor) -> None:
        self.prompt = torch.nn.Parameter(prompt.clone())

    @abstractmethod
    def loss(self, batch: Sequence[Example]) -> Tensor:
        """Mean loss over the batch's supervised tokens."""

    def step(self, batch: Sequence[Example]) -> tuple[float, Tensor]:
        """Loss and gradient ``[P, D]`` of one batch."""
        self.prompt.grad = None
        loss = self.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        gradient: Tensor | None = self.prompt.grad
        assert gradient is not None
        return loss.item(), gradient


def make_side(name: str, base: Any, prompt: Tensor, max_length: int) -> Side:
    """A side by name.

    Raises:
        MissingExtraError: PEFT is not installed.
    """
    if name == OURS:
        return _Engine(base, prompt)
    return _Padded(name, base, prompt, None if name == PEFT_BEST else max_length)


class _Engine(Side):
    def __init__(self, base: Any, prompt: Tensor) -> None:
        super().__init__(prompt)
        self._base = base.requires_grad_(False).eval()

    def loss(self, batch: Sequence[Example]) -> Tensor:
        plan = plan_examples(batch, len(self.prompt), self.prompt.device)
        return token_losses(self._base, plan, self.prompt).mean()


class _Padded(Side):
    def __init__(self, name: str, base: Any, prompt: Tensor, max_length: int | None) -> None:
        super().__init__(prompt)
        self._max_length = max_length
        self._model = _wrap(name, base, len(prompt))
        self._model.train()
        self.prompt = self._model.prompt_encoder["default"].embedding.weight
        with torch.no_grad():
            self.prompt.copy_(prompt)

    def loss(self, batch: Sequence[Example]) -> Tensor:
        loss: Tensor = self._model(**left_padded(batch, self._max_length, self.prompt.device)).loss
        return loss


def _wrap(name: str, base: Any, num_virtual_tokens: int) -> Any:
    if name == DROP_IN:
        return get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=num_virtual_tokens))
    try:
        import peft
    except ImportError:
        raise MissingExtraError("peft", "bench", "comparing with PEFT") from None
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=num_virtual_tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses a name that transformers is about to drop
        return peft.get_peft_model(base, config)


def left_padded(batch: Sequence[Example], max_length: int | None, device: torch.device) -> dict[str, Tensor]:
    """The batch as the guide makes it: ``input_ids``, ``attention_mask`` and ``labels``, ``[B, max_length]``."""
    rows = [(*example.input_ids, *example.label_ids) for example in batch]
    width = max_length or max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE_INDEX)
    for i, (row, example) in enumerate(zip(rows, batch, strict=True)):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
        labels[i, width - len(example.label_ids) :] = torch.tensor(example.label_ids)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device), "labels": labels.to(device)}
