"""The rest of the classifier beside the prompt: prompts of folds, and a read-out of the hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..config.options import TrainOptions
from ..inference.classifier import Classes, label_log_probs, mean_states
from ..inference.ensemble import Ensemble, fit_temperature
from ..inference.probe import fit_probe
from ..models.embeddings import embed
from ..peft.model import PeftModelForCausalLM
from ..types import Example
from .callbacks import Callback
from .folds import FoldData, fold_data, out_of_fold, train_prompts
from .objectives import gold_of
from .run import Run

SHARE_OF_EQUALS = 0.5
"""Weight of a read-out beside calibrated prompts of folds. Weights chosen on the held-out rows are no better, and vary
more (docs/log.md)."""
SHARE_BESIDE_ONE = 0.85
"""Its weight beside one prompt, which is overconfident since it was trained on all rows."""
START_TEXT = " Label:"
"""Where prompts behind the text start."""
UNLABELED_WEIGHT = 0.3
"""Weight of an unlabeled row."""


def with_members(run: Run, tokenizer: Any, classes: Classes) -> Classes:
    """Classes with the read-out and the prompts of folds that the options ask for, fitted to the training rows.

    Prompts of folds are calibrated on their held-out rows. So is a read-out: out of fold, on the states of the plain
    texts, since the prompt in front was trained on all rows.

    Args:
        run: after its prompt is trained.
    """
    plain, options = classes, run.options
    start = _start(run, tokenizer)
    folds, temperature = fold_data(run, plain) if options.num_folds else None, 1.0
    if folds is not None:
        prompts = train_prompts(run, plain, folds, start, f"{len(folds.weights)} more prompts")
        said, means = out_of_fold(run, prompts, folds, plain)
        classes = replace(classes, ensemble=_ensemble(run, plain, prompts, said))
        if options.linear_probe:
            temperature = _temperature(_probe_out_of_fold(run, plain, means, folds), gold_of(run.examples, plain))
    if options.linear_probe:
        share = SHARE_BESIDE_ONE if folds is None else SHARE_OF_EQUALS
        given = run.model, run.examples, classes, options, run.callback
        classes = with_probe(*given, share=share, temperature=temperature)
    if folds is not None and run.unlabeled:
        classes = _with_self_training(run, plain, classes, folds, start)
    return classes


def _ensemble(run: Run, classes: Classes, prompts: Tensor, said: Tensor) -> Ensemble:
    """Prompts, as sure as what they ``said`` ``[N, C]`` of rows that they have not seen proves right."""
    return Ensemble(prompts.cpu(), torch.tensor(_temperature(said, gold_of(run.examples, classes))))


def _temperature(said: Tensor, gold: Sequence[int]) -> float:
    """By the rows whose class was known when they were left out; 1 where there are none."""
    known = [row for row, label in enumerate(gold) if gold.count(label) > 1]
    return fit_temperature(said[known], [gold[row] for row in known]) if known else 1.0


def with_probe(
    model: PeftModelForCausalLM,
    examples: Sequence[Example],
    classes: Classes,
    options: TrainOptions,
    callback: Callback,
    *,
    share: float,
    temperature: float = 1.0,
) -> Classes:
    """Classes with a read-out, a linear probe fitted to hidden states of the examples under the current prompt.

    Args:
        share: weight of the read-out, in 0..1.
        temperature: divisor of its logits.
    """
    with callback.rows("reading the states", len(examples)) as progress:
        size = options.per_device_eval_batch_size
        means = mean_states(model.prompted, examples, classes, batch_size=size, progress=progress)
    linear_probe = fit_probe(means, gold_of(examples, classes), len(classes.ids), share)
    return replace(classes, linear_probe=linear_probe.cooled(temperature), relative=True)


def as_it_decides(
    model: PeftModelForCausalLM,
    examples: Sequence[Example],
    classes: Classes,
    options: TrainOptions,
    callback: Callback,
) -> Classes:
    """The classifier that the current prompt would give if it were saved; its score picks the best epoch.

    With a read-out, it combines prompt and read-out. With prompts of folds, the prompt in front scores no labels, so
    it is the read-out alone.
    """
    if not options.linear_probe:
        return classes
    share = 1.0 if options.num_folds else SHARE_BESIDE_ONE
    return with_probe(model, examples, classes, options, callback, share=share)


def _probe_out_of_fold(run: Run, classes: Classes, means: Tensor, folds: FoldData) -> Tensor:
    """Log-probabilities ``[N, C]`` of rows under read-outs that have not seen them, averaged over cuts."""
    gold, number = gold_of(run.examples, classes), len(classes.ids)
    total, inside = torch.zeros(len(gold), number), folds.weights > 0
    for mine in inside:
        seen, left_out = (rows.nonzero()[:, 0] for rows in (mine, ~mine))
        linear_probe = fit_probe(means[seen], [gold[row] for row in seen.tolist()], number, share=1.0)
        total[left_out] += linear_probe.log_probs(means[left_out])
    return total / (~inside).sum(0)[:, None]


def _with_self_training(run: Run, plain: Classes, classes: Classes, folds: FoldData, start: Tensor) -> Classes:
    """Further prompts of the first cut, which also learn what all members together say of rows without labels.

    Self-training with soft labels; they come from the read-out too, so prompts learn what it alone has seen.
    """
    unlabeled, size = run.unlabeled, run.options.per_device_eval_batch_size
    said = label_log_probs(run.model.prompted, unlabeled, classes, batch_size=size).softmax(-1)
    own = folds.weights[: min(run.options.num_folds, len(run.examples))]
    more = FoldData(
        [*run.examples, *unlabeled], torch.cat([folds.targets, said]), soft_weights(own, folds.targets, said)
    )
    more_prompts = train_prompts(run, plain, more, start, f"{len(own)} prompts on {len(unlabeled)} rows without labels")
    assert classes.ensemble is not None
    everyone = torch.cat([classes.ensemble.prompts.to(more_prompts), more_prompts])
    whole = FoldData(run.examples, folds.targets, torch.cat([folds.weights, own]))
    said, _ = out_of_fold(run, everyone, whole, plain)
    return replace(classes, ensemble=_ensemble(run, plain, everyone, said))


def soft_weights(own: Tensor, targets: Tensor, said: Tensor) -> Tensor:
    """Weights ``[M, N + U]`` of rows with a label and of rows without, which count as the classes they may be of.

    Args:
        own: ``[M, N]`` weights of the rows with a label; 0 where a prompt must not see one.
        targets: ``[N, C]`` their classes, one-hot.
        said: ``[U, C]`` probability of each class, of the rows without.
    """
    of_class = (own @ targets) / ((own > 0).float() @ targets).clamp_min(1)  # [M, C] mean weight of a class's rows
    return torch.cat([own, UNLABELED_WEIGHT * of_class @ said.T], dim=1)


def _start(run: Run, tokenizer: Any) -> Tensor:
    """Embeddings ``[P, D]`` of the start text, repeated or cut."""
    ids, length = tokenizer(START_TEXT, add_special_tokens=False)["input_ids"], len(run.model.prompt)
    start = embed(torch.tensor((ids * length)[:length]), run.model.base_model.get_input_embeddings())
    return start.to(run.model.prompt)
