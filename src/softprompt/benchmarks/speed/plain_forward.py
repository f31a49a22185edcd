"""The reference: each row alone, without padding, by plain calls of the model, without PEFT or the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...types import Example


def loss_and_gradient(
    base: Any, prompt: Tensor, batch: Sequence[Example], *, suffix: bool = False
) -> tuple[float, Tensor]:
    """Mean loss over the supervised tokens of a batch, and its gradient ``[P, D]``, row by row.

    Args:
        suffix: whether the order is text, prompt, label.
    """
    leaf = prompt.detach().clone().requires_grad_()
    count = sum(len(example.label_ids) for example in batch)
    total = 0.0
    for example in batch:
        loss = -_log_probs(base, leaf, example.input_ids, example.label_ids, suffix).sum() / count
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    assert leaf.grad is not None
    return total, leaf.grad


def candidate_loss_and_gradient(
    base: Any, prompt: Tensor, text: Sequence[int], labels: Sequence[Sequence[int]], gold: int
) -> tuple[float, Tensor]:
    """Cross-entropy over the labels of a text, and its gradient ``[P, D]``, label by label."""
    log_probs = label_scores(base, prompt, [text], labels)[0].log_softmax(-1)
    leaf = prompt.detach().clone().requires_grad_()
    for number, (label, probability) in enumerate(zip(labels, log_probs.exp().tolist(), strict=True)):
        (_log_probs(base, leaf, text, label).sum() * (probability - (number == gold))).backward()
    assert leaf.grad is not None
    return -float(log_probs[gold]), leaf.grad


@torch.no_grad()
def label_scores(base: Any, prompt: Tensor, texts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> Tensor:
    """Log-probability ``[B, C]`` of each label after each text."""
    return torch.stack(
        [torch.stack([_log_probs(base, prompt, text, label).sum() for label in labels]) for text in texts]
    ).cpu()


@torch.no_grad()
def greedy(base: Any, prompt: Tensor, text: Sequence[int], max_new_tokens: int) -> list[int]:
    """Greedy decoding without a KV cache."""
    ids = list(text)
    for _ in range(max_new_tokens):
        ids.append(int(_logits(base, (), prompt, ids, 1)[-1].argmax()))
    return ids[len(text) :]


def _log_probs(base: Any, prompt: Tensor, text: Sequence[int], label: Sequence[int], suffix: bool = False) -> Tensor:
    """Log-probability of each token of a label after a text."""
    before, after = (text, label) if suffix else ((), (*text, *label))
    logits = _logits(base, before, prompt, after, len(label) + 1)[:-1]
    targets = torch.tensor(label, device=logits.device)
    return -F.cross_entropy(logits.float(), targets, reduction="none")


def _logits(base: Any, before: Sequence[int], prompt: Tensor, after: Sequence[int], last: int) -> Tensor:
    """Logits ``[last, V]`` at the last positions of the sequence ``before``, prompt, ``after``."""
    ids = torch.tensor([*before, *after], device=prompt.device)
    head, tail = base.get_input_embeddings()(ids).tensor_split([len(before)])
    together = torch.cat([head, prompt.to(tail.dtype), tail])[None]
    logits: Tensor = base(inputs_embeds=together, use_cache=False, logits_to_keep=last).logits
    return logits[0]
