"""Predictions for rows, in order and a few batches at a time: a label with its probability, or a generated text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..config.options import check_counts
from ..data.task import Task
from ..data.tokenize import Encoder
from ..types import Example, Row
from .classifier import Progress, batches_by_length, label_log_probs
from .load_adapter import LoadedAdapter
from .prompted import PromptedModel

MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class Answer:
    """The output of the model for one row.

    Attributes:
        text: the label, or the generated text.
        probability: of the label among the labels; ``None`` for a generated text.
        truncated: whether the row's text was cut to fit ``max_length`` or the model's context.
    """

    text: str
    probability: float | None
    truncated: bool


def predict_rows(
    loaded: LoadedAdapter,
    task: Task,
    rows: Iterable[Row],
    *,
    generate: bool = False,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
) -> Iterator[tuple[Row, Answer]]:
    """Predict rows in order, a few batches at a time, so that files of any length can be streamed.

    Args:
        generate: generate a text (greedily) even if the task has labels.
        max_new_tokens: most tokens to generate; texts are cut to leave room for them in the model's context. ``None``
            for ``MAX_NEW_TOKENS``, or a quarter of a shorter context.
        batch_size: rows per forward pass.

    Raises:
        ConfigError: a count is less than 1, or the model's context has no room for ``max_new_tokens``.
        DataError: a row lacks a column that the template reads.
    """
    check_counts(batch_size=batch_size, max_new_tokens=max_new_tokens)
    free_text = generate or not task.is_classification
    limit = max_new_tokens or default_max_new_tokens(loaded)
    encoder = loaded.encoder(task, room_for_answer=limit if free_text else 0)
    remaining = iter(rows)
    while chunk := list(islice(remaining, 4 * batch_size)):
        answers = (
            _generate(loaded, encoder, chunk, limit, batch_size)
            if free_text
            else _classify(loaded, encoder, chunk, batch_size)
        )
        yield from zip(chunk, answers, strict=True)


def default_max_new_tokens(loaded: LoadedAdapter) -> int:
    """``MAX_NEW_TOKENS``, or a quarter of a shorter context."""
    context = loaded.context_length
    return MAX_NEW_TOKENS if context is None else min(MAX_NEW_TOKENS, max(1, context // 4))


def label_probabilities(
    loaded: LoadedAdapter, encoder: Encoder, rows: Sequence[Row], batch_size: int
) -> tuple[Tensor, list[Example]]:
    """Probability ``[N, C]`` of each label of a classification task for each row, and the encoded rows.

    Raises:
        ConfigError: ``batch_size`` is less than 1.
    """
    check_counts(batch_size=batch_size)
    examples = encoder.encode_all(rows, with_label=False)
    classes = loaded.classes(encoder)
    assert classes is not None
    return label_log_probs(loaded.model, examples, classes, batch_size=batch_size).softmax(1), examples


def _classify(loaded: LoadedAdapter, encoder: Encoder, rows: Sequence[Row], batch_size: int) -> list[Answer]:
    probabilities, examples = label_probabilities(loaded, encoder, rows, batch_size)
    confidence, best = probabilities.max(1)
    return [
        Answer(encoder.task.labels[index], probability, example.num_cut > 0)
        for index, probability, example in zip(best.tolist(), confidence.tolist(), examples, strict=True)
    ]


def _generate(
    loaded: LoadedAdapter, encoder: Encoder, rows: Sequence[Row], max_new_tokens: int, batch_size: int
) -> list[Answer]:
    examples = encoder.encode_all(rows, with_label=False)
    texts = generate_texts(
        loaded.model,
        loaded.tokenizer,
        examples,
        end_token_id=encoder.task.end_token_id,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    return [Answer(text, None, example.num_cut > 0) for text, example in zip(texts, examples, strict=True)]


def generate_texts(
    model: PromptedModel,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    end_token_id: int | None,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress | None = None,
) -> list[str]:
    """Greedy continuations of examples, without special tokens and surrounding whitespace."""
    texts = [""] * len(examples)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (end_token_id or 0)
    for rows in batches_by_length(examples, batch_size):
        tokens = [examples[row].input_ids for row in rows]
        ids = pad_sequence(  # at least one token wide: a text may have none
            [torch.tensor(each or (pad,)) for each in tokens], batch_first=True, padding_value=pad, padding_side="left"
        )
        lengths = torch.tensor([len(each) for each in tokens])
        mask = (torch.arange(ids.shape[1]) >= ids.shape[1] - lengths[:, None]).long()
        device = model.prompt.device
        output = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=end_token_id,
            pad_token_id=pad,
        )
        for row, new in zip(rows, output[:, ids.shape[1] :].tolist(), strict=True):
            texts[row] = str(tokenizer.decode(new, skip_special_tokens=True)).strip()
        if progress:
            progress(len(rows))
    return texts
