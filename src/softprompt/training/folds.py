"""Fold prompts: suffix prompts that each train on all folds of the training rows but one.

The rows are split into k stratified folds; prompt i trains on all rows outside fold i, and is calibrated on fold i.
All prompts train together: they stand next to each other after each text, whose keys and values come from the KV
cache, so a step computes only ``P`` tokens and the label branches for each pair of row and prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import TrainingError
from ..inference.classifier import Classes
from ..inference.probe import class_weights
from ..inference.score import score_labels
from ..types import Example
from .lr_schedule import lr_multiplier
from .objectives import EnsembleClassification, class_indices
from .run import Run, fill_text_cache, rows_of_step
from .step import NonFiniteError, forward_backward, make_optimizer, update_prompt


@dataclass(frozen=True)
class FoldData:
    """Rows, targets and weights of M prompts.

    Attributes:
        examples: N rows; their own labels are not read.
        targets: ``[N, C]`` probability of each class.
        weights: ``[M, N]`` weight of each row for each prompt; 0 for held-out rows.
    """

    examples: Sequence[Example]
    targets: Tensor
    weights: Tensor


def make_folds(run: Run, classes: Classes) -> FoldData:
    """``num_folds`` prompts for each of ``fold_repeats`` splits of the training rows."""
    options, num_classes = run.options, len(classes.ids)
    gold = class_indices(run.examples, classes)
    splits = [stratified_folds(gold, options.num_folds, options.seed * 65_537 + i) for i in range(options.fold_repeats)]
    inside = [[each != fold for each in split] for split in splits for fold in sorted(set(split))]
    weights = torch.tensor(inside, dtype=torch.float32)
    if options.class_weights == "balanced":
        indices = torch.tensor(gold)
        for row in weights:
            row *= class_weights(indices[row > 0].tolist(), num_classes)[indices]
    return FoldData(run.examples, torch.eye(num_classes)[gold], weights)


def stratified_folds(gold: Sequence[int], num_folds: int, seed: int) -> list[int]:
    """Fold ``0 .. num_folds - 1`` of each row; folds, and the rows of each class in them, differ by one row at most."""
    shuffled = torch.randperm(len(gold), generator=torch.Generator().manual_seed(seed)).tolist()
    folds = [0] * len(gold)
    for place, row in enumerate(sorted(shuffled, key=lambda row: gold[row])):
        folds[row] = place % num_folds
    return folds


def train_fold_prompts(run: Run, classes: Classes, data: FoldData, start: Tensor, description: str) -> Tensor:
    """Train prompts ``[M, P, D]``, all from ``start`` ``[P, D]``, on the mean weighted cross-entropy of their rows.

    It takes as many steps as ``fold_epochs`` over the run's own rows, however many rows the data has, but at most
    ``max_steps``.

    Args:
        run: its options, base model and text cache.
        description: the prompts, for the progress bar and errors.

    Raises:
        TrainingError: a loss is not finite.
    """
    options, steps = run.options, run.fold_steps
    peak = run.embedding_rms * options.fold_learning_rate
    prompts = torch.nn.Parameter(start.expand(len(data.weights), -1, -1).clone())
    optimizer = make_optimizer(prompts, options)
    objective = EnsembleClassification(
        base=run.runner,
        placement="suffix",
        tokens_per_pack=run.tokens_per_pack,
        texts=run.texts,
        classes=classes,
        examples=data.examples,
        targets=data.targets,
        weights=data.weights,
    )
    if run.texts is not None:
        fill_text_cache(run.texts, [classes.text_of(example) for example in data.examples], run.callback)
    with run.callback.progress(f"training {description}", steps) as progress:
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = peak * lr_multiplier(step, steps, options)
            try:
                forward_backward(objective, prompts, [rows_of_step(run, step, len(data.examples))])
                update_prompt(prompts, optimizer, options.max_grad_norm)
            except NonFiniteError as error:
                raise TrainingError(
                    f"training {description} stopped at step {step + 1} of {steps}: the {error}. "
                    f"Lower fold_learning_rate (it is {options.fold_learning_rate:g})"
                ) from None
            progress(1)
    return prompts.detach()


def held_out_scores(run: Run, prompts: Tensor, data: FoldData, classes: Classes) -> tuple[Tensor, Tensor]:
    """Scores of the training rows by the prompts that have not seen them, and the rows' hidden states.

    Args:
        data: its rows are the training rows, or begin with them.

    Returns:
        Mean log-probability ``[N, C]`` under the prompts that have not seen each row, and the mean hidden states
        ``[N, layers, D]`` of its text without a prompt.
    """
    inputs = [classes.text_of(example) for example in run.examples]
    means: list[Tensor] = []
    scores = score_labels(run.runner, prompts, inputs, classes.ids, means, placement="suffix")
    scores = scores.log_softmax(-1).cpu()
    held_out = (data.weights[:, : len(inputs)] == 0).T[:, :, None].to(scores.dtype)  # [N, M, 1]
    return (scores * held_out).sum(1) / held_out.sum(1), torch.cat(means).cpu()
