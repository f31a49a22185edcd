"""PEFT's prompt tuning guide: left padding to a fixed length, training with PEFT's own model."""

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
from ..method_options import PeftOptions
from .method import FittedScores, Method
from .padded_training import pad_token, train_padded


class PeftGuide(Method):
    """PEFT trains the prompt; our engine scores it, each row as if it were alone."""

    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> FittedScores:
        """See ``Method``."""
        options = PeftOptions(**self.given)
        base = self.context.shared_base.fresh()
        task = replace(
            self.context.data.task, max_length=options.max_length, end_token_id=default_end_token_id(base.tokenizer)
        )
        encoder = self.context.shared_base.encoder(task, num_virtual_tokens=options.num_virtual_tokens)
        start = self._initial_prompt(base, options.num_virtual_tokens)
        model = _prompt_model(base.model, start)
        fill = pad_token(base.tokenizer)
        train_padded(model, encoder.encode_all(rows), seed, options, fill=fill, width=options.max_length, left=True)
        prompt = model.prompt_encoder["default"].embedding.weight.detach()
        texts = [example.input_ids for example in encoder.encode_all(self.context.data.test, with_label=False)]
        classes = classes_of(task, encoder)
        assert classes is not None
        return FittedScores(
            score_labels(self.context.shared_base.base.model, prompt, texts, classes.ids).cpu(), prompt.numel()
        )

    def _initial_prompt(self, base: Any, num_virtual_tokens: int) -> torch.Tensor:
        """Embeddings ``[P, D]`` of the instruction's tokens, repeated or truncated: PEFT's init TEXT."""
        ids = list(base.tokenizer(self.context.instruction)["input_ids"])
        repeated = (ids * -(-num_virtual_tokens // len(ids)))[:num_virtual_tokens]
        return embed(torch.tensor(repeated), base.model.get_input_embeddings())


def _prompt_model(base: Any, start: torch.Tensor) -> Any:
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses a deprecated name of transformers
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(start))
        model: Any = peft.get_peft_model(base, config)
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.copy_(start)
    return model
