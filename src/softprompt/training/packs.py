"""A batch in parts that are computed one after the other, with the memory of one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel

from ..engine.loss import token_losses
from ..engine.plans import packs, plan_examples
from ..engine.text_cache import TextCache, known_texts
from ..types import Example

KNOWN_TOKENS = 16
"""So many tokens of a text that is known cost the memory of one that is computed, or less."""


def prefix_packs(batch: Sequence[Example], tokens_per_pack: int) -> list[Sequence[Example]]:
    """Packs of at most so many tokens to compute, and of a row at least, under a prompt that is computed once."""
    return cut(batch, [len(row.input_ids) + len(row.label_ids) for row in batch], tokens_per_pack)


def suffix_packs(batch: Sequence[Example], num_virtual_tokens: int, tokens_per_pack: int) -> list[Sequence[Example]]:
    """The same for a prompt behind texts, which are known."""
    sizes = [num_virtual_tokens + len(row.label_ids) + len(row.input_ids) // KNOWN_TOKENS for row in batch]
    return cut(batch, sizes, tokens_per_pack)


def cut(batch: Sequence[Example], sizes: Sequence[int], most: int) -> list[Sequence[Example]]:
    """Rows in stretches whose sizes add up to at most so many, or of one row."""
    return [batch[rows.start : rows.stop] for rows in packs(sizes, most)]


def backward_suffix(
    base: PreTrainedModel, prompt: Tensor, parts: Sequence[Sequence[Example]], texts: TextCache | None
) -> float:
    """Add the gradient of the mean loss of all parts to ``prompt.grad``; returns that loss.

    Packs share nothing that is computed, so losses and gradients just add up.
    """
    tokens = sum(len(example.label_ids) for part in parts for example in part)
    total = 0.0
    for part in parts:
        plan = plan_examples(part, len(prompt), prompt.device, "suffix")
        loss = token_losses(base, plan, prompt, known_texts(base, plan, texts)).sum() / tokens
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total
