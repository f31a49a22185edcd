"""Scores of a prompt on labelled rows: label probabilities for classes, losses and texts for free targets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import metrics as measures
from ..data.task import Task
from ..data.tokenize import Encoder, unique_prefixes
from ..engine.kv_cache import KVCache
from ..engine.loss import token_losses
from ..engine.plans import plan_examples
from ..engine.prefill import prefill
from ..engine.text_cache import TextCache, known_texts
from ..peft.model import PeftModelForCausalLM
from ..storage.record import Metrics
from ..types import Example, Placement
from .ensemble import Ensemble
from .probe import LinearProbe
from .score import score_labels

Progress = Callable[[int], None]
"""Called with the number of rows just done."""


@dataclass(frozen=True)
class Classes:
    """The classes of a task as the model sees them: names and the token ids that stand for them, side by side.

    Attributes:
        ids: of each label with the end token, or of the start that tells it from others (``Task.label_scoring``).
        readout: reads classes from hidden states as well; ``None`` where the label texts alone decide.
        ensemble: prompts behind the text, which decide in place of the model's own.
        relative: whether only the labels' probabilities relative to each other count, as for starts of labels or with
            a read-out; a loss is then per row, not per token.
        num_cue_tokens: tokens at the end of each input that are the cue for a prompt in front (``Task.answer_prefix``).
    """

    names: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    linear_probe: LinearProbe | None = None
    ensemble: Ensemble | None = None
    relative: bool = False
    num_answer_prefix_tokens: int = 0

    def text_of(self, example: Example) -> tuple[int, ...]:
        """What prompts behind the text read of an example: its input without the cue."""
        return example.input_ids[: len(example.input_ids) - self.num_answer_prefix_tokens]


def classes_of(
    task: Task, encoder: Encoder, linear_probe: LinearProbe | None = None, ensemble: Ensemble | None = None
) -> Classes | None:
    """The classes of a task in tokens; ``None`` for a generation task."""
    if not task.is_classification:
        return None
    ids = tuple(encoder.label_ids(label) for label in task.labels)
    by_start = task.label_scoring == "unique_prefix"
    scored = unique_prefixes(ids) if by_start else ids
    relative = by_start or linear_probe is not None  # a read-out knows nothing of texts
    return Classes(task.labels, scored, linear_probe, ensemble, relative, len(encoder.answer_prefix_ids))


def label_log_probs(
    model: PeftModelForCausalLM,
    examples: Sequence[Example],
    classes: Classes,
    *,
    batch_size: int,
    progress: Progress | None = None,
    known: TextCache | None = None,
) -> Tensor:
    """Log-probability of each class for each example: ``[N, C]`` float32 on the CPU.

    That of the class's label text behind the example; with an ensemble or a read-out, what all say together.

    Args:
        known: knows the texts of examples that stand before the prompt; without it they are read here.
    """
    scores = torch.empty(len(examples), len(classes.ids))
    prompt = _prefilled(model)
    for rows in batches_by_length(examples, batch_size):
        batch = [examples[row] for row in rows]
        if classes.linear_probe is None:
            scores[rows] = _scores(model, prompt, batch, classes, known, None).float().cpu()
        else:
            means: list[Tensor] = []
            said = _scores(model, prompt, batch, classes, None, means).float().cpu()
            scores[rows] = classes.linear_probe.mix(said, torch.cat(means).cpu())
        if progress:
            progress(len(rows))
    return scores.log_softmax(-1) if classes.relative else scores


def mean_states(
    model: PeftModelForCausalLM,
    examples: Sequence[Example],
    classes: Classes,
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> Tensor:
    """Mean hidden states ``[N, layers, D]`` of the texts, float32 on the CPU: what a read-out is fitted to."""
    found = torch.empty(0)
    classes = replace(classes, ids=(), ensemble=None)  # no label is scored: with many classes, that is most of the work
    prompt = _prefilled(model)
    for rows in batches_by_length(examples, batch_size):
        means: list[Tensor] = []
        _scores(model, prompt, [examples[row] for row in rows], classes, None, means)
        of_batch = torch.cat(means).cpu()
        found = found if len(found) else of_batch.new_empty(len(examples), *of_batch.shape[1:])
        found[rows] = of_batch
        if progress:
            progress(len(rows))
    return found


@torch.no_grad()
def _prefilled(model: PeftModelForCausalLM) -> Tensor | KVCache:
    """The active prompt for all batches of one call: computed once if it is a prefix, ``[P, D]`` if it is a suffix."""
    name = model.active_adapter  # once: another thread may call set_adapter meanwhile
    prompt, placement = model.prompt_of(name), model.peft_config[name].prompt_placement or "prefix"
    return prompt if placement == "suffix" else prefill(model.base_model, prompt)


def _scores(
    model: PeftModelForCausalLM,
    prompt: Tensor | KVCache,
    examples: Sequence[Example],
    classes: Classes,
    known: TextCache | None,
    means: list[Tensor] | None,
) -> Tensor:
    """Log-probability ``[B, C]`` of each label behind each text."""
    texts = [example.input_ids for example in examples]
    base, ensemble = model.base_model, classes.ensemble
    if ensemble is None:
        if isinstance(prompt, Tensor):
            return score_labels(base, prompt, texts, classes.ids, means, placement="suffix", text_cache=known)
        return score_labels(base, prompt, texts, classes.ids, means)
    if means is not None and isinstance(prompt, KVCache):  # the prompt in front is there for the states
        score_labels(base, prompt, texts, classes.ids, means)
        means = None
    prompts, texts = ensemble.prompts.to(model.prompt), [classes.text_of(example) for example in examples]
    scores = score_labels(base, prompts, texts, classes.ids, means, placement="suffix", text_cache=known)
    return ensemble.join(scores)


def evaluate(
    model: PeftModelForCausalLM,
    examples: Sequence[Example],
    classes: Classes | None,
    *,
    batch_size: int,
    split: str = "test",
    progress: Progress | None = None,
    known: TextCache | None = None,
) -> Metrics:
    """Metrics on labelled examples: of classification, or the loss alone when ``classes`` is ``None``.

    Args:
        known: as for ``label_log_probs``.
    """
    started = time.perf_counter()
    if classes is None:
        loss = mean_loss(model, examples, batch_size=batch_size, progress=progress, known=known)
        return Metrics(
            num_examples=len(examples),
            eval_loss=loss,
            perplexity=measures.perplexity(loss),
            examples_per_second=len(examples) / (time.perf_counter() - started),
            split=split,
        )
    scores = label_log_probs(model, examples, classes, batch_size=batch_size, progress=progress, known=known)
    return classification_metrics(scores, examples, classes, seconds=time.perf_counter() - started, split=split)


def classification_metrics(
    scores: Tensor, examples: Sequence[Example], classes: Classes, *, seconds: float, split: str
) -> Metrics:
    """Metrics from label log-probabilities ``[N, C]``; the loss is per token of the right label's text, or per row.

    A row with scores that are not finite (float16 overflows) has no guess. It counts as wrong, as if the label
    after the right one had been guessed; the loss is then NaN, and there is no calibration error. A row whose label
    is none of the classes counts as wrong too, and its label as a class; the loss is that of the other rows.
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
def mean_loss(
    model: PeftModelForCausalLM,
    examples: Sequence[Example],
    *,
    batch_size: int,
    progress: Progress | None = None,
    known: TextCache | None = None,
) -> float:
    """Mean loss in nats per supervised token; ``known`` as for ``label_log_probs``."""
    total, count = 0.0, 0
    base, prompt = model.base_model, _prefilled(model)
    placement: Placement = "suffix" if isinstance(prompt, Tensor) else "prefix"
    for rows in batches_by_length(examples, batch_size):
        plan = plan_examples([examples[row] for row in rows], len(prompt), model.prompt.device, placement)
        losses = token_losses(base, plan, prompt, known_texts(base, plan, known))
        # On the CPU: MPS has no float64.
        total, count = total + float(losses.cpu().double().sum()), count + len(losses)
        if progress:
            progress(len(rows))
    return total / max(count, 1)


def generate_texts(
    model: PeftModelForCausalLM,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    end_token_id: int | None,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress | None = None,
) -> list[str]:
    """What the model writes behind each example (greedy), without special tokens, stripped."""
    texts = [""] * len(examples)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (end_token_id or 0)
    for rows in batches_by_length(examples, batch_size):
        width = max(1, *(len(examples[row].input_ids) for row in rows))
        ids = torch.full((len(rows), width), pad)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            tokens = examples[row].input_ids
            ids[i, width - len(tokens) :] = torch.tensor(tokens)
            mask[i, width - len(tokens) :] = 1
        device = model.prompt.device
        written = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=end_token_id,
            pad_token_id=pad,
        )
        for row, new in zip(rows, written[:, width:].tolist(), strict=True):
            texts[row] = str(tokenizer.decode(new, skip_special_tokens=True)).strip()
        if progress:
            progress(len(rows))
    return texts


def batches_by_length(examples: Sequence[Example], batch_size: int) -> Iterator[list[int]]:
    """Indices of examples, longest first (so memory runs out at once or not at all), ``batch_size`` at a time."""
    order = sorted(range(len(examples)), key=lambda row: -len(examples[row].input_ids))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
