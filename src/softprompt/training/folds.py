"""Prompts that have each seen other rows: trained together in one forest, and judged by the rows they have not seen.

The training rows are cut into k parts, classes spread evenly; prompt i learns from all rows but part i. All prompts
stand side by side behind each text, so a text is attended to from memory and a step computes but ``P`` tokens for
each pair of row and prompt. AdamW works number by number, so each prompt learns as if it were alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import TrainingError
from ..inference.evaluate import Classes
from ..inference.probe import class_weights
from ..inference.score import score_labels
from ..types import Example
from .finite_check import take_step
from .objectives import gold_of, packs_of_candidates, suffix_candidate_scores
from .run import Run, read_texts, rows_of_step
from .schedule import share_of_peak


@dataclass(frozen=True)
class FoldData:
    """What several prompts are to learn.

    Attributes:
        examples: N rows; their own labels do not matter here.
        targets: ``[N, C]`` probability of each class.
        weights: ``[M, N]`` how much a row counts for a prompt; 0 where it must not see it.
    """

    examples: Sequence[Example]
    targets: Tensor
    weights: Tensor


def fold_data(run: Run, classes: Classes) -> FoldData:
    """``num_folds`` prompts for each of ``fold_repeats`` cuts of the training rows."""
    options, number = run.options, len(classes.ids)
    gold = gold_of(run.examples, classes)
    cuts = [cut_folds(gold, options.num_folds, options.seed * 65_537 + i) for i in range(options.fold_repeats)]
    inside = [[part != fold for part in cut] for cut in cuts for fold in sorted(set(cut))]
    weights = torch.tensor(inside, dtype=torch.float32)
    if options.class_weights == "balanced":
        right = torch.tensor(gold)
        for row in weights:
            row *= class_weights(right[row > 0].tolist(), number)[right]
    return FoldData(run.examples, torch.eye(number)[gold], weights)


def cut_folds(gold: Sequence[int], number: int, seed: int) -> list[int]:
    """Part ``0 .. number - 1`` of each row; every part has its share of each class, as far as rows go round."""
    shuffled = torch.randperm(len(gold), generator=torch.Generator().manual_seed(seed)).tolist()
    parts = [0] * len(gold)
    for place, row in enumerate(sorted(shuffled, key=lambda row: gold[row])):
        parts[row] = place % number
    return parts


def train_prompts(run: Run, classes: Classes, data: FoldData, start: Tensor, what: str) -> Tensor:
    """Train prompts ``[M, P, D]``, all from ``start`` ``[P, D]``, on the mean weighted cross-entropy of their rows.

    It takes as many steps as ``fold_epochs`` over the run's own rows, however many rows the data has, but at most
    ``max_steps``.

    Args:
        run: its options, base model and texts.
        what: what is trained, for whoever watches.

    Raises:
        TrainingError: a loss is not finite.
    """
    options, steps = run.options, run.fold_steps
    peak = run.embedding_rms * options.fold_learning_rate
    prompts = torch.nn.Parameter(start.expand(len(data.weights), -1, -1).clone())
    optimizer = torch.optim.AdamW(
        [prompts],
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        weight_decay=options.weight_decay,
    )
    if run.texts is not None:
        read_texts(run.texts, [classes.text_of(example) for example in data.examples], run.callback)
    with run.callback.rows(f"training {what}", steps) as progress:
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = peak * share_of_peak(step, steps, options)
            loss = _backward(run, classes, prompts, data, rows_of_step(run, step, len(data.examples)))
            problem = None if math.isfinite(loss) else f"loss is {loss}"
            if options.max_grad_norm and prompts.grad is not None:
                norms = prompts.grad.flatten(1).norm(dim=1)[:, None, None]
                prompts.grad.mul_((options.max_grad_norm / (norms + 1e-6)).clamp_max(1))
            if problem := problem or take_step(optimizer):
                raise TrainingError(
                    f"training {what} stopped at step {step + 1} of {steps}: the {problem}. "
                    f"Lower fold_learning_rate (it is {options.fold_learning_rate:g})"
                )
            progress(1)
    return prompts.detach()


def _backward(run: Run, classes: Classes, prompts: Tensor, data: FoldData, rows: Sequence[int]) -> float:
    """Gradient of the sum over prompts of each one's mean loss over the step's rows; returns that sum."""
    total, at = 0.0, 0
    number, length, _ = prompts.shape
    batch = [data.examples[row] for row in rows]
    for pack in packs_of_candidates(batch, classes, length, number, run.tokens_per_pack):
        mine = rows[at : at + len(pack)]
        at += len(pack)
        learn, read = (data.weights[:, mine].T > 0).nonzero(as_tuple=True)[::-1]  # prompt and row of each pair
        which = [learn[read == i].tolist() for i in range(len(pack))]
        inputs = [classes.text_of(example) for example in pack]
        scores = suffix_candidate_scores(run.model.base_model, prompts, inputs, which, classes, run.texts)
        targets = data.targets[mine][read].to(scores)
        losses = -(targets * scores.log_softmax(-1)).sum(-1) * data.weights[:, mine][learn, read].to(scores)
        loss = losses.sum() / len(rows)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total


def out_of_fold(run: Run, prompts: Tensor, data: FoldData, classes: Classes) -> tuple[Tensor, Tensor]:
    """What prompts say of training rows that they have not seen, and the states of these rows under no prompt.

    Args:
        data: whose rows are the training rows, or begin with them.

    Returns:
        Mean log-probability ``[N, C]`` under the prompts that have not seen each row, and its mean hidden states
        ``[N, layers, D]``.
    """
    inputs = [classes.text_of(example) for example in run.examples]
    means: list[Tensor] = []
    scores = score_labels(run.model.base_model, prompts, inputs, classes.ids, means, placement="suffix")
    scores = scores.log_softmax(-1).cpu()
    outside = (data.weights[:, : len(inputs)] == 0).T[:, :, None].to(scores.dtype)  # [N, M, 1]
    return (scores * outside).sum(1) / outside.sum(1), torch.cat(means).cpu()
