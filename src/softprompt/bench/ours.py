"""softprompt, as its own commands use it: the one place of the bench that calls the engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import PromptTuningConfig
from ..engine.accumulate import mean_loss
from ..engine.compiled import compile_prompt
from ..engine.known import Known
from ..engine.loss import token_losses
from ..engine.plans import join, packs, plan_choices
from ..evaluate import plan_examples
from ..score import score_labels
from ..types import Example
from ..wrap import get_peft_model

TOKENS_PER_PACK = {"cpu": 1024, "cuda": 16_384}
"""Most tokens of rows in one plan, as ``softprompt train`` has it; a larger batch takes several plans."""


def train_step(base: Any, prompt: Tensor, batch: Sequence[Example]) -> tuple[float, float]:
    """Add the gradient of the batch's mean loss to ``prompt.grad``.

    Returns:
        The loss, and the seconds that went into building plans.
    """
    started = time.perf_counter()
    most = TOKENS_PER_PACK.get(prompt.device.type, TOKENS_PER_PACK["cuda"])
    lengths = [len(example.input_ids) + len(example.label_ids) for example in batch]
    parts = [batch[rows.start : rows.stop] for rows in packs(lengths, most)]
    plans = [plan_examples(part, len(prompt), prompt.device) for part in parts]
    planning = time.perf_counter() - started
    loss = mean_loss(base, plans, prompt)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), planning


def drop_in(base: Any, prompt: Tensor) -> Any:
    """Our model with PEFT's interface."""
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(prompt))
    model = get_peft_model(base, config)
    with torch.no_grad():
        model.prompt.copy_(prompt)
    return model


@torch.no_grad()
def compiled(base: Any, prompt: Tensor) -> Known:
    """The prompt as evaluation and serving keep it: computed once."""
    return compile_prompt(base, prompt)


@torch.no_grad()
def score(base: Any, prompt: Known, texts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> Tensor:
    """Log-probability ``[B, C]`` of each label behind each text, on the CPU."""
    return score_labels(base, prompt, texts, labels).cpu()


@torch.no_grad()
def score_stream(
    base: Any,
    prompts: Sequence[Known],
    tasks: Sequence[int],
    texts: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
) -> Tensor:
    """As ``score``, where row i has the prompt ``tasks[i]``: all rows in one run of the model."""
    rows_of: dict[int, list[int]] = {}
    for row, task in enumerate(tasks):
        rows_of.setdefault(task, []).append(row)
    device = base.device
    plan = join(
        [plan_choices(len(prompts[task]), [texts[i] for i in rows], labels, device) for task, rows in rows_of.items()]
    )
    losses = token_losses(base, plan, [prompts[task] for task in rows_of])
    totals = torch.zeros(plan.num_groups, device=losses.device).index_add_(0, plan.groups, -losses)
    found = totals.view(len(texts), len(labels)).cpu()
    order = torch.tensor([row for rows in rows_of.values() for row in rows])
    return torch.empty_like(found).index_copy_(0, order, found)


@dataclass(frozen=True)
class Size:
    """What a batch costs whoever repeats nothing.

    Attributes:
        tokens: T, unique tokens.
        supervised: S, positions that need logits.
        pairs: (token, token it attends to).
    """

    tokens: int
    supervised: int
    pairs: int


def size_of(batch: Sequence[Example], num_virtual_tokens: int) -> Size:
    """The size of a batch as one plan."""
    plan = plan_examples(batch, num_virtual_tokens, torch.device("cpu"))
    tree = plan.tree
    pairs = sum(own * above + own * (own + 1) // 2 for own, above in zip(tree.lengths, tree.depths, strict=True))
    return Size(tree.num_tokens, len(plan.targets), pairs)
