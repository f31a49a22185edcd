"""Prompts of words: an instruction, alone or with examples; read once, whatever stands behind them.

The model reads::

    Classify if the message is a complaint or not:
    text: No water since Monday                        <- examples, for in-context learning
    label: complaint
    text: What a lovely day
    label:                                             <- and says how probable each label with its line end is

Texts and labels are tokenised apart and examples are built of the same parts, so tokens agree wherever they meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from ....data.plain_text import PlainTokenizer, bare_ids
from ....data.task import Task
from ....data.template import Piece, Template
from ....data.tokenize import Encoder
from ....engine.prefill import prefill
from ....errors import ConfigError, DataError
from ....inference.score import score_labels
from ....models.embeddings import embed
from ....types import Row
from . import InContextOptions
from .method import Fitted, Method


class ZeroShot(Method):
    """The instruction as prompt."""

    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> Fitted:
        """See ``Method``."""
        return self.score(self._instruction_ids)

    @torch.no_grad()
    def score(self, prompt_ids: Sequence[int]) -> Fitted:
        """Label probabilities behind a prompt of tokens (special tokens in front not counted) and each test text."""
        base = self.work.frozen.base.model
        front, texts = self._texts(self.work.data.test, num_virtual_tokens=len(prompt_ids))
        prefilled = prefill(base, embed(torch.tensor([*front, *prompt_ids]), base.get_input_embeddings()))
        return Fitted(score_labels(base, prefilled, texts, self._label_ids).cpu(), 0)

    def _texts(self, rows: Sequence[Row], num_virtual_tokens: int) -> tuple[list[int], list[list[int]]]:
        """The special tokens that a text begins with, and the tokens of each row without them, cut to fit."""
        room = max(map(len, self._label_ids))
        encoder = self.work.frozen.encoder(self._task, num_virtual_tokens=num_virtual_tokens, room=room)
        front = _front(encoder)
        examples = encoder.encode_all(rows, with_label=False)
        return front, [list(example.input_ids[len(front) :]) for example in examples]

    @cached_property
    def _task(self) -> Task:
        task = self.work.data.task
        fields = "\n".join(f"{name}: {{{name}}}" for name in task.text_columns)
        template = f"{fields}\n{task.label_column}:"
        return Task(task.text_columns, task.label_column, template, max_length=task.max_length)

    @cached_property
    def _instruction_ids(self) -> list[int]:
        is_given = self.work.data.options.instruction is not None  # else it is made of labels, which come from rows
        return self._ids(Piece(f"{self.work.instruction}\n", is_field=not is_given))

    @cached_property
    def _label_ids(self) -> list[list[int]]:
        found = [self._ids(Piece(f" {label}\n", is_field=True)) for label in self.work.data.labels]
        for label, ids in zip(self.work.data.labels, found, strict=True):
            if not ids or found.count(ids) > 1:
                raise DataError(f"the tokenizer does not tell the label {label!r} from others; use another word")
        return found

    def _ids(self, text: Piece) -> list[int]:
        return list(PlainTokenizer(self.work.frozen.base.tokenizer).ids([[text]])[0])


class InContext(ZeroShot):
    """The instruction and as many of the training rows, in the order drawn, as fit into a number of tokens."""

    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> Fitted:
        """See ``Method``.

        Raises:
            ConfigError: not even one row fits.
        """
        prompt = list(self._instruction_ids)
        most = self._most_tokens()
        _, texts = self._texts(rows, num_virtual_tokens=0)
        shown = 0
        for text, label in zip(texts, labels, strict=True):
            example = [*text, *self._label_ids[label]]
            if len(prompt) + len(example) <= most:
                prompt += example
                shown += 1
        if not shown:
            raise ConfigError(f"task {self.work.data.name}: no training row fits into tokens={most}; allow more")
        return self.score(prompt)

    def _most_tokens(self) -> int:
        """What was asked for, or what the longest test row leaves of the context, whichever is less."""
        asked = InContextOptions(**self.given).tokens
        context = self.work.frozen.context
        if context is None:
            return asked
        front, texts = self._texts(self.work.data.test, num_virtual_tokens=0)
        return min(asked, context - len(front) - max(map(len, texts)) - max(map(len, self._label_ids)))


def _front(encoder: Encoder) -> list[int]:
    """The special tokens that an encoder puts before each text: what it gives more than the text's own tokens."""
    fields = Template(encoder.task.template, encoder.task.text_columns).fields
    probe = Row(dict.fromkeys(fields, "a"), "a probe")
    own = bare_ids(encoder.tokenizer, [encoder.render(probe.fields, probe.where)])[0]
    ids = encoder.encode(probe, with_label=False).input_ids
    return list(ids[: len(ids) - len(own)])
