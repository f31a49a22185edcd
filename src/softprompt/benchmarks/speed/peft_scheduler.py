"""PEFT behind softprompt's server: each round, the waiting requests of each task are one padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...inference.continuous import Completion
from ...serving.jobs import Job, LabelJob, TextJob
from ...serving.scheduler import Entry, Scheduler, finish
from ...types import Example
from .inputs import left_padded_texts


class PeftScheduler(Scheduler):
    """Computes jobs with PEFT, as its documentation recommends: ``set_adapter``, then a padded batch.

    A label is chosen by the logits of its first token, so that no label needs a decoding step.

    Args:
        model: PEFT's model.
        adapters: PEFT's name of each adapter of the library.
        library, limits, on_round: as for ``Scheduler``.
    """

    def __init__(self, model: Any, adapters: dict[str, str], *args: Any) -> None:
        super().__init__(*args)
        self._model, self._adapters = model, adapters

    def run(self, entries: Sequence[Entry]) -> None:
        """Compute jobs and send their results."""
        groups: dict[str, list[Entry]] = {}
        for entry in entries:
            groups.setdefault(entry.job.adapter.name if entry.job.adapter else "", []).append(entry)
        for name, group in groups.items():
            self._model.set_adapter(self._adapters[name])
            inputs = left_padded_texts([_example(entry.job) for entry in group], self._model.device)
            for entry, result in zip(group, self._results(group, inputs), strict=True):
                finish(entry, result)

    @torch.no_grad()
    def _results(self, group: Sequence[Entry], inputs: dict[str, Tensor]) -> list[Any]:
        job = group[0].job
        if isinstance(job, LabelJob) and job.adapter.classes:
            first = [ids[0] for ids in job.adapter.classes.ids]
            logits: Tensor = self._model(**inputs).logits[:, -1]
            return logits[:, first].float().softmax(-1).tolist()
        assert isinstance(job, TextJob)
        new = self._model.generate(
            **inputs,
            max_new_tokens=job.sampling.max_new_tokens,
            do_sample=False,
            eos_token_id=list(job.sampling.end_token_ids) or None,
            pad_token_id=0,
        )[:, inputs["input_ids"].shape[1] :]
        texts = self.library.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [Completion(text, new.shape[1], "length", None) for text in texts]


def _example(job: Job) -> Example:
    return Example(job.input_ids, ()) if isinstance(job, TextJob) else job.example
