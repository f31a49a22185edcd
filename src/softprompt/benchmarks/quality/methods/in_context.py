"""Zero-shot and few-shot in-context learning: an instruction, alone or with examples, prefilled once per prompt.

The model reads::

    Classify if the message is a complaint or not:
    text: No water since Monday                        <- examples (few-shot)
    label: complaint
    text: What a lovely day
    label:                                             <- each label, with its line break, is scored here

Texts and labels are tokenised separately and examples are built from the same parts, so their tokens always agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from ....data.plain_text import PlainTokenizer, bare_ids
from ....data.task import Task
from ....data.template import Piece, Template
from ....data.tokenize import Encoder
from ....engine.runner import ModelRunner
from ....errors import ConfigError, DataError
from ....inference.score import score_labels
from ....models.embeddings import embed
from ....types import Row
from ..method_options import InContextOptions
from .method import FittedScores, Method


class ZeroShot(Method):
    """Zero-shot: the instruction is the prompt."""

    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> FittedScores:
        """See ``Method``."""
        return self.score(self._instruction_ids)

    @torch.no_grad()
    def score(self, prompt_ids: Sequence[int]) -> FittedScores:
        """Label probabilities of each test text after a prompt of tokens; special tokens are added before it."""
        base = self.context.shared_base.base.model
        special, texts = self._texts(self.context.data.test, num_virtual_tokens=len(prompt_ids))
        runner = ModelRunner(base)
        prompt = embed(torch.tensor([*special, *prompt_ids]), base.get_input_embeddings())
        return FittedScores(score_labels(runner, runner.prefill_prompt(prompt), texts, self._label_ids).cpu(), 0)

    def _texts(self, rows: Sequence[Row], num_virtual_tokens: int) -> tuple[list[int], list[list[int]]]:
        """The special tokens that a text begins with, and the tokens of each row without them, truncated to fit."""
        room = max(map(len, self._label_ids))
        encoder = self.context.shared_base.encoder(self._task, num_virtual_tokens=num_virtual_tokens, room=room)
        special = _special(encoder)
        examples = encoder.encode_all(rows, with_label=False)
        return special, [list(example.input_ids[len(special) :]) for example in examples]

    @cached_property
    def _task(self) -> Task:
        task = self.context.data.task
        fields = "\n".join(f"{name}: {{{name}}}" for name in task.text_columns)
        template = f"{fields}\n{task.label_column}:"
        return Task(task.text_columns, task.label_column, template, max_length=task.max_length)

    @cached_property
    def _instruction_ids(self) -> list[int]:
        is_given = self.context.data.options.instruction is not None  # a default has labels, which come from rows
        return self._ids(Piece(f"{self.context.instruction}\n", is_field=not is_given))

    @cached_property
    def _label_ids(self) -> list[list[int]]:
        found = [self._ids(Piece(f" {label}\n", is_field=True)) for label in self.context.data.labels]
        for label, ids in zip(self.context.data.labels, found, strict=True):
            if not ids or found.count(ids) > 1:
                raise DataError(f"the label {label!r} has the same tokens as another label, or none; rename it")
        return found

    def _ids(self, text: Piece) -> list[int]:
        return list(PlainTokenizer(self.context.shared_base.base.tokenizer).ids([[text]])[0])


class InContext(ZeroShot):
    """Few-shot: the instruction and as many training rows, in the order drawn, as fit into ``tokens`` tokens."""

    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> FittedScores:
        """See ``Method``.

        Raises:
            ConfigError: not a single row fits.
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
            raise ConfigError(
                f"task {self.context.data.name}: no training row fits into tokens={most}; give a larger number"
            )
        return self.score(prompt)

    def _most_tokens(self) -> int:
        """The given maximum, or the positions that the longest test row leaves, whichever is less."""
        given = InContextOptions(**self.given).tokens
        positions = self.context.shared_base.max_positions
        if positions is None:
            return given
        special, texts = self._texts(self.context.data.test, num_virtual_tokens=0)
        return min(given, positions - len(special) - max(map(len, texts)) - max(map(len, self._label_ids)))


def _special(encoder: Encoder) -> list[int]:
    """The special tokens that an encoder adds before each text."""
    fields = Template(encoder.task.template, encoder.task.text_columns).fields
    probe = Row(dict.fromkeys(fields, "a"), "a probe")
    own = bare_ids(encoder.tokenizer, [encoder.render(probe.fields, probe.where)])[0]
    ids = encoder.encode(probe, with_label=False).input_ids
    return list(ids[: len(ids) - len(own)])
