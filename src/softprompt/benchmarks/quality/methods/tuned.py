"""A soft prompt, as ``softprompt train`` makes it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from ....config.options import TrainOptions
from ....data.sources import Splits, make_task
from ....errors import TrainingError
from ....inference.classifier import label_log_probs
from ....inference.load_adapter import LoadedAdapter, load_adapter
from ....training.pipeline import train
from ....training.task_rows import TaskRows
from ....types import Row
from .method import Fitted, Method

LEAN = {"eval_strategy": "no", "save_strategy": "no", "baselines": False}
"""Nothing is validated, and a run that is cut off starts anew."""
SHARED = ("text_column", "label_column", "template", "max_length")


class SoftPrompt(Method):
    """A run of ``softprompt train`` with the options of the method, into a folder that is then removed.

    With ``recipe: guide`` the prompt starts from the task's instruction, if there is one and the options name no other.
    """

    uses_base: ClassVar[bool] = False  # training loads its own

    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> Fitted:
        """See ``Method``."""
        with tempfile.TemporaryDirectory(prefix="softprompt-quality-") as scratch:
            folder = Path(scratch) / "run"
            options = self._options(folder, seed)
            splits = Splits(list(rows), [], [], self.work.data.labels)
            task = make_task(splits, options, end_token_id=None)
            train(options, None, TaskRows(splits, task))
            return self._score(folder, options.per_device_eval_batch_size)

    def _options(self, folder: Path, seed: int) -> TrainOptions:
        given, data = self.given, self.work.data.options
        values: dict[str, Any] = self.work.frozen.options.model_dump()
        values |= {name: getattr(data, name) for name in SHARED} | LEAN
        if data.instruction and given.get("recipe") == "guide":
            values["prompt_tuning_init_text"] = data.instruction
        return TrainOptions(**{**values, **given, "output_dir": folder, "seed": seed})

    def _score(self, folder: Path, batch_size: int) -> Fitted:
        """Label probabilities of the test rows as ``softprompt evaluate`` has them, with all that the folder holds."""
        prompted = load_adapter(str(folder), self.work.frozen.options)
        task = prompted.task
        if task.labels != self.work.data.labels:
            raise TrainingError("the finished adapter does not have the labels of the task")
        encoder = prompted.encoder(task)
        examples = encoder.encode_all(self.work.data.test, with_label=False)
        classes = prompted.classes(encoder)
        assert classes is not None
        log_probs = label_log_probs(prompted.model, examples, classes, batch_size=batch_size)
        return Fitted(log_probs, _trained_numbers(prompted))


def _trained_numbers(prompted: LoadedAdapter) -> int:
    """Numbers of all prompts, and of the readout where there is one."""
    prompts = prompted.model.prompt.numel() + (prompted.ensemble.prompts.numel() if prompted.ensemble else 0)
    linear_probe = prompted.linear_probe
    return prompts if linear_probe is None else prompts + linear_probe.weight.numel() + linear_probe.bias.numel()
