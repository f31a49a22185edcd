"""Tokens to text, as they are generated: whole characters only, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

INCOMPLETE = "\ufffd"
"""Stands for bytes that are not a whole character yet, in what byte-level tokenizers decode."""


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token and its log-probability under the model.

    Attributes:
        token: the text that it added; empty if its character was not complete.
        logprob: natural logarithm of its probability, before temperature, ``top_k`` and ``top_p``.
        top: the most probable tokens and their log-probabilities.
        offset: number of characters before it in the text.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...]
    offset: int


@dataclass(frozen=True)
class Delta:
    """A new part of a text, and the log-probabilities of its tokens if they were asked for."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


class TextStream:
    """The text of a row.

    Args:
        tokenizer: reads the tokens.
        context: last token ids before the text; after them a tokenizer knows whether the text starts with a blank.
        stop: texts that end it.

    Attributes:
        text: all whole characters so far, without a stop string.
        stopped: whether a stop string was found.
    """

    def __init__(self, tokenizer: Any, context: Sequence[int] = (), stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        self._ids = list(context)
        while self._ids and self._decode(self._ids).startswith(INCOMPLETE):
            del self._ids[0]  # the context begins within a character
        # As in text-generation-inference and vLLM: text is decoded from a few tokens back, so that the time per token
        # does not grow, and the difference to the text before is new.
        self._start, self._read = 0, len(self._ids)
        self._sent = 0
        self.text, self.stopped = "", False

    def add(self, token_id: int) -> str:
        """Add a token; the characters that it completes, up to a stop string."""
        self._ids.append(token_id)
        return self._read_on(final=False)

    def finish(self) -> str:
        """End the text; what was held back as an incomplete character, as the tokenizer decodes it."""
        return self._read_on(final=True)

    def name(self, token_id: int) -> str:
        """The text of any token as the next one; special tokens have one as well."""
        before = self._ids[self._start : self._read]
        return self._decode([*before, token_id], special=True)[len(self._decode(before, special=True)) :]

    def _read_on(self, *, final: bool) -> str:
        before, after = self._decode(self._ids[self._start : self._read]), self._decode(self._ids[self._start :])
        if len(after) <= len(before) or (after.endswith(INCOMPLETE) and not final):
            return ""
        self._start, self._read = self._read, len(self._ids)
        length = len(self.text)
        self.text += after[len(before) :]
        self._cut(max(0, length - self._longest))
        return self.text[length:]

    def take(self, *, final: bool) -> str:
        """The text since the last call that cannot become part of a stop string.

        Args:
            final: the text is finished.
        """
        start, self._sent = self._sent, len(self.text) - (0 if final else self._held_back())
        return self.text[start : self._sent]

    @property
    def num_sent(self) -> int:
        """Characters that were taken."""
        return self._sent

    def _cut(self, start: int) -> None:
        """Cut the text at the stop string that is the first to be complete after ``start``; the longest of several.

        So the result does not depend on how the text is divided into tokens.
        """
        found = [(place + len(stop), place) for stop in self._stop if (place := self.text.find(stop, start)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)[1]], True

    def _held_back(self) -> int:
        """Characters at the end that a stop string may begin with."""
        for length in range(min(self._longest - 1, len(self.text) - self._sent), 0, -1):
            if any(stop.startswith(self.text[-length:]) for stop in self._stop):
                return length
        return 0

    def _decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False))
