"""Continuous batching (in progress: replaced by the branch that writes it)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    end_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log-probability."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...]
    offset: int


@dataclass(frozen=True)
class Delta:
    """New text."""

    text: str
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class Completion:
    """A finished text."""

    text: str
    num_tokens: int
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] | None


class Continuation:
    """One row being generated."""

    finish_reason: str | None

    def __init__(self, prefilled: Any, sampling: Sampling, tokenizer: Any) -> None:
        raise NotImplementedError

    def take(self) -> Delta:
        """New text."""
        raise NotImplementedError

    def completion(self) -> Completion:
        """The whole text."""
        raise NotImplementedError


class DecodingBatch:
    """Rows being generated together."""

    def __init__(self, runner: Any) -> None:
        self.rows: list[Continuation] = []

    def add(self, row: Continuation) -> None:
        """Add a row."""

    def remove(self, row: Continuation) -> None:
        """Remove a row."""

    def step(self) -> list[Continuation]:
        """One token for each row."""
        raise NotImplementedError
