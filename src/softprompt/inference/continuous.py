"""Continuous batching: texts are generated together, and join and leave between steps.

A row is ``[ pads | prompt and text | new tokens ]``, and all rows end in the same column, so a step adds one column to
all of them, and no padding ever separates a row's tokens. Keys and values stand in one buffer per layer::

    column   0        start            end     capacity
    row 1    .  .  .  t  t  t  t  t  t  +  .  .  .          t  token    +  written by this step
    row 2    .  .  .  .  .  .  t  t  t  +  .  .  .
    free     .  .  .  .  .  .  .  .  .  .  .  .  .

A step writes into the next column. A row that joins is copied into a free line, and the last row takes the place of one
that leaves. The rest is stock transformers code, which is exact for every decoder that can continue from a cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from ..engine.kv_cache import KVCache
from ..engine.runner import ModelRunner
from ..models.families import check_depth
from .mixed_rows import Prefilled, StepRow
from .sampling import Sampler, Sampling
from .text_stream import Delta, TextStream, TokenLogprob

CONTEXT = 6
"""Tokens before a text that are decoded with it; a tokenizer may need them to tell whether it starts with a blank."""
LINES, COLUMNS = 8, 64
"""The numbers of lines and columns of a buffer are multiples of these, so that most rows that join find room."""
SPARE_COLUMNS = 128
"""Columns that a new buffer has free at its end: so many steps until all rows are copied into another one."""


@dataclass(frozen=True)
class Completion:
    """A generated text.

    Attributes:
        text: without special tokens and stop strings.
        num_tokens: tokens that were generated, an end token included.
        finish_reason: ``stop`` for an end token or a stop string, ``length`` for ``max_new_tokens``.
        logprobs: of its tokens, if they were asked for.
    """

    text: str
    num_tokens: int
    finish_reason: Literal["stop", "length"]
    logprobs: tuple[TokenLogprob, ...] | None


class Continuation:
    """One text that is being generated. Its first token is chosen at once.

    Args:
        prefilled: the row's KV cache, and the logits of the first new token.
        sampling: how tokens are chosen, and when the text ends.
        tokenizer: reads the new tokens.
        context: the last ``CONTEXT`` token ids before the text.

    Attributes:
        finish_reason: ``None`` while the text is not finished.
    """

    def __init__(self, prefilled: Prefilled, sampling: Sampling, tokenizer: Any, context: Sequence[int] = ()) -> None:
        self.sampling = sampling
        self.finish_reason: Literal["stop", "length"] | None = None
        self.new_ids: list[int] = []
        self._tokenizer = tokenizer
        self._sampler = Sampler(sampling)
        self._stream = TextStream(tokenizer, context, sampling.stop)
        self._logprobs: list[TokenLogprob] = []
        self._num_sent = 0
        self.cache: KVCache | None = prefilled.cache
        self.advance(prefilled.logits.float())

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is always chosen."""
        return self._sampler.greedy

    def advance(self, logits: Tensor, best: int | None = None) -> None:
        """Choose the next token.

        Args:
            logits: ``[V]`` float32.
            best: their index of the maximum, if it is known.
        """
        token = best if best is not None and self.is_greedy else self._sampler.choose(logits)
        self.new_ids.append(token)
        if token in self.sampling.end_token_ids:
            self.finish_reason = "stop"
            self._stream.finish()
        else:
            self._add(token, logits)
        if self._stream.stopped:
            self.finish_reason = "stop"
            self._logprobs = [each for each in self._logprobs if each.offset < len(self._stream.text)]

    def _add(self, token: int, logits: Tensor) -> None:
        """Add a token to the text."""
        log_probs = None if self.sampling.logprobs is None else logits.log_softmax(-1)
        top, offset = () if log_probs is None else self._top(log_probs), len(self._stream.text)
        text = self._stream.add(token)
        if len(self.new_ids) >= self.sampling.max_new_tokens:
            self.finish_reason = "length"
            text += self._stream.finish()
        if log_probs is not None:
            self._logprobs.append(TokenLogprob(text, float(log_probs[token]), top, offset))

    def take(self) -> Delta:
        """The part of the text that is new since the last call: whole characters, and nothing that may still become
        part of a stop string.
        """
        final = self.finish_reason is not None
        text = self._stream.take(final=final)
        start, end = self._num_sent, self._num_sent
        while end < len(self._logprobs) and (final or self._logprobs[end].offset < self._stream.num_sent):
            end += 1
        self._num_sent = end
        return Delta(text, tuple(self._logprobs[start:end]))

    def completion(self) -> Completion:
        """The finished text."""
        assert self.finish_reason is not None
        logprobs = None if self.sampling.logprobs is None else tuple(self._logprobs)
        return Completion(self._stream.text, len(self.new_ids), self.finish_reason, logprobs)

    def _top(self, log_probs: Tensor) -> tuple[tuple[str, float], ...]:
        """The most probable tokens and their log-probabilities."""
        values, ids = log_probs.topk(min(self.sampling.logprobs or 0, len(log_probs)))
        return tuple(zip(map(self._stream.name, ids.tolist()), values.tolist(), strict=True))


class DecodingBatch:
    """Texts that are generated together.

    Args:
        runner: owns the base model.

    Attributes:
        rows: the texts that are not finished.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.rows: list[Continuation] = []
        self._lengths: list[int] = []  # tokens in the buffer, of each row
        self._layers: list[_Layer] = []
        self._end = 0  # the column after the last token of all rows
        self._no_hidden = torch.empty(0)

    def add(self, row: Continuation) -> None:
        """Add an unfinished row; it takes part in the next step.

        Raises:
            ConfigError: with all its new tokens, the row would exceed the model's positions.
        """
        assert row.cache is not None
        cache, row.cache = row.cache, None
        length = len(cache)
        check_depth(self._runner.base.config, length + row.sampling.max_new_tokens - 1)
        if not self._layers:
            self._layers = [_Layer(states) for states in cache.layers]
            self._no_hidden = torch.full_like(cache.hidden[:1], math.nan)  # nothing reads them
        if length > self._end or len(self.rows) == self._layers[0].num_lines:
            self._make_room(len(self.rows) + 1, max(length, *self._lengths, 0))
        for layer, states in zip(self._layers, cache.layers, strict=True):
            layer.clear(len(self.rows), self._end - length)
            layer.write(len(self.rows), self._end, states)
        self.rows.append(row)
        self._lengths.append(length)

    def remove(self, row: Continuation) -> None:
        """Remove a row, if it is there."""
        if row not in self.rows:
            return
        place, last = self.rows.index(row), len(self.rows) - 1
        if place != last:
            for layer in self._layers:
                layer.move(last, place, self._end)
            self.rows[place], self._lengths[place] = self.rows[last], self._lengths[last]
        del self.rows[last], self._lengths[last]
        if not self.rows:
            self._layers, self._end = [], 0

    @torch.no_grad()
    def step(self) -> list[Continuation]:
        """Generate one token for each row; rows that are finished leave.

        Returns:
            The rows that got a token.
        """
        if not self.rows:
            return []
        self._make_column()
        return self._advance(self._logits())

    def step_rows(self) -> list[StepRow]:
        """The next tokens of all rows as part of a mixed batch, in place of ``step``; see ``accept``."""
        self._make_column()
        found = []
        for line, (row, length) in enumerate(zip(self.rows, self._lengths, strict=True)):
            layers = tuple(layer.line(line, self._end - length, self._end) for layer in self._layers)
            found.append(StepRow(KVCache(layers, self._no_hidden.expand(length, -1)), row.new_ids[-1]))
        return found

    def accept(self, results: Sequence[Prefilled]) -> list[Continuation]:
        """Complete a step with the results of ``step_rows``, in order; returns the rows that got a token."""
        if not self.rows:
            return []
        for line, (cache, _) in enumerate(results):
            for layer, states in zip(self._layers, cache.layers, strict=True):
                layer.write(line, self._end + 1, states)
        return self._advance(torch.stack([logits.float() for _, logits in results]))

    def _make_column(self) -> None:
        if self.rows and self._end == self._layers[0].capacity:
            self._make_room(len(self.rows), max(self._lengths))

    def _advance(self, logits: Tensor) -> list[Continuation]:
        """Choose a token for each row, given logits ``[B, V]`` in float32."""
        best: list[int] = logits.argmax(-1).tolist()
        advanced = list(self.rows)
        self._lengths = [length + 1 for length in self._lengths]
        self._end += 1
        for row, own, token in zip(advanced, logits, best, strict=True):
            row.advance(own, token)
            if row.finish_reason is not None:
                self.remove(row)
        return advanced

    def _logits(self) -> Tensor:
        """Logits ``[B, V]`` in float32 after the last token of each row."""
        base, device = self._runner.fused_base, self._runner.base.device
        lengths = torch.tensor(self._lengths, device=device)[:, None]
        start = self._end - max(self._lengths)
        for layer in self._layers:
            layer.show(len(self.rows), start, self._end)
        columns = torch.arange(start, self._end + 1, device=device)
        output: Any = base(
            input_ids=torch.tensor([[row.new_ids[-1]] for row in self.rows], device=device),
            attention_mask=(columns >= self._end - lengths).long(),
            position_ids=lengths,
            past_key_values=Cache(layers=list(self._layers)),
            use_cache=True,
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def _make_room(self, lines: int, longest: int) -> None:
        """Move all rows into new buffers, with ``lines`` lines, whose rows may have ``longest`` tokens."""
        end = _rounded_up(longest, COLUMNS)
        start = self._end - max(self._lengths, default=0)
        for layer in self._layers:
            layer.resize(_rounded_up(lines, LINES), end + SPARE_COLUMNS, len(self.rows), start, self._end, end)
        self._end = end


class _Layer(DynamicLayer):
    """Keys and values of all rows in one layer: ``[lines, key heads, capacity, d]``.

    Columns before a row's tokens are zero: attention gives them a weight of zero, but zero times NaN is NaN. Other free
    places are not initialized, since nothing reads them.

    Args:
        like: keys and values ``[1, key heads, n, d]`` of a row.
    """

    def __init__(self, like: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self._buffers = [states.new_zeros(0, states.shape[1], 0, states.shape[3]) for states in like]
        self._columns = 0, 0
        self.is_initialized = True

    @property
    def num_lines(self) -> int:
        return self._buffers[0].shape[0]

    @property
    def capacity(self) -> int:
        return self._buffers[0].shape[2]

    def resize(self, lines: int, capacity: int, rows: int, start: int, end: int, new_end: int) -> None:
        """New buffers, where columns ``start .. end`` of the first ``rows`` lines end at column ``new_end``."""
        new_start = new_end - (end - start)
        for number, old in enumerate(self._buffers):
            new = old.new_empty(lines, old.shape[1], capacity, old.shape[3])
            new[:rows, :, :new_start] = 0
            new[:rows, :, new_start:new_end] = old[:rows, :, start:end]
            self._buffers[number] = new

    def clear(self, line: int, end: int) -> None:
        """Set a line to zero, up to column ``end``."""
        for buffer in self._buffers:
            buffer[line, :, :end] = 0

    def write(self, line: int, end: int, states: tuple[Tensor, Tensor]) -> None:
        """Write a row's keys and values ``[1, key heads, n, d]``, up to column ``end``."""
        for buffer, new in zip(self._buffers, states, strict=True):
            buffer[line, :, end - new.shape[2] : end] = new[0]

    def move(self, line: int, to: int, end: int) -> None:
        """Copy a line to another, up to column ``end``."""
        for buffer in self._buffers:
            buffer[to, :, :end] = buffer[line, :, :end]

    def line(self, line: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``[1, key heads, n, d]`` of a row; no copy."""
        keys, values = (buffer[line : line + 1, :, start:end] for buffer in self._buffers)
        return keys, values

    def show(self, rows: int, start: int, end: int) -> None:
        """Be the cache of the first ``rows`` lines, with columns ``start .. end``."""
        self._columns = start, end
        self.keys, self.values = (buffer[:rows, :, start:end] for buffer in self._buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new column ``[B, key heads, 1, d]``, and return all columns with it."""
        start, end = self._columns
        rows = len(key_states)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:rows, :, end] = new[:, :, 0]
        keys, values = (buffer[:rows, :, start : end + 1] for buffer in self._buffers)
        return keys, values


def _rounded_up(number: int, step: int) -> int:
    return -(-number // step) * step
