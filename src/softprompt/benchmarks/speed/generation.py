"""``softprompt bench generate``: greedy decoding, ten new tokens a row.

``peft guide``  the guide's own call: one row at a time, without padding.
``peft best``   one batch, left-padded to its longest row.
``softprompt``  our ``model.generate`` on that same batch.

No row may stop early, so that all sides make the same number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...types import Example
from . import ours, reference
from .inputs import left_padded_texts
from .measure import COMPARED_ROWS, Side, Subject
from .models import start_prompt
from .names import KEY_PREFIX, OURS, PEFT_GUIDE
from .settings import BenchOptions
from .theirs import peft_model

NEW_TOKENS = 10


class Generation(Subject):
    """Continuations of texts."""

    name = "generate"

    def __init__(self, options: BenchOptions) -> None:
        super().__init__(options)
        self.prompt = start_prompt(self.base, options.num_virtual_tokens)

    def make_side(self, name: str) -> Side:
        """PEFT or ours, by name."""
        if name == OURS:
            return Greedy(ours.drop_in(self.base, self.prompt).eval(), row_by_row=False)
        return Greedy(peft_model(self.stock, [self.prompt]).eval(), row_by_row=name == PEFT_GUIDE)

    def agreement(self, sides: dict[str, Side]) -> dict[str, Any]:
        """How many rows get the tokens that they get alone."""
        batch = self.batches[0][:COMPARED_ROWS]
        alone = [reference.greedy(self.alone, self.prompt, each.input_ids, NEW_TOKENS) for each in batch]
        found: dict[str, Any] = {"rows_compared": len(batch), "new_tokens": NEW_TOKENS}
        for name, side in sides.items():
            written = side.run(side.prepare(batch))
            equal = sum(own == right for own, right in zip(written, alone, strict=True))
            found[f"{KEY_PREFIX[name]}rows_equal_alone"] = equal
        return found


class Greedy(Side):
    """``model.generate``, PEFT's or ours."""

    def __init__(self, model: Any, *, row_by_row: bool) -> None:
        self._model, self._row_by_row = model, row_by_row

    def prepare(self, batch: Sequence[Example]) -> list[dict[str, Tensor]]:
        """The arguments of each call."""
        groups = [[example] for example in batch] if self._row_by_row else [batch]
        return [left_padded_texts(group, self._model.device) for group in groups]

    @torch.no_grad()
    def run(self, prepared: list[dict[str, Tensor]]) -> list[list[int]]:
        """The new tokens of each row."""
        never = self._model.config.get_text_config().vocab_size  # no token has this id
        written: list[list[int]] = []
        for inputs in prepared:
            sequences = self._model.generate(
                **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=never, pad_token_id=0
            )
            written += sequences[:, inputs["input_ids"].shape[1] :].tolist()
        return written
