"""PEFT behind softprompt's HTTP application: each round, the waiting requests of each task are one padded batch.

``python -m softprompt.benchmarks.speed.peft_scheduler LABELS MODEL DTYPE DEVICE ADAPTER_DIR`` starts such a server, and
prints its address. ``LABELS`` is ``generate`` or ``first_token``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...config.serve_options import ServeOptions
from ...inference.continuous import Completion
from ...inference.library import PromptLibrary
from ...serving.app import create_app
from ...serving.jobs import Job, LabelJob, TextJob
from ...serving.scheduler import Entry, Scheduler, finish
from ...serving.server import Server, bind
from ...types import Example
from .base_models import twin
from .inputs import left_padded_texts
from .peft_calls import peft_model


class PeftScheduler(Scheduler):
    """Computes jobs with PEFT, as its documentation recommends: ``set_adapter``, then a padded batch.

    Args:
        generates_labels: generate the label, as in the guide; otherwise choose it by the logits of its first token.
        model: PEFT's model.
        adapters: PEFT's name of each adapter of the library.
        library, limits, on_round: as for ``Scheduler``.
    """

    def __init__(self, generates_labels: bool, model: Any, adapters: dict[str, str], *args: Any) -> None:
        super().__init__(*args)
        self._generates_labels, self._model, self._adapters = generates_labels, model, adapters

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
        if isinstance(job, TextJob):
            texts = self._generate(inputs, job.sampling.max_new_tokens, job.sampling.end_token_ids)
            return [Completion(text, job.sampling.max_new_tokens, "length", None) for text in texts]
        assert isinstance(job, LabelJob)
        assert job.adapter.classes is not None
        names, ids = job.adapter.classes.names, job.adapter.classes.ids
        if self._generates_labels:
            end = job.adapter.task.end_token_id
            texts = self._generate(inputs, max(map(len, ids)), () if end is None else (end,))
            return [[float(text.strip() == name) for name in names] for text in texts]
        logits: Tensor = self._model(**inputs).logits[:, -1]
        return logits[:, [each[0] for each in ids]].float().softmax(-1).tolist()

    def _generate(self, inputs: dict[str, Tensor], count: int, end: Sequence[int]) -> list[str]:
        how = {"max_new_tokens": count, "do_sample": False, "eos_token_id": list(end) or None, "pad_token_id": 0}
        new = self._model.generate(**inputs, **how)[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = self.library.tokenizer.batch_decode(new, skip_special_tokens=True)
        return texts


def _load(model: str, dtype: str, device: str, folder: str) -> tuple[PromptLibrary, Any]:
    """The library, and PEFT's model on a copy of its base model that shares the weights."""
    library = PromptLibrary(adapter_dir=folder, model_name_or_path=model, dtype=dtype, device=device)
    prompts = [library.get(name).loaded.model.prompt for name in library.names]
    return library, peft_model(twin(library.runner.base).eval(), prompts).eval()


def main() -> None:
    """Serve until a signal comes."""
    with ThreadPoolExecutor(1) as loader:  # as ``softprompt serve`` does
        library, model = loader.submit(_load, *sys.argv[2:6]).result()
    adapters = {name: f"task{number}" for number, name in enumerate(library.names)}
    options = ServeOptions(port=0)
    app = create_app(library, options, partial(PeftScheduler, sys.argv[1] == "generate", model, adapters))
    Server(app, options, bind(options.host, options.port)).run_until_stopped(lambda line: print(line, flush=True))


def _example(job: Job) -> Example:
    return Example(job.input_ids, ()) if isinstance(job, TextJob) else job.example


if __name__ == "__main__":
    main()
