"""The rest of a classifier, fitted when the prompt is trained: fold prompts (an ensemble) and a linear probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..inference.classifier import Classes, label_log_probs, mean_states
from ..inference.ensemble import Ensemble, fit_temperature
from ..inference.probe import fit_probe
from ..models.embeddings import embed
from .folds import FoldData, held_out_scores, make_folds, train_fold_prompts
from .objectives import class_indices
from .run import Run

PROBE_SHARE_WITH_ENSEMBLE = 0.5
"""Weight of a linear probe next to calibrated fold prompts. Weights chosen on the held-out rows are no better, and vary
more (docs/log.md)."""
PROBE_SHARE_WITH_PROMPT = 0.85
"""Its weight next to one prompt, which is overconfident since it was trained on all rows."""
FOLD_INIT_TEXT = " Label:"
"""Initial text of fold prompts."""
UNLABELED_WEIGHT = 0.3
"""Weight of an unlabeled row."""


def fit_classifier(run: Run, tokenizer: Any, classes: Classes) -> Classes:
    """Classes with the fold prompts and the linear probe that the options ask for, fitted to the training rows.

    Both are calibrated on held-out rows if there are folds. The probe is then scored out of fold on the states of the
    texts without a prompt, since the main prompt was trained on all rows.

    Args:
        run: after its prompt is trained.
    """
    plain, options = classes, run.options
    start = _initial_fold_prompt(run, tokenizer)
    folds, temperature = make_folds(run, plain) if options.num_folds else None, 1.0
    if folds is not None:
        prompts = train_fold_prompts(run, plain, folds, start, f"{len(folds.weights)} fold prompts")
        scores, means = held_out_scores(run, prompts, folds, plain)
        classes = replace(classes, ensemble=_calibrated_ensemble(run, plain, prompts, scores))
        if options.linear_probe:
            probe_scores = _held_out_probe_scores(run, plain, means, folds)
            temperature = _temperature(probe_scores, class_indices(run.examples, plain))
    if options.linear_probe:
        share = PROBE_SHARE_WITH_PROMPT if folds is None else PROBE_SHARE_WITH_ENSEMBLE
        classes = add_probe(run, classes, share=share, temperature=temperature)
    if folds is not None and run.unlabeled:
        classes = _self_train(run, plain, classes, folds, start)
    return classes


def add_probe(run: Run, classes: Classes, *, share: float, temperature: float = 1.0) -> Classes:
    """Classes with a linear probe, fitted to hidden states of the training rows under the current prompt.

    Args:
        share: weight of the probe, in 0..1.
        temperature: divisor of its logits.
    """
    with run.callback.progress("computing hidden states", len(run.examples)) as progress:
        size = run.options.per_device_eval_batch_size
        means = mean_states(run.prompted, run.examples, classes, batch_size=size, progress=progress)
    linear_probe = fit_probe(means, class_indices(run.examples, classes), len(classes.ids), share)
    return replace(classes, linear_probe=linear_probe.cooled(temperature), relative=True)


def classifier_to_validate(run: Run) -> Classes | None:
    """The classifier that ranks the current prompt: the one that would be saved, as far as it depends on the prompt.

    With a linear probe, that is prompt and probe together. With fold prompts, the main prompt scores no labels, so it
    is the probe alone. ``None`` for a generation task.
    """
    if run.classes is None or not run.options.linear_probe:
        return run.classes
    return add_probe(run, run.classes, share=1.0 if run.options.num_folds else PROBE_SHARE_WITH_PROMPT)


def _calibrated_ensemble(run: Run, classes: Classes, prompts: Tensor, scores: Tensor) -> Ensemble:
    """Prompts with the temperature that calibrates their held-out ``scores`` ``[N, C]``."""
    return Ensemble(prompts.cpu(), torch.tensor(_temperature(scores, class_indices(run.examples, classes))))


def _temperature(scores: Tensor, gold: Sequence[int]) -> float:
    """The temperature that calibrates held-out log-probabilities ``[N, C]``.

    A class with a single row is unseen while that row is held out, so the row is left out here; 1 if none is left.
    """
    used = [row for row, label in enumerate(gold) if gold.count(label) > 1]
    return fit_temperature(scores[used], [gold[row] for row in used]) if used else 1.0


def _held_out_probe_scores(run: Run, classes: Classes, means: Tensor, folds: FoldData) -> Tensor:
    """Log-probabilities ``[N, C]`` of rows under probes that have not seen them, averaged over the repeats."""
    gold, num_classes = class_indices(run.examples, classes), len(classes.ids)
    total, inside = torch.zeros(len(gold), num_classes), folds.weights > 0
    for rows in inside:
        seen, held_out = (which.nonzero()[:, 0] for which in (rows, ~rows))
        linear_probe = fit_probe(means[seen], [gold[row] for row in seen.tolist()], num_classes, share=1.0)
        total[held_out] += linear_probe.log_probs(means[held_out])
    return total / (~inside).sum(0)[:, None]


def _self_train(run: Run, plain: Classes, classes: Classes, folds: FoldData, start: Tensor) -> Classes:
    """Further prompts on the first split into folds and on unlabeled rows, whose soft labels the classifier gives.

    Self-training: the soft labels come from the linear probe too, so the prompts learn what only the probe captures.
    """
    unlabeled, size = run.unlabeled, run.options.per_device_eval_batch_size
    soft_labels = label_log_probs(run.prompted, unlabeled, classes, batch_size=size).softmax(-1)
    first = folds.weights[: min(run.options.num_folds, len(run.examples))]
    data = FoldData(
        [*run.examples, *unlabeled],
        torch.cat([folds.targets, soft_labels]),
        self_training_weights(first, folds.targets, soft_labels),
    )
    description = f"{len(first)} fold prompts on {len(unlabeled)} unlabeled rows"
    more_prompts = train_fold_prompts(run, plain, data, start, description)
    assert classes.ensemble is not None
    prompts = torch.cat([classes.ensemble.prompts.to(more_prompts), more_prompts])
    every_fold = FoldData(run.examples, folds.targets, torch.cat([folds.weights, first]))
    scores, _ = held_out_scores(run, prompts, every_fold, plain)
    return replace(classes, ensemble=_calibrated_ensemble(run, plain, prompts, scores))


def self_training_weights(weights: Tensor, targets: Tensor, soft_labels: Tensor) -> Tensor:
    """Weights ``[M, N + U]`` of labeled and unlabeled rows; an unlabeled row has the weights of its likely classes.

    Args:
        weights: ``[M, N]`` of the labeled rows; 0 where a prompt must not see one.
        targets: ``[N, C]`` their classes, one-hot.
        soft_labels: ``[U, C]`` class probabilities of the unlabeled rows.
    """
    of_class = (weights @ targets) / ((weights > 0).float() @ targets).clamp_min(1)  # [M, C] mean weight of its rows
    return torch.cat([weights, UNLABELED_WEIGHT * of_class @ soft_labels.T], dim=1)


def _initial_fold_prompt(run: Run, tokenizer: Any) -> Tensor:
    """Embeddings ``[P, D]`` of the initial text, repeated or cut."""
    ids, length = tokenizer(FOLD_INIT_TEXT, add_special_tokens=False)["input_ids"], len(run.prompt)
    start = embed(torch.tensor((ids * length)[:length]), run.base.get_input_embeddings())
    return start.to(run.prompt)
