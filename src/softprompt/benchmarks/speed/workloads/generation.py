"""``softprompt benchmark speed generate``: greedy decoding, ten new tokens per row.

``peft guide``  the guide's own call: one row at a time, without padding.
``peft best``   one batch, left-padded to its longest row.
``softprompt``  softprompt's ``model.generate`` on the same batch.

No row may stop early, so all implementations generate the same number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ....types import Example
from .. import plain_forward, softprompt_calls
from ..base_models import initial_prompt
from ..catalog import KEY_PREFIX, OURS, PEFT_GUIDE
from ..inputs import left_padded_texts
from ..peft_calls import peft_model
from ..settings import SpeedOptions
from ..workload import COMPARED_ROWS, Implementation, Workload

NEW_TOKENS = 10


class Generation(Workload):
    """Continuations of texts."""

    name = "generate"

    def __init__(self, options: SpeedOptions) -> None:
        super().__init__(options)
        self.prompt = initial_prompt(self.base, options.num_virtual_tokens)

    def make_implementation(self, name: str) -> Implementation:
        """See ``Workload``."""
        if name == OURS:
            return Greedy(softprompt_calls.drop_in(self.base, self.prompt).eval(), row_by_row=False)
        return Greedy(peft_model(self.stock, [self.prompt]).eval(), row_by_row=name == PEFT_GUIDE)

    def agreement(self, implementations: dict[str, Implementation]) -> dict[str, Any]:
        """How many rows get the same tokens as when computed alone."""
        batch = self.batches[0][:COMPARED_ROWS]
        alone = [plain_forward.greedy(self.alone, self.prompt, each.input_ids, NEW_TOKENS) for each in batch]
        found: dict[str, Any] = {"rows_compared": len(batch), "new_tokens": NEW_TOKENS}
        for name, implementation in implementations.items():
            generated = implementation.run(implementation.prepare(batch))
            equal = sum(own == expected for own, expected in zip(generated, alone, strict=True))
            found[f"{KEY_PREFIX[name]}rows_equal_alone"] = equal
        return found


class Greedy(Implementation):
    """``model.generate`` of PEFT or softprompt."""

    def __init__(self, model: Any, *, row_by_row: bool) -> None:
        self._model, self._row_by_row = model, row_by_row

    def prepare(self, batch: Sequence[Example]) -> list[dict[str, Tensor]]:
        """The arguments of each call."""
        groups = [[example] for example in batch] if self._row_by_row else [batch]
        return [left_padded_texts(group, self._model.device) for group in groups]

    @torch.no_grad()
    def run(self, prepared: list[dict[str, Tensor]]) -> list[list[int]]:
        """The new tokens of each row."""
        unused = self._model.config.get_text_config().vocab_size  # no token has this id
        generated: list[list[int]] = []
        for inputs in prepared:
            sequences = self._model.generate(
                **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=unused, pad_token_id=0
            )
            generated += sequences[:, inputs["input_ids"].shape[1] :].tolist()
        return generated
