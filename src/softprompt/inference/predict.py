"""Answers for new rows: the label with its probability, or a text written freely."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from ..data.task import Task
from ..data.tokenize import Encoder
from ..types import Row
from .evaluate import generate_texts, label_log_probs
from .pipeline import Prompted

MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class Answer:
    """What the model answers to one row.

    Attributes:
        text: the label, or the text it wrote.
        probability: of the label among the labels; ``None`` for a written text.
        cut: whether the row's text had to be cut to fit.
    """

    text: str
    probability: float | None
    cut: bool


def predict(
    prompted: Prompted,
    task: Task,
    rows: Iterable[Row],
    *,
    generate: bool = False,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
) -> Iterator[tuple[Row, Answer]]:
    """Answer rows in order, a few batches at a time, so that a file of any length streams through.

    Args:
        generate: write freely (greedy) even if the task has labels.
        max_new_tokens: most tokens to write; texts are cut so that there is room for them in the model's
            context. ``None`` for ``MAX_NEW_TOKENS``, or for a quarter of a context that is short.

    Raises:
        ConfigError: the model's context has no room for ``max_new_tokens``.
        DataError: a row lacks a column that the template reads.
    """
    writes = generate or not task.is_classification
    most = max_new_tokens or _default_length(prompted)
    encoder = prompted.encoder(task, room_for_answer=most if writes else 0)
    remaining = iter(rows)
    while chunk := list(islice(remaining, 4 * batch_size)):
        answers = (
            _write(prompted, encoder, chunk, most, batch_size)
            if writes
            else _choose(prompted, encoder, chunk, batch_size)
        )
        yield from zip(chunk, answers, strict=True)


def _default_length(prompted: Prompted) -> int:
    context = prompted.context_length
    return MAX_NEW_TOKENS if context is None else min(MAX_NEW_TOKENS, max(1, context // 4))


def _choose(prompted: Prompted, encoder: Encoder, rows: Sequence[Row], batch_size: int) -> list[Answer]:
    examples = encoder.encode_all(rows, with_label=False)
    classes = prompted.classes(encoder)
    assert classes is not None
    scores = label_log_probs(prompted.model, examples, classes, batch_size=batch_size)
    confidence, best = scores.softmax(1).max(1)
    return [
        Answer(classes.names[index], probability, example.num_cut > 0)
        for index, probability, example in zip(best.tolist(), confidence.tolist(), examples, strict=True)
    ]


def _write(
    prompted: Prompted, encoder: Encoder, rows: Sequence[Row], max_new_tokens: int, batch_size: int
) -> list[Answer]:
    examples = encoder.encode_all(rows, with_label=False)
    texts = generate_texts(
        prompted.model,
        prompted.tokenizer,
        examples,
        end_token_id=encoder.task.end_token_id,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    return [Answer(text, None, example.num_cut > 0) for text, example in zip(texts, examples, strict=True)]
