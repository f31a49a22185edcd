"""Answers of several adapters to texts, in as few runs of the model as possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..engine.runner import ModelRunner
from ..types import Example
from .continuous import CONTEXT, Continuation, DecodingBatch
from .library_adapter import Adapter
from .mixed import run_mixed
from .mixed_rows import LabelRow, PlacedPrompt, TextRow
from .pipeline import Prediction
from .sampling import Sampling

ROWS_AT_ONCE = 32
"""Most rows that are generated together; each has a KV cache (46 kB per token in SmolLM2-135M, float32)."""


class Question(NamedTuple):
    """A text for an adapter."""

    adapter: Adapter
    prompt: PlacedPrompt
    example: Example


def answer(
    runner: ModelRunner, questions: Sequence[Question], max_new_tokens: int | None = None
) -> list[Prediction | str]:
    """The label of each text, or a greedily generated text for a generation task, in order.

    Args:
        max_new_tokens: most tokens of a text; by default the adapter's.
    """
    asked = dict(enumerate(questions))
    rows = {
        number: LabelRow(prompt, adapter.classes, example)
        for number, (adapter, prompt, example) in asked.items()
        if adapter.classes
    }
    found: dict[int, Prediction | str] = {
        number: _prediction(asked[number].adapter, log_probs)
        for number, log_probs in zip(rows, run_mixed(runner, list(rows.values())), strict=True)
    }
    others = {number: each for number, each in asked.items() if number not in rows}
    found |= _generated(runner, others, max_new_tokens)
    return [found[number] for number in asked]


def _prediction(adapter: Adapter, log_probs: Tensor) -> Prediction:
    probability, best = log_probs.float().softmax(0).max(0)
    return Prediction(adapter.task.labels[int(best)], float(probability))


def _generated(runner: ModelRunner, questions: Mapping[int, Question], max_new_tokens: int | None) -> dict[int, str]:
    """Generated texts; a row that is finished makes room for the next."""
    batch, waiting = DecodingBatch(runner), list(questions)
    running, found = dict[int, Continuation](), dict[int, str]()
    while waiting or running:
        new = [waiting.pop(0) for _ in range(min(len(waiting), ROWS_AT_ONCE - len(running)))]
        running |= zip(new, _started(runner, [questions[number] for number in new], max_new_tokens), strict=True)
        for number in new:
            if running[number].finish_reason is None:
                batch.add(running[number])
        if batch.rows:
            batch.step()
        for number in [number for number, row in running.items() if row.finish_reason]:
            found[number] = running.pop(number).completion().text.strip()
    return found


def _started(runner: ModelRunner, questions: Sequence[Question], max_new_tokens: int | None) -> list[Continuation]:
    """Prefilled rows, each with its first new token."""
    prefilled: list[Any] = run_mixed(runner, [TextRow(prompt, example.input_ids) for _, prompt, example in questions])
    return [
        Continuation(each, _greedy(adapter, max_new_tokens), adapter.loaded.tokenizer, example.input_ids[-CONTEXT:])
        for each, (adapter, _, example) in zip(prefilled, questions, strict=True)
    ]


def _greedy(adapter: Adapter, max_new_tokens: int | None) -> Sampling:
    end = adapter.task.end_token_id
    return Sampling(max_new_tokens or adapter.max_new_tokens, end_token_ids=() if end is None else (end,))
