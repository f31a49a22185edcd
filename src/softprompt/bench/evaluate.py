"""``softprompt bench evaluate``: labelled rows, evaluated without gradient.

``peft guide``  the guide's evaluation: left-padded to ``max_length``, the loss, and the most probable token at
                every position decoded to text (what the label's positions say is the prediction).
``peft best``   the same, padded to the longest row of the batch.
``softprompt``  label scoring, as ``softprompt evaluate`` does: the probability of every label behind every text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import TrainingError
from ..types import Example
from . import ours, reference
from .measure import COMPARED_ROWS, Side, Subject
from .models import start_prompt
from .names import OURS, PEFT_BEST
from .options import BenchOptions
from .rows import left_padded, need_classes
from .theirs import guide_evaluation, peft_model


class Evaluation(Subject):
    """What a prompt makes of labelled rows."""

    name = "evaluate"

    def __init__(self, options: BenchOptions) -> None:
        super().__init__(options)
        self.labels = need_classes(self.work).ids
        self.prompt = start_prompt(self.base, options.num_virtual_tokens)

    def make_side(self, name: str) -> Side:
        """PEFT or ours, by name."""
        if name == OURS:
            return LabelScoring(self.base, self.prompt, self.labels)
        model = peft_model(self.stock, [self.prompt]).eval()
        return GuideEvaluation(model, self.tokenizer, None if name == PEFT_BEST else self.work.width)

    def agreement(self, sides: dict[str, Side]) -> dict[str, Any]:
        """Label probabilities of a batch, against those of each row alone."""
        batch = self.batches[0][:COMPARED_ROWS]
        texts = [example.input_ids for example in batch]
        alone = reference.label_scores(self.alone, self.prompt, texts, self.labels)
        return compare_scores(sides[OURS].run(sides[OURS].prepare(batch)), alone)


class GuideEvaluation(Side):
    """A step of the guide's evaluation loop; the padded batch lies ready, as a data loader has it."""

    def __init__(self, model: Any, tokenizer: Any, width: int | None) -> None:
        self._model, self._tokenizer, self._width = model, tokenizer, width

    def prepare(self, batch: Sequence[Example]) -> dict[str, Tensor]:
        """The guide's batch."""
        return left_padded(batch, self._width, self._model.device)

    def run(self, prepared: dict[str, Tensor]) -> tuple[float, list[str]]:
        """The loss, and a text for each row."""
        return guide_evaluation(self._model, self._tokenizer, prepared)


class LabelScoring(Side):
    """Log-probabilities of all labels; the prompt is computed once, before."""

    def __init__(self, base: Any, prompt: Tensor, labels: Sequence[Sequence[int]]) -> None:
        self._base, self._labels = base, labels
        self._prompt = ours.compiled(base, prompt)

    def run(self, prepared: Sequence[Example]) -> Tensor:
        """``[B, C]``; the largest of a row is the predicted label."""
        return ours.score(self._base, self._prompt, [example.input_ids for example in prepared], self._labels)


def compare_scores(found: Tensor, alone: Tensor) -> dict[str, Any]:
    """How far label log-probabilities ``[B, C]`` are from those of the rows alone.

    Raises:
        TrainingError: so far that speed would mean nothing.
    """
    worst = float(torch.expm1(found.double() - alone.double()).abs().max())
    if not worst < 1e-2:
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
