"""Log-probabilities of label candidates after texts, in one pass over a token tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..engine.kv_cache import KVCache
from ..engine.loss import group_log_probs
from ..engine.plans import packs, plan_candidates
from ..engine.prefix_sharing import branch_tokens
from ..engine.runner import BaseOrRunner, ModelRunner
from ..engine.surgery.capture import Means, but_first
from ..engine.text_cache import TextCache, cached_texts
from ..errors import ConfigError
from ..types import Placement

TOKENS_PER_CALL = 4096
"""Most tokens in one call: texts, suffix prompts and label candidates."""
TOKENS_WITH_STATES = 1024
"""Most tokens in one call that keeps the hidden states of all layers (70 kB per token in SmolLM2-135M, float32)."""
KEYS_PER_CALL = 1 << 14
"""Most keys that the label candidates of one call attend to with the levelwise backend. There each candidate has a copy
of the keys and values of its text (46 kB per key in SmolLM2-135M, float32): many classes mean few texts per call."""


@torch.no_grad()
def score_labels(
    base: BaseOrRunner,
    prompt: Tensor | KVCache,
    texts: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    means: list[Tensor] | None = None,
    *,
    placement: Placement = "prefix",
    text_cache: TextCache | None = None,
) -> Tensor:
    """Log-probability of each label after each text.

    Args:
        base: the frozen causal language model, or the runner that owns it.
        prompt: a prefix prompt, ``[P, D]`` or prefilled; or a suffix prompt ``[P, D]``, or several ``[M, P, D]``, each
            of which follows every text as if it were alone.
        texts: B rows of token ids.
        labels: C labels of token ids, end token included, so that no label is a prefix of another.
        means: a list to which parts ``[b, layers, D]`` of the mean hidden states of the texts are appended, in order.
        placement: ``prefix`` (prompt, text, label) or ``suffix`` (text, prompt, label).
        text_cache: supplies keys and values of texts before suffix prompts. Without it, or with ``means``, they are
            computed here.

    Returns:
        ``[B, C]`` float32, the sum of the log-probabilities of the label's tokens; ``[B, M, C]`` for several prompts.

    Raises:
        ConfigError: the prompt or the text cache does not fit the placement, or nothing precedes a label.
    """
    runner = ModelRunner.of(base)
    matrix, num_prompts = _check(prompt, placement, text_cache)
    several = [len(prompt)] if isinstance(prompt, Tensor) and prompt.ndim == 3 else []
    length = len(matrix) // max(num_prompts, 1)
    parts = [torch.empty(0, *several, len(labels), device=runner.base.device)]
    for rows in _calls(runner, texts, labels, length, num_prompts, with_states=means is not None):
        part = texts[rows.start : rows.stop]
        which = [range(num_prompts)] * len(part) if placement == "suffix" else None
        plan = plan_candidates(length, part, labels, runner.base.device, which)
        if means is None:
            found = group_log_probs(runner, plan, matrix, cached_texts(runner, plan, text_cache))
        else:
            collected = Means(*but_first(plan.places, [len(text) for text in part]), len(part))
            found = group_log_probs(runner, plan, matrix, means=collected)
            means.append(collected.found)
        parts.append(found.view(len(part), *several, len(labels)))
    return torch.cat(parts)


def _check(
    prompt: Tensor | KVCache, placement: Placement, text_cache: TextCache | None
) -> tuple[Tensor | KVCache, int]:
    """The prompts as one matrix (or the prefilled prompt), and the number of suffix prompts; 0 for a prefix prompt."""
    if placement == "suffix":
        if isinstance(prompt, KVCache):
            raise ConfigError("a suffix prompt attends to each text and cannot be prefilled; give it as [P, D]")
        return (prompt.flatten(0, 1), len(prompt)) if prompt.ndim == 3 else (prompt, 1)
    if isinstance(prompt, Tensor) and prompt.ndim != 2:
        raise ConfigError(f"a prefix prompt must be [P, D], not {list(prompt.shape)}; several need placement='suffix'")
    if text_cache is not None:
        raise ConfigError("after a prefix prompt, texts have no keys and values of their own; leave text_cache out")
    return prompt, 0


def _calls(
    runner: ModelRunner,
    texts: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    num_virtual_tokens: int,
    num_suffix_prompts: int,
    *,
    with_states: bool,
) -> Iterator[range]:
    """Cut texts into what one call computes.

    Args:
        num_virtual_tokens: P, of each prompt.
        num_suffix_prompts: how many follow each text; 0 for a prefix prompt.
        with_states: whether hidden states of all layers are kept.
    """
    if runner.backend == "levelwise":
        longest = num_virtual_tokens + max((len(text) for text in texts), default=0)
        return packs([longest * max(len(labels), 1) * max(num_suffix_prompts, 1)] * len(texts), KEYS_PER_CALL)
    branches = branch_tokens(labels)
    below = num_suffix_prompts * (num_virtual_tokens + branches) or branches
    return packs([len(text) + below for text in texts], TOKENS_WITH_STATES if with_states else TOKENS_PER_CALL)
