"""A prompt behind the text: losses, label scores and padded batches in the order text, prompt, label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..engine.loss import group_log_probs, hidden_states, token_losses
from ..engine.suffix import plan_suffix_candidates, plan_suffix_rows, text_places
from ..engine.surgery.capture import Means, but_first
from ..engine.surgery.lm_head import is_frozen
from ..engine.text_cache import TextCache, cached_texts, read_for
from ..engine.tree import Plan
from ..types import IGNORE_INDEX, Example
from .forward import Batch, output_of
from .output import PromptedCausalLMOutput
from .score import calls


def answer_losses(
    base: PreTrainedModel, prompt: Tensor, examples: Sequence[Example], texts: TextCache | None = None
) -> Tensor:
    """Negative log-likelihood ``[S]`` of each token of the examples' labels; the gradient arrives in ``prompt``.

    Args:
        prompt: ``[P, D]``.
        texts: knows the examples' texts; without it they are read here.
    """
    inputs = [example.input_ids for example in examples]
    plan = plan_suffix_rows(len(prompt), inputs, [example.label_ids for example in examples], prompt.device)
    known = None
    if texts is not None:
        known = cached_texts(plan, inputs, texts.get)
    elif torch.is_grad_enabled():  # apart, since no gradient goes through a text
        known = read_for(base, plan, inputs)
    return token_losses(base, plan, prompt, known=known)


@torch.no_grad()
def score_labels_with_suffix(
    base: PreTrainedModel,
    prompt: Tensor,
    texts: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    known: TextCache | None = None,
    means: list[Tensor] | None = None,
) -> Tensor:
    """Log-probability of each label behind text and prompt; see ``score.score_labels``.

    Args:
        prompt: ``[P, D]``; or several, ``[M, P, D]``, which stand side by side behind each text.
        known: knows the texts; without it they are read here.
        means: as for ``score_labels``; texts are then read here.

    Returns:
        ``[B, C]``, or ``[B, M, C]``.
    """
    inputs = [tuple(text) for text in texts]
    *several, length, width = prompt.shape
    number = several[0] if several else 1
    matrix = prompt.reshape(-1, width)
    parts = [torch.empty(0, *several, len(labels), device=prompt.device)]
    with_states = means is not None
    for rows in calls(base, inputs, labels, num_virtual_tokens=length, suffix=number, with_states=with_states):
        part = inputs[rows.start : rows.stop]
        plan = plan_suffix_candidates(length, part, labels, prompt.device, [range(number)] * len(part))
        found = {} if known is None or means is not None else cached_texts(plan, part, known.get)
        collected = None if means is None else Means(*but_first(text_places(plan), [len(t) for t in part]), len(part))
        parts.append(group_log_probs(base, plan, matrix, found, collected).view(len(part), *several, len(labels)))
        if means is not None and collected is not None:
            means.append(collected.found)
    return torch.cat(parts)


def forward_suffix(base: PreTrainedModel, prompt: Tensor, batch: Batch) -> PromptedCausalLMOutput:
    """Loss and logits of a padded batch; see ``forward.forward_rows``.

    The prompt stands before the first supervised token of a row; at its end where there is none, or no labels.
    """
    real = batch.real
    given = batch.embeds
    plan, texts = _plan_rows(len(prompt), batch)
    # Embeddings and weights may take a gradient; a text is then not known before it is asked for.
    known = read_for(base, plan, texts) if given is None and is_frozen(base) else None
    hidden = hidden_states(base, plan, prompt, given, known=known)

    virtual = (plan.tokens < 0).nonzero()[:, 0].view(len(real), len(prompt))
    given_tokens = torch.full_like(real, -1, dtype=torch.long).masked_scatter(real, plan.places)
    return output_of(base, plan, hidden, torch.cat([virtual, given_tokens], dim=1), batch)


def text_lengths(batch: Batch) -> Tensor:
    """``[B]`` tokens of each row that stand before its first label: all of a row that has none."""
    real = batch.real
    if batch.labels is None:
        return real.sum(1)
    supervised = real & (batch.labels != IGNORE_INDEX)
    return (real & (supervised.cumsum(1) == 0)).sum(1)


def _plan_rows(num_virtual_tokens: int, batch: Batch) -> tuple[Plan, list[tuple[int, ...]]]:
    """The plan of a batch, and the texts of its rows: what stands before the first label."""
    lengths, ids = batch.lengths, batch.ids
    labels = torch.full_like(ids, IGNORE_INDEX) if batch.flat_labels is None else batch.flat_labels
    rows = zip(torch.split(ids, lengths), torch.split(labels, lengths), text_lengths(batch).tolist(), strict=True)
    texts, answers, marks = [], [], []
    for row, label, cut in rows:
        texts.append(tuple(row[:cut].tolist()))
        # Plans leave an answer's last token out, which nothing reads. Here its logits may be read: one more goes.
        answers.append([*row[cut:].tolist(), 0])
        marks.append([*label[cut:].tolist(), IGNORE_INDEX])
    return plan_suffix_rows(num_virtual_tokens, texts, answers, ids.device, marks), texts
