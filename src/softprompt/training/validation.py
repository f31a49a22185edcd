"""Scores on the validation rows, and the ranking of prompts by them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..engine.text_cache import TextCache
from ..inference.classifier import Classes
from ..inference.evaluate import evaluate_examples
from ..storage.record import EpochRecord, Metrics
from ..types import Example
from .fit_classifier import classifier_to_validate
from .run import Run, fill_text_cache


def make_validator(run: Run, examples: Sequence[Example]) -> Callable[[], Metrics] | None:
    """A function that scores the current prompt on validation rows; ``None`` if nothing is validated."""
    if not examples or run.options.eval_strategy == "no":
        return None
    caches_texts = run.options.prompt_placement == "suffix" and not run.options.linear_probe
    warned = False

    def validate() -> Metrics:
        nonlocal warned
        classes = classifier_to_validate(run)
        if run.texts is not None and caches_texts:
            fill_text_cache(run.texts, (example.input_ids for example in examples), run.callback)
        metrics = validation_metrics(run, examples, classes, run.texts)
        if not warned and metrics.eval_loss is not None and not math.isfinite(metrics.eval_loss):
            warned = True
            run.callback.on_warning(
                "validation: rows with scores that are not finite count as wrong; training continues. If the base "
                "model is in float16, try --dtype bfloat16 or float32"
            )
        return metrics

    return validate


def validation_metrics(
    run: Run, examples: Sequence[Example], classes: Classes | None, texts: TextCache | None = None
) -> Metrics:
    """Metrics of the current prompt, and what ``classes`` adds to it, on validation rows."""
    size = run.options.per_device_eval_batch_size
    with run.callback.progress("validating", len(examples)) as progress:
        return evaluate_examples(
            run.prompted, examples, classes, batch_size=size, split="validation", progress=progress, text_cache=texts
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
