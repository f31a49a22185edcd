"""Label probabilities: the label candidates' likelihoods, an ensemble of suffix prompts, and a linear probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.labels import unique_prefixes
from ..data.task import Task
from ..data.tokenize import Encoder
from ..engine.kv_cache import KVCache
from ..engine.text_cache import TextCache
from ..types import Example
from .ensemble import Ensemble
from .probe import LinearProbe
from .prompted import PromptedModel
from .score import score_labels

Progress = Callable[[int], None]
"""Called with the number of rows just done."""


@dataclass(frozen=True)
class Classes:
    """The classes of a task, and how their probabilities are computed.

    Attributes:
        names: the C labels.
        ids: the label candidates: token ids of each label with the end token, or of its unique prefix
            (``Task.label_scoring``).
        linear_probe: predicts classes from hidden states; averaged with the candidates' probabilities.
        ensemble: suffix prompts that score the candidates in place of the adapter's own prompt.
        relative: whether only the labels' probabilities relative to each other are meaningful, as for unique prefixes
            and with a linear probe; a loss is then per row, not per token.
        num_answer_prefix_tokens: number of tokens at the end of each input that are the answer prefix
            (``Task.answer_prefix``).
    """

    names: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    linear_probe: LinearProbe | None = None
    ensemble: Ensemble | None = None
    relative: bool = False
    num_answer_prefix_tokens: int = 0

    def text_of(self, example: Example) -> tuple[int, ...]:
        """The input of an example without the answer prefix, as the ensemble's suffix prompts read it."""
        return example.input_ids[: len(example.input_ids) - self.num_answer_prefix_tokens]


def classes_of(
    task: Task, encoder: Encoder, linear_probe: LinearProbe | None = None, ensemble: Ensemble | None = None
) -> Classes | None:
    """The classes of a task; ``None`` for a generation task."""
    if not task.is_classification:
        return None
    ids = tuple(encoder.label_ids(label) for label in task.labels)
    by_prefix = task.label_scoring == "unique_prefix"
    candidates = unique_prefixes(ids) if by_prefix else ids
    relative = by_prefix or linear_probe is not None  # a probe gives no probability of a label's text
    return Classes(task.labels, candidates, linear_probe, ensemble, relative, len(encoder.answer_prefix_ids))


def label_log_probs(
    model: PromptedModel,
    examples: Sequence[Example],
    classes: Classes,
    *,
    batch_size: int,
    progress: Progress | None = None,
    text_cache: TextCache | None = None,
) -> Tensor:
    """Log-probability of each class for each example: ``[N, C]`` float32 on the CPU.

    Without an ensemble and a linear probe, it is the log-probability of the label candidate after the example.

    Args:
        text_cache: KV caches of the examples' texts, for suffix prompts; without it the texts are computed here.
    """
    log_probs = torch.empty(len(examples), len(classes.ids))
    prompt = model.prefilled()
    for rows in batches_by_length(examples, batch_size):
        batch = [examples[row] for row in rows]
        if classes.linear_probe is None:
            log_probs[rows] = _candidate_log_probs(model, prompt, batch, classes, text_cache, None).float().cpu()
        else:
            states: list[Tensor] = []
            scores = _candidate_log_probs(model, prompt, batch, classes, None, states).float().cpu()
            log_probs[rows] = classes.linear_probe.mix(scores, torch.cat(states).cpu())
        if progress:
            progress(len(rows))
    return log_probs.log_softmax(-1) if classes.relative else log_probs


def mean_states(
    model: PromptedModel,
    examples: Sequence[Example],
    classes: Classes,
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> Tensor:
    """Mean hidden states ``[N, layers, D]`` of the texts, float32 on the CPU: the features of a linear probe."""
    found = torch.empty(0)
    classes = replace(classes, ids=(), ensemble=None)  # no candidate is scored; with many, that is most of the work
    prompt = model.prefilled()
    for rows in batches_by_length(examples, batch_size):
        states: list[Tensor] = []
        _candidate_log_probs(model, prompt, [examples[row] for row in rows], classes, None, states)
        of_batch = torch.cat(states).cpu()
        found = found if len(found) else of_batch.new_empty(len(examples), *of_batch.shape[1:])
        found[rows] = of_batch
        if progress:
            progress(len(rows))
    return found


def _candidate_log_probs(
    model: PromptedModel,
    prompt: Tensor | KVCache,
    examples: Sequence[Example],
    classes: Classes,
    text_cache: TextCache | None,
    states: list[Tensor] | None,
) -> Tensor:
    """Log-probability ``[B, C]`` of each label candidate after each text.

    Args:
        prompt: ``[P, D]`` of a suffix, or the KV cache of a prefix.
        states: receives the texts' mean hidden states.
    """
    texts, ensemble = [example.input_ids for example in examples], classes.ensemble
    if ensemble is None:
        cache = text_cache if model.placement == "suffix" else None
        return score_labels(
            model.runner, prompt, texts, classes.ids, states, placement=model.placement, text_cache=cache
        )
    if states is not None and model.placement == "prefix":  # the probe reads the states under the prefix
        score_labels(model.runner, prompt, texts, classes.ids, states)
        states = None
    members, texts = ensemble.prompts.to(model.prompt), [classes.text_of(example) for example in examples]
    scores = score_labels(model.runner, members, texts, classes.ids, states, placement="suffix", text_cache=text_cache)
    return ensemble.join(scores)


def batches_by_length(examples: Sequence[Example], batch_size: int) -> Iterator[list[int]]:
    """Indices of examples in batches, longest first, so that memory runs out in the first batch or not at all."""
    order = sorted(range(len(examples)), key=lambda row: -len(examples[row].input_ids))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
