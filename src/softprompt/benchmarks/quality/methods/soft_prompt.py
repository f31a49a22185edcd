"""A soft prompt trained by ``softprompt train``."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from ....config.options import TrainOptions
from ....data.sources import Splits
from ....errors import TrainingError
from ....inference.classifier import label_log_probs
from ....inference.load_adapter import LoadedAdapter, load_adapter
from ....training.pipeline import train
from ....types import Row
from .method import FittedScores, Method

NO_VALIDATION = {"eval_strategy": "no", "save_strategy": "no", "baselines": False}
"""No validation, no checkpoints: an interrupted run starts again."""
SHARED = ("text_column", "label_column", "template", "max_length")


class SoftPrompt(Method):
    """A run of ``softprompt train`` with the options of the method, into a temporary folder.

    With ``recipe: guide``, the prompt is initialised from the task's instruction unless the options say otherwise.
    """

    uses_base: ClassVar[bool] = False  # training loads its own

    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> FittedScores:
        """See ``Method``."""
        with tempfile.TemporaryDirectory(prefix="softprompt-quality-") as scratch:
            folder = Path(scratch) / "run"
            options = self._options(folder, seed)
            splits = Splits(list(rows), [], [], self.context.data.labels)
            train(options, splits=splits)
            return self._score(folder, options.per_device_eval_batch_size)

    def _options(self, folder: Path, seed: int) -> TrainOptions:
        given, data = self.given, self.context.data.options
        values: dict[str, Any] = self.context.shared_base.options.model_dump()
        values |= {name: getattr(data, name) for name in SHARED} | NO_VALIDATION
        if data.instruction and given.get("recipe") == "guide":
            values["prompt_tuning_init_text"] = data.instruction
        return TrainOptions(**{**values, **given, "output_dir": folder, "seed": seed})

    def _score(self, folder: Path, batch_size: int) -> FittedScores:
        """Label probabilities of the test rows as in ``softprompt evaluate`` (prompt, linear probe, ensemble)."""
        prompted = load_adapter(str(folder), self.context.shared_base.options)
        task = prompted.task
        if task.labels != self.context.data.labels:
            raise TrainingError("the trained adapter does not have the labels of the task")
        encoder = prompted.encoder(task)
        examples = encoder.encode_all(self.context.data.test, with_label=False)
        classes = prompted.classes(encoder)
        assert classes is not None
        log_probs = label_log_probs(prompted.model, examples, classes, batch_size=batch_size)
        return FittedScores(log_probs, _trained_parameters(prompted))


def _trained_parameters(prompted: LoadedAdapter) -> int:
    """Number of parameters of all prompts, and of the linear probe if there is one."""
    prompts = prompted.model.prompt.numel() + (prompted.ensemble.prompts.numel() if prompted.ensemble else 0)
    linear_probe = prompted.linear_probe
    return prompts if linear_probe is None else prompts + linear_probe.weight.numel() + linear_probe.bias.numel()
