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
import torch.nn.functional as F
from torch import Tensor

from ..errors import TrainingError
from ..evaluate import Classes
from ..readout import class_weights
from ..suffix import score_labels_behind
from .choices import choice_scores_behind, gold_of, packs_of_choices
from .guard import take_step
from .run import Run, read_texts, rows_of_step
from .schedule import learning_rate


@dataclass(frozen=True)
class Folds:
    """Trained prompts, and what they say of rows that they have not seen.

    Attributes:
        prompts: ``[M, P, D]``.
        inside: ``[M, N]``, whether a prompt has learned from a row.
        unseen: ``[N, C]`` mean log-probability of the classes under the prompts that have not seen the row.
    """

    prompts: Tensor
    inside: Tensor
    unseen: Tensor


def fit_folds(run: Run, start: Tensor) -> Folds:
    """Train ``num_folds`` prompts for each of ``fold_repeats`` cuts, all from ``start`` ``[P, D]``.

    Raises:
        TrainingError: a loss is not finite.
    """
    classes, options = run.classes, run.options
    assert classes is not None
    assert options.num_folds
    gold = gold_of(run.examples, classes)
    cuts = [cut_folds(gold, options.num_folds, options.seed * 65_537 + i) for i in range(options.fold_repeats)]
    inside = torch.tensor([[part != fold for part in cut] for cut in cuts for fold in sorted(set(cut))])
    prompts = torch.nn.Parameter(start.expand(len(inside), -1, -1).clone())
    optimizer = torch.optim.AdamW(
        [prompts],
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        weight_decay=options.weight_decay,
    )
    weights = torch.stack([_weights(run, gold, mine.tolist(), len(classes.ids)) for mine in inside]).to(prompts.device)
    if run.texts is not None:
        read_texts(run.texts, run.examples, run.listener)
    with run.listener.rows(f"training {len(inside)} more prompts", run.max_steps) as progress:
        for step in range(run.max_steps):
            optimizer.param_groups[0]["lr"] = run.rate_unit * learning_rate(step, run.max_steps, options)
            loss = _backward(run, prompts, rows_of_step(run, step), inside, weights, classes)
            what = None if math.isfinite(loss) else f"loss is {loss}"
            if options.max_grad_norm and prompts.grad is not None:
                norms = prompts.grad.flatten(1).norm(dim=1)[:, None, None]
                prompts.grad.mul_((options.max_grad_norm / (norms + 1e-6)).clamp_max(1))
            if what := what or take_step(optimizer):
                raise TrainingError(
                    f"training of more prompts stopped at step {step + 1} of {run.max_steps}: the {what}. "
                    f"Lower learning_rate (it is {options.learning_rate:g})"
                )
            progress(1)
    return Folds(prompts.detach(), inside, _unseen(run, prompts.detach(), inside, classes))


def cut_folds(gold: Sequence[int], number: int, seed: int) -> list[int]:
    """Part ``0 .. number - 1`` of each row; every part has its share of each class, as far as rows go round."""
    shuffled = torch.randperm(len(gold), generator=torch.Generator().manual_seed(seed)).tolist()
    parts = [0] * len(gold)
    for place, row in enumerate(sorted(shuffled, key=lambda row: gold[row])):
        parts[row] = place % number
    return parts


def _weights(run: Run, gold: Sequence[int], mine: Sequence[bool], num_classes: int) -> Tensor:
    """How much a row of each class counts for one prompt, ``[C]``."""
    if run.options.class_weights == "none":
        return torch.ones(num_classes)
    return class_weights([each for each, is_mine in zip(gold, mine, strict=True) if is_mine], num_classes)


def _backward(
    run: Run, prompts: Tensor, rows: Sequence[int], inside: Tensor, weights: Tensor, classes: Classes
) -> float:
    """Gradient of the sum over prompts of each one's mean loss over the step's rows; returns the mean over pairs."""
    examples = [run.examples[row] for row in rows]
    which = [inside[:, row].nonzero()[:, 0].tolist() for row in rows]
    pairs, total, at = sum(map(len, which)), 0.0, 0
    for pack in packs_of_choices(run, examples, classes, len(prompts)):
        mine = which[at : at + len(pack)]
        at += len(pack)
        inputs = [example.input_ids for example in pack]
        scores = choice_scores_behind(run.model.base_model, prompts, inputs, mine, classes, run.texts)
        learner = torch.tensor([prompt for each in mine for prompt in each], device=scores.device)
        gold = torch.tensor(gold_of(pack, classes), device=scores.device)
        gold = gold.repeat_interleave(torch.tensor([len(each) for each in mine], device=scores.device))
        losses = F.cross_entropy(scores, gold, reduction="none") * weights[learner, gold]
        (losses.sum() / len(rows)).backward()  # type: ignore[no-untyped-call]
        total += losses.sum().item() / pairs
    return total


def _unseen(run: Run, prompts: Tensor, inside: Tensor, classes: Classes) -> Tensor:
    inputs = [example.input_ids for example in run.examples]
    scores = score_labels_behind(run.model.base_model, prompts, inputs, classes.ids, run.texts)
    scores = scores.log_softmax(-1).cpu()
    outside = (~inside).T[:, :, None].to(scores.dtype)  # [N, M, 1]; each row is left out once in each cut
    return (scores * outside).sum(1) / outside.sum(1)
