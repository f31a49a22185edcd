"""The guide's job, done by PEFT: left padding to a fixed length, the whole batch through its own model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ....data.tokenize import default_end_token_id
from ....inference.classifier import classes_of
from ....inference.score import score_labels
from ....models.embeddings import embed
from ....types import Row
from . import PeftOptions
from .method import Fitted, Method
from .padded import pad_token, train_padded


class PeftGuide(Method):
    """PEFT trains; the finished prompt is scored by our engine, which gives each row what it has alone."""

    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> Fitted:
        """See ``Method``."""
        options = PeftOptions(**self.given)
        base = self.work.frozen.fresh()
        task = replace(
            self.work.data.task, max_length=options.max_length, end_token_id=default_end_token_id(base.tokenizer)
        )
        encoder = self.work.frozen.encoder(task, num_virtual_tokens=options.num_virtual_tokens)
        start = self._start(base, options.num_virtual_tokens)
        model = _prompt_model(base.model, start)
        fill = pad_token(base.tokenizer)
        train_padded(model, encoder.encode_all(rows), seed, options, fill=fill, width=options.max_length, left=True)
        prompt = model.prompt_encoder["default"].embedding.weight.detach()
        texts = [example.input_ids for example in encoder.encode_all(self.work.data.test, with_label=False)]
        classes = classes_of(task, encoder)
        assert classes is not None
        return Fitted(score_labels(self.work.frozen.base.model, prompt, texts, classes.ids).cpu(), prompt.numel())

    def _start(self, base: Any, num_virtual_tokens: int) -> torch.Tensor:
        """Embeddings ``[P, D]`` of the instruction's tokens, repeated or cut: PEFT's init TEXT."""
        ids = list(base.tokenizer(self.work.instruction)["input_ids"])
        repeated = (ids * -(-num_virtual_tokens // len(ids)))[:num_virtual_tokens]
        return embed(torch.tensor(repeated), base.model.get_input_embeddings())


def _prompt_model(base: Any, start: torch.Tensor) -> Any:
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses a name that transformers is about to drop
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(start))
        model: Any = peft.get_peft_model(base, config)
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.copy_(start)
    return model
