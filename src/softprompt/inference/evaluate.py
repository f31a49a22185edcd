"""Metrics of a soft prompt on labelled examples: classification metrics, or the loss of the answers."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from .. import metrics as measures
from ..engine.loss import token_losses
from ..engine.plans import plan_examples
from ..engine.text_cache import TextCache, cached_texts
from ..storage.record import Metrics
from ..types import Example
from .classifier import Classes, Progress, batches_by_length, label_log_probs
from .prompted import PromptedModel


def evaluate_examples(
    model: PromptedModel,
    examples: Sequence[Example],
    classes: Classes | None,
    *,
    batch_size: int,
    split: str = "test",
    progress: Progress | None = None,
    text_cache: TextCache | None = None,
) -> Metrics:
    """Metrics on labelled examples: those of a classification, or only the loss if ``classes`` is ``None``.

    Args:
        text_cache: as for ``label_log_probs``.
    """
    started = time.perf_counter()
    if classes is None:
        loss = eval_loss(model, examples, batch_size=batch_size, progress=progress, text_cache=text_cache)
        return Metrics(
            num_examples=len(examples),
            eval_loss=loss,
            perplexity=measures.perplexity(loss),
            examples_per_second=len(examples) / (time.perf_counter() - started),
            split=split,
        )
    scores = label_log_probs(model, examples, classes, batch_size=batch_size, progress=progress, text_cache=text_cache)
    return classification_metrics(scores, examples, classes, seconds=time.perf_counter() - started, split=split)


def classification_metrics(
    scores: Tensor, examples: Sequence[Example], classes: Classes, *, seconds: float, split: str
) -> Metrics:
    """Metrics from label log-probabilities ``[N, C]``; the loss is per token of the gold label, or per row.

    A row with log-probabilities that are not finite (float16 overflows) counts as wrong, as if the class after its
    gold label had been predicted; the loss is then NaN, and there is no calibration error. A row whose label is not
    among the classes counts as wrong too; its label is added to the classes, and the loss is that of the other rows.
    """
    names = tuple(dict.fromkeys((*classes.names, *(str(example.label) for example in examples))))
    gold = [names.index(str(example.label)) for example in examples]
    finite = scores.isfinite().all(1).tolist()
    guesses = zip(scores.argmax(1).tolist(), gold, finite, strict=True)
    predicted = [guess if known else (answer + 1) % len(names) for guess, answer, known in guesses]
    matrix = measures.confusion_matrix(gold, predicted, len(names))
    loss, calibration = math.nan, None
    if all(finite):
        loss = _loss(scores, gold, classes)
        right = [guess == answer for guess, answer in zip(predicted, gold, strict=True)]
        calibration = measures.expected_calibration_error(scores.softmax(1).amax(1).tolist(), right)
    return Metrics(
        num_examples=len(gold),
        accuracy=measures.accuracy(matrix),
        macro_f1=measures.macro_f1(matrix),
        eval_loss=loss,
        perplexity=measures.perplexity(loss),
        examples_per_second=len(gold) / seconds,
        confusion_matrix=tuple(map(tuple, matrix)),
        labels=names,
        per_class=tuple(asdict(each) for each in measures.per_class(matrix, names)),
        expected_calibration_error=calibration,
        split=split,
    )


def _loss(scores: Tensor, gold: Sequence[int], classes: Classes) -> float:
    """Mean loss of log-probabilities ``[N, C]``, per token or per row; NaN where no row has one of the classes."""
    known = [row for row, answer in enumerate(gold) if answer < len(classes.names)]
    right = [gold[row] for row in known]
    count = len(right) if classes.relative else sum(len(classes.ids[answer]) for answer in right)
    return -float(scores[known, right].double().sum()) / count if count else math.nan


@torch.no_grad()
def eval_loss(
    model: PromptedModel,
    examples: Sequence[Example],
    *,
    batch_size: int,
    progress: Progress | None = None,
    text_cache: TextCache | None = None,
) -> float:
    """Mean loss in nats per supervised token; ``text_cache`` as for ``label_log_probs``."""
    total, count = 0.0, 0
    prompt = model.prefilled()
    for rows in batches_by_length(examples, batch_size):
        plan = plan_examples([examples[row] for row in rows], len(prompt), model.prompt.device, model.placement)
        losses = token_losses(model.runner, plan, prompt, cached_texts(model.runner, plan, text_cache))
        # On the CPU: MPS has no float64.
        total, count = total + float(losses.cpu().double().sum()), count + len(losses)
        if progress:
            progress(len(rows))
    return total / max(count, 1)
