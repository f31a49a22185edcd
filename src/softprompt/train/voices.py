"""What decides beside the prompt: prompts that have seen other rows, and a read-out of the hidden states."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..ensemble import Ensemble, fit_temperature
from ..evaluate import Classes, scores_and_means
from ..readout import Readout, fit_readout
from .choices import gold_of
from .folds import fit_folds
from .run import Run

SHARE_OF_EQUALS = 0.5
"""How much a read-out decides beside prompts that are as sure as they may be. Shares chosen by the rows left out are no
better, and less steady (docs/log.md)."""
SHARE_BESIDE_ONE = 0.75
"""How much it decides beside one prompt, which is surer than it should be, having seen all rows."""


def with_voices(run: Run, classes: Classes, start: Tensor) -> Classes:
    """Classes with all that the options ask to decide between them, fitted to the training rows.

    With folds, each kind of voice is made as sure as it proves right on rows that it has not seen.

    Args:
        run: after its prompt is trained.
        start: ``[P, D]`` where prompts start.
    """
    gold = gold_of(run.examples, classes)
    inside = None
    if run.options.num_folds:
        folds = fit_folds(run, start)
        inside = folds.inside
        temperature = torch.tensor(fit_temperature(folds.unseen, gold))
        classes = replace(classes, ensemble=Ensemble(folds.prompts.cpu(), temperature))
    if run.options.readout:
        means = _means(run, classes)
        readout = fit_readout(
            means, gold, len(classes.ids), share=SHARE_BESIDE_ONE if inside is None else SHARE_OF_EQUALS
        )
        if inside is not None:
            readout = readout.cooled(fit_temperature(_unseen(means, gold, inside, len(classes.ids)), gold))
        classes = replace(classes, readout=readout)
    return classes


def _means(run: Run, classes: Classes) -> Tensor:
    """Mean hidden states ``[N, layers, D]`` of the training rows under the finished prompt."""
    plain = replace(classes, ensemble=None)
    size = run.options.per_device_eval_batch_size
    with run.listener.rows("reading the states", len(run.examples)) as progress:
        _, means = scores_and_means(run.model, run.examples, plain, batch_size=size, progress=progress)
    return means


def _unseen(means: Tensor, gold: list[int], inside: Tensor, num_classes: int) -> Tensor:
    """Log-probabilities ``[N, C]`` of rows under read-outs that have not seen them, averaged over repeats."""
    total = torch.zeros(len(gold), num_classes)
    for mine in inside:
        seen, unseen = (rows.nonzero()[:, 0] for rows in (mine, ~mine))
        readout: Readout = fit_readout(means[seen], [gold[row] for row in seen.tolist()], num_classes, share=1.0)
        total[unseen] += readout.log_probs(means[unseen])
    return total / (~inside).sum(0)[:, None]
