"""Scores on the validation rows, and the ranking of prompts by them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..config.options import TrainOptions
from ..engine.text_cache import TextCache
from ..inference.classifier import Classes
from ..inference.evaluate import evaluate_examples
from ..peft.model import PeftModelForCausalLM
from ..storage.record import EpochRecord, Metrics
from ..types import Example
from .callbacks import Callback
from .fit_classifier import classifier_to_validate
from .run import fill_text_cache


def make_validator(
    options: TrainOptions,
    model: PeftModelForCausalLM,
    train: Sequence[Example],
    validation: Sequence[Example],
    classes: Classes | None,
    callback: Callback,
    texts: TextCache | None,
) -> Callable[[], Metrics] | None:
    """A function that scores the current prompt on the validation rows; ``None`` if nothing is validated.

    Args:
        train: rows that a linear probe is fitted to.
        texts: KV cache of the texts before a suffix prompt.
    """
    if not validation or options.eval_strategy == "no":
        return None
    caches_texts = texts is not None and options.prompt_placement == "suffix" and not options.linear_probe
    warned = False

    def validate() -> Metrics:
        nonlocal warned
        scored = classes and classifier_to_validate(model, train, classes, options, callback)
        if texts is not None and caches_texts:
            fill_text_cache(texts, (example.input_ids for example in validation), callback)
        metrics = validation_metrics(options, model, validation, scored, callback, texts)
        if not warned and metrics.eval_loss is not None and not math.isfinite(metrics.eval_loss):
            warned = True
            callback.on_warning(
                "validation: rows with scores that are not finite count as wrong; training continues. If the base "
                "model is in float16, try --dtype bfloat16 or float32"
            )
        return metrics

    return validate


def validation_metrics(
    options: TrainOptions,
    model: PeftModelForCausalLM,
    examples: Sequence[Example],
    classes: Classes | None,
    callback: Callback,
    texts: TextCache | None = None,
) -> Metrics:
    """Metrics of a model on the validation rows."""
    size = options.per_device_eval_batch_size
    with callback.progress("validating", len(examples)) as progress:
        return evaluate_examples(
            model.prompted, examples, classes, batch_size=size, split="validation", progress=progress, text_cache=texts
        )


def is_best(metric: str | None, record: EpochRecord, history: Sequence[EpochRecord]) -> bool:
    """Whether a record is better than all earlier ones; among equal scores the lower loss is better."""
    rank = None if metric is None else _rank(metric, record)
    if metric is None or rank is None:
        return False
    return all(earlier is None or rank > earlier for earlier in (_rank(metric, each) for each in history))


def _rank(metric: str, record: EpochRecord) -> tuple[float, float] | None:
    """Higher is better; ``None`` where nothing was measured. A loss that is not finite is worse than any other."""
    if getattr(record, metric) is None:
        return None
    loss = -record.eval_loss if record.eval_loss is not None and math.isfinite(record.eval_loss) else -math.inf
    return (loss, 0.0) if metric == "eval_loss" else (getattr(record, metric), loss)
