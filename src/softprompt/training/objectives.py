"""Training to tell classes apart: cross-entropy between the label texts of a task.

The language-model loss also rewards making the labels likely among all texts; with a few dozen rows most of its
gradient goes there. Here only the labels' probabilities relative to each other count.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ..engine.accumulate import summed_loss
from ..engine.kv_cache import KVCache
from ..engine.loss import group_log_probs
from ..engine.plans import plan_candidates
from ..engine.prefix_sharing import branch_tokens
from ..engine.text_cache import TextCache, known_texts
from ..inference.evaluate import Classes
from ..types import Example
from .packs import KNOWN_TOKENS, cut


def packs_of_candidates(
    batch: Sequence[Example], classes: Classes, num_virtual_tokens: int, suffix: int, tokens_per_pack: int
) -> list[Sequence[Example]]:
    """Packs of at most ``tokens_per_pack`` tokens of texts, prompts behind them and label branches, or of one row.

    Args:
        num_virtual_tokens: of each prompt.
        behind: how many prompts stand behind each text; 0 for one in front of all.
    """
    branches = branch_tokens(classes.ids)
    if suffix:
        below = suffix * (num_virtual_tokens + branches)
        sizes = [below + len(row.input_ids) // KNOWN_TOKENS for row in batch]
    else:
        sizes = [len(row.input_ids) + branches for row in batch]
    return cut(batch, sizes, tokens_per_pack)


def backward_classes(
    base: PreTrainedModel,
    prompt: Tensor,
    parts: Sequence[Sequence[Example]],
    classes: Classes,
    texts: TextCache | None,
    *,
    suffix: bool,
    weights: Tensor | None = None,
) -> float:
    """Add the gradient of the mean cross-entropy of all rows to ``prompt.grad``; returns that loss, in nats.

    Args:
        weights: ``[C]`` how much a row of each class counts; ``None`` for 1.
    """
    rows = sum(map(len, parts))

    def of(part: Sequence[Example], prompt: Tensor | KVCache) -> Tensor:
        inputs = [row.input_ids for row in part]
        if isinstance(prompt, Tensor) and suffix:
            scores = suffix_candidate_scores(base, prompt[None], inputs, [[0]] * len(inputs), classes, texts)
        else:
            scores = candidate_scores(base, prompt, inputs, classes)
        gold = torch.tensor(gold_of(part, classes), device=scores.device)
        return F.cross_entropy(scores, gold, weight=weights, reduction="sum") / rows

    if not suffix:
        loss = summed_loss(base, [partial(of, part) for part in parts], prompt)  # the prompt is computed once for all
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()
    total = 0.0
    for part in parts:  # packs share no computation
        loss = of(part, prompt)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total


def gold_of(examples: Sequence[Example], classes: Classes) -> list[int]:
    """Index of the right class of each example."""
    return [classes.names.index(str(example.label)) for example in examples]


def candidate_scores(
    base: PreTrainedModel,
    prompt: Tensor | KVCache,
    inputs: Sequence[tuple[int, ...]],
    classes: Classes,
) -> Tensor:
    """Log-probability ``[B, C]`` of each label behind each text; differentiable in ``prompt``.

    Args:
        prompt: ``[P, D]``, or the compiled prompt.
    """
    plan = plan_candidates(len(prompt), inputs, classes.ids, base.device)
    return group_log_probs(base, plan, prompt).view(len(inputs), len(classes.ids))


def suffix_candidate_scores(
    base: PreTrainedModel,
    prompts: Tensor,
    inputs: Sequence[tuple[int, ...]],
    which: Sequence[Sequence[int]],
    classes: Classes,
    texts: TextCache | None,
) -> Tensor:
    """Log-probability ``[pairs, C]`` of each label behind some of several prompts ``[M, P, D]`` behind each text.

    Args:
        which: the prompts behind each text; pairs come in this order.
    """
    plan = plan_candidates(prompts.shape[1], inputs, classes.ids, prompts.device, which)
    known = known_texts(base, plan, texts)
    return group_log_probs(base, plan, prompts.flatten(0, 1), known).view(-1, len(classes.ids))
