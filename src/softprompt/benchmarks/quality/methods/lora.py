"""LoRA with PEFT."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ....data.tokenize import default_end_token_id
from ....inference.classifier import classes_of
from ....inference.score import score_labels
from ....types import Row
from ..method_options import LoraOptions
from .method import FittedScores, Method
from .padded_training import pad_token, train_padded


class Lora(Method):
    """Low-rank updates of query and value projections, trained on the same texts as a soft prompt, then merged."""

    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> FittedScores:
        """See ``Method``."""
        options = LoraOptions(**self.given)
        base = self.context.shared_base.fresh()
        task = replace(self.context.data.task, end_token_id=default_end_token_id(base.tokenizer))
        encoder = self.context.shared_base.encoder(task)
        model = _lora_model(base.model, options.r, seed)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        train_padded(model, encoder.encode_all(rows), seed, options, fill=pad_token(base.tokenizer))
        merged = model.merge_and_unload().requires_grad_(False).eval()
        texts = [example.input_ids for example in encoder.encode_all(self.context.data.test, with_label=False)]
        classes = classes_of(task, encoder)
        assert classes is not None
        return FittedScores(score_labels(merged, _no_prompt(merged), texts, classes.ids).cpu(), trained)


def _lora_model(base: Any, r: int, seed: int) -> Any:
    import peft

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses a deprecated name of transformers
        return peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=2 * r))


def _no_prompt(model: Any) -> Tensor:
    """An empty prompt ``[0, D]``."""
    weight: Tensor = next(model.get_input_embeddings().parameters())
    return weight.new_empty(0, weight.shape[1])
