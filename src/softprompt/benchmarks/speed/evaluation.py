"""``softprompt bench evaluate``: labelled rows, evaluated without gradient, four of the guide's batches a turn.

``peft guide``  the guide's evaluation: batch by batch of ``per_device_train_batch_size`` rows, left-padded to
                ``max_length``, the loss, and the most probable token at every position decoded to text (what the
                label's positions say is the prediction).
``peft best``   the same, each batch padded to its longest row.
``softprompt``  label scoring, as ``softprompt evaluate`` does by default: the probability of every label behind
                every text, rows sorted by length, in batches of its own size (32 rows), whatever PEFT's is. No row
                is padded, so a larger batch wastes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import TrainingError
from ...inference.classifier import Classes
from ...types import Example
from . import ours, reference
from .inputs import left_padded, need_classes
from .measure import BATCHES, COMPARED_ROWS, Side, Subject
from .models import start_prompt
from .names import OURS, PEFT_BEST
from .settings import BenchOptions
from .theirs import guide_evaluation, peft_model

GUIDE_BATCHES = 4
"""Batches of the guide that make a turn, if there are rows enough."""


class Evaluation(Subject):
    """What a prompt makes of labelled rows."""

    name = "evaluate"
    num_batches = BATCHES * GUIDE_BATCHES

    def __init__(self, options: BenchOptions) -> None:
        super().__init__(options)
        self.classes = need_classes(self.work)
        self.prompt = start_prompt(self.base, options.num_virtual_tokens)

    def lay_out(self) -> list[Any]:
        """Turns of ``GUIDE_BATCHES`` batches; one of fewer where the rows do not suffice."""
        batches = super().lay_out()
        starts = range(0, max(1, len(batches) - GUIDE_BATCHES + 1), GUIDE_BATCHES)
        return [[example for batch in batches[i : i + GUIDE_BATCHES] for example in batch] for i in starts]

    def make_side(self, name: str) -> Side:
        """PEFT or ours, by name."""
        if name == OURS:
            return LabelScoring(ours.drop_in(self.base, self.prompt).eval(), self.classes)
        model = peft_model(self.stock, [self.prompt]).eval()
        width = None if name == PEFT_BEST else self.work.width
        return GuideEvaluation(model, self.tokenizer, width, self.options.per_device_train_batch_size)

    def agreement(self, sides: dict[str, Side]) -> dict[str, Any]:
        """Label probabilities of a batch, against those of each row alone."""
        batch = self.batches[0][:COMPARED_ROWS]
        texts = [example.input_ids for example in batch]
        alone = reference.label_scores(self.alone, self.prompt, texts, self.classes.ids)
        return compare_scores(sides[OURS].run(sides[OURS].prepare(batch)), alone, self.tolerance)

    def more(self, times: Sequence[float]) -> dict[str, Any]:
        """Rows that our side scores at a time."""
        return {"per_device_eval_batch_size": ours.EVAL_BATCH_SIZE}


class GuideEvaluation(Side):
    """Steps of the guide's evaluation loop; the padded batches lie ready, as a data loader has them."""

    def __init__(self, model: Any, tokenizer: Any, width: int | None, size: int) -> None:
        self._model, self._tokenizer, self._width, self._size = model, tokenizer, width, size

    def prepare(self, batch: Sequence[Example]) -> list[dict[str, Tensor]]:
        """The guide's batches, in the order of the rows."""
        parts = [batch[i : i + self._size] for i in range(0, len(batch), self._size)]
        return [left_padded(part, self._width, self._model.device) for part in parts]

    def run(self, prepared: list[dict[str, Tensor]]) -> list[tuple[float, list[str]]]:
        """The loss of each batch, and a text for each row."""
        return [guide_evaluation(self._model, self._tokenizer, part) for part in prepared]


class LabelScoring(Side):
    """Log-probabilities of all labels; the prompt is computed once, when the side is warmed up."""

    def __init__(self, model: Any, classes: Classes) -> None:
        self._model, self._classes = model, classes

    def run(self, prepared: Sequence[Example]) -> Tensor:
        """``[B, C]``; the largest of a row is the predicted label."""
        return ours.score(self._model, prepared, self._classes)


def compare_scores(found: Tensor, alone: Tensor, tolerance: float) -> dict[str, Any]:
    """How far label log-probabilities ``[B, C]`` are from those of the rows alone.

    Raises:
        TrainingError: so far that speed would mean nothing.
    """
    worst = float(torch.expm1(found.double() - alone.double()).abs().max())
    if not worst < tolerance:
        raise TrainingError(
            f"our label probabilities differ from those of each row alone by {worst:.1e}; speed would mean nothing"
        )
    log_probs = ((found.double() - alone.double()) / alone.double()).abs().max()
    shares = found.double().softmax(1) - alone.double().softmax(1)
    return {
        "rows_compared": len(alone),
        "max_relative_label_probability_difference": worst,
        "max_relative_label_log_probability_difference": float(log_probs),
        "max_label_share_difference": float(shares.abs().max()),
        "predicted_labels_equal": int((found.argmax(1) == alone.argmax(1)).sum()),
    }
