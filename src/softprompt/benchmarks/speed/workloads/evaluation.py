"""``softprompt benchmark speed evaluate``: evaluation of labelled rows; a turn is four of the guide's batches.

``peft guide``  the guide's evaluation: batch by batch of ``per_device_train_batch_size`` rows, left-padded to
                ``max_length``, the loss, and the most probable token at every position decoded to text (the label's
                positions give the prediction).
``peft best``   the same, each batch padded to its longest row.
``softprompt``  label scoring as in ``softprompt evaluate``: the probability of every label after every text, rows
                sorted by length, in batches of the default size (32 rows). No row is padded, so a larger batch
                wastes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ....errors import TrainingError
from ....inference.classifier import Classes
from ....types import Example
from .. import plain_forward, softprompt_calls
from ..base_models import initial_prompt
from ..catalog import OURS, PEFT_BEST
from ..inputs import left_padded, require_classes
from ..peft_calls import guide_evaluation, peft_model
from ..settings import SpeedOptions
from ..workload import COMPARED_ROWS, NUM_BATCHES, Implementation, Workload

GUIDE_BATCHES = 4
"""The guide's batches per turn, if there are enough rows."""


class Evaluation(Workload):
    """Evaluation of labelled rows."""

    name = "evaluate"
    num_batches = NUM_BATCHES * GUIDE_BATCHES

    def __init__(self, options: SpeedOptions) -> None:
        super().__init__(options)
        self.classes = require_classes(self.inputs)
        self.prompt = initial_prompt(self.base, options.num_virtual_tokens)

    def make_batches(self) -> list[Any]:
        """Turns of ``GUIDE_BATCHES`` batches; a single shorter turn if there are fewer rows."""
        batches = super().make_batches()
        starts = range(0, max(1, len(batches) - GUIDE_BATCHES + 1), GUIDE_BATCHES)
        return [[example for batch in batches[i : i + GUIDE_BATCHES] for example in batch] for i in starts]

    def make_implementation(self, name: str) -> Implementation:
        """See ``Workload``."""
        if name == OURS:
            return LabelScoring(softprompt_calls.drop_in(self.base, self.prompt).eval(), self.classes)
        model = peft_model(self.stock, [self.prompt]).eval()
        width = None if name == PEFT_BEST else self.inputs.width
        return GuideEvaluation(model, self.tokenizer, width, self.options.per_device_train_batch_size)

    def agreement(self, implementations: dict[str, Implementation]) -> dict[str, Any]:
        """Differences in label probabilities from rows computed one by one."""
        batch = self.batches[0][:COMPARED_ROWS]
        texts = [example.input_ids for example in batch]
        alone = plain_forward.label_scores(self.alone, self.prompt, texts, self.classes.ids)
        return compare_scores(implementations[OURS].run(implementations[OURS].prepare(batch)), alone, self.tolerance)

    def more(self, times: Sequence[float]) -> dict[str, Any]:
        """softprompt's batch size."""
        return {"per_device_eval_batch_size": softprompt_calls.EVAL_BATCH_SIZE}


class GuideEvaluation(Implementation):
    """Steps of the guide's evaluation loop, on padded batches from a data loader."""

    def __init__(self, model: Any, tokenizer: Any, width: int | None, size: int) -> None:
        self._model, self._tokenizer, self._width, self._size = model, tokenizer, width, size

    def prepare(self, batch: Sequence[Example]) -> list[dict[str, Tensor]]:
        """The guide's batches, in the order of the rows."""
        parts = [batch[i : i + self._size] for i in range(0, len(batch), self._size)]
        return [left_padded(part, self._width, self._model.device) for part in parts]

    def run(self, prepared: list[dict[str, Tensor]]) -> list[tuple[float, list[str]]]:
        """The loss of each batch, and a text for each row."""
        return [guide_evaluation(self._model, self._tokenizer, part) for part in prepared]


class LabelScoring(Implementation):
    """Log-probabilities of all labels; the prompt is prefilled once, in the warm-up."""

    def __init__(self, model: Any, classes: Classes) -> None:
        self._model, self._classes = model, classes

    def run(self, prepared: Sequence[Example]) -> Tensor:
        """``[B, C]``; the largest of a row is the predicted label."""
        return softprompt_calls.score(self._model, prepared, self._classes)


def compare_scores(found: Tensor, alone: Tensor, tolerance: float) -> dict[str, Any]:
    """Differences of label log-probabilities ``[B, C]`` from those of rows computed one by one.

    Raises:
        TrainingError: a difference is larger than the tolerance.
    """
    worst = float(torch.expm1(found.double() - alone.double()).abs().max())
    if not worst < tolerance:
        raise TrainingError(
            f"label probabilities differ by {worst:.1e} from rows computed one by one; the measurement is invalid"
        )
    log_probs = ((found.double() - alone.double()) / alone.double()).abs().max()
    normalised = found.double().softmax(1) - alone.double().softmax(1)
    return {
        "rows_compared": len(alone),
        "max_relative_label_probability_difference": worst,
        "max_relative_label_log_probability_difference": float(log_probs),
        "max_label_share_difference": float(normalised.abs().max()),
        "predicted_labels_equal": int((found.argmax(1) == alone.argmax(1)).sum()),
    }
