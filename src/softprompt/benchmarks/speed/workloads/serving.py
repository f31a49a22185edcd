"""``softprompt benchmark speed serve``: requests for eight tasks over loopback, a fixed number in flight.

``peft guide``  PEFT behind the same application: each round, the waiting requests of a task are one padded batch, and
                labels are generated, as in the guide.
``peft best``   the same, but labels are chosen by the logits of their first tokens.
``direct``      softprompt's engine without a server, ``concurrency`` rows at a time.
``softprompt``  ``softprompt serve``.

Six tasks classify, two generate ten tokens. Each server is a process of its own.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ....data.sources import load_splits, make_task
from ....data.task import Task
from ....data.tokenize import default_end_token_id
from ....errors import TrainingError
from ....inference.answer import Question, answer
from ....inference.library import PromptLibrary
from ....models.loading import Base
from .. import plain_forward, softprompt_calls
from ..base_models import initial_prompt
from ..catalog import DIRECT, KEY_PREFIX, OURS, PEFT_BEST, PEFT_GUIDE
from ..http_load import Request, ServerProcess, percentiles, post_all
from ..settings import SpeedOptions
from ..workload import COMPARED_ROWS, Implementation, Workload

CLASSIFYING, GENERATING = 6, 2
NEW_TOKENS = 10
REQUESTS = 96
"""Requests of a turn."""

Entry = tuple[str, dict[str, Any]]
"""Name of an adapter, and the columns of a row."""


class Serving(Workload):
    """Requests of many tasks, mixed."""

    name = "serve"

    def __init__(self, options: SpeedOptions) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="softprompt-benchmark-")
        self._served: dict[str, Served] = {}
        super().__init__(options)
        splits = load_splits(options)
        self._rows = [dict(row.fields) for row in splits.train]
        task = make_task(splits, options, end_token_id=default_end_token_id(self.tokenizer))
        self.prompts = [
            initial_prompt(self.base, options.num_virtual_tokens, seed) for seed in range(CLASSIFYING + GENERATING)
        ]
        self.library = self._make_library(task)
        self.batches = self._streams()

    def make_batches(self) -> list[Any]:
        """None yet: rows are sent as text."""
        return []

    @property
    def _adapters(self) -> Path:
        return Path(self._folder.name, "adapters")

    def _make_library(self, task: Task) -> PromptLibrary:
        adapters = {}
        for number, prompt in enumerate(self.prompts):
            name = f"class{number}" if number < CLASSIFYING else f"text{number}"
            folder = self._adapters / name
            softprompt_calls.drop_in(self.base, prompt).save_pretrained(folder)
            (task if number < CLASSIFYING else replace(task, labels=())).save(folder)
            adapters[name] = str(folder)
        return PromptLibrary.on_base(Base(self.base, self.tokenizer, self.base.name_or_path), adapters)

    def _streams(self) -> list[Any]:
        """Streams of different rows, with all tasks equally often, shuffled."""
        names, columns = self.library.names, self.library.get(self.library.names[0]).task.text_columns
        streams = []
        for number in range(2):
            rows = [self._rows[(number * REQUESTS + i) % len(self._rows)] for i in range(REQUESTS)]
            stream = [(names[i % len(names)], {each: row[each] for each in columns}) for i, row in enumerate(rows)]
            random.Random(number).shuffle(stream)
            streams.append(stream)
        return streams

    def make_implementation(self, name: str) -> Implementation:
        """See ``Workload``."""
        if name == DIRECT:
            return Direct(self.library, self.options.concurrency)
        model, dtype = self._model(), str(self.base.dtype).removeprefix("torch.")
        if name in (PEFT_GUIDE, PEFT_BEST):
            module = "softprompt.benchmarks.speed.peft_scheduler"
            labels = "generate" if name == PEFT_GUIDE else "first_token"
            command = ["-m", module, labels, model, dtype, self.device.type, str(self._adapters)]
        else:
            program = "from softprompt.cli import main; main()"
            base = ["--model_name_or_path", model, "--dtype", dtype, "--device", self.device.type]
            command = ["-c", program, "serve", "--adapter_dir", str(self._adapters), "--port", "0", *base]
        self._served[name] = Served(ServerProcess(command, self.options.num_threads), self.options.concurrency)
        return self._served[name]

    def _model(self) -> str:
        """Name of the base model; random weights are saved."""
        if self.options.shape is None:
            return self.options.model_name_or_path
        folder = Path(self._folder.name, "base")
        if not folder.exists():
            self.base.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        return str(folder)

    def close(self) -> None:
        """Stop the servers."""
        for served in self._served.values():
            served.process.stop()
        self._folder.cleanup()

    def agreement(self, implementations: dict[str, Implementation]) -> dict[str, Any]:
        """Differences in label probabilities, and equal texts, from rows computed one by one with their prompts."""
        stream = self.batches[0][: 4 * COMPARED_ROWS]
        worst, equal, texts = 0.0, 0, 0
        for (name, row), reply in zip(stream, implementations[OURS].run(stream), strict=True):
            adapter = self.library.get(name)
            ids, prompt = adapter.encode(row).input_ids, adapter.loaded.model.prompt
            if adapter.classes:
                alone = plain_forward.label_scores(self.alone, prompt, [ids], adapter.classes.ids)[0].softmax(0)
                found = torch.tensor(reply["data"][0]["probs"])
                worst = max(worst, float((found / alone - 1).abs().max()))
            else:
                tokens = plain_forward.greedy(self.alone, prompt, ids, NEW_TOKENS)
                end = adapter.task.end_token_id
                tokens = tokens[: tokens.index(end)] if end in tokens else tokens
                text = self.tokenizer.decode([*ids[-6:], *tokens], skip_special_tokens=True)
                texts, equal = texts + 1, equal + text.endswith(reply["choices"][0]["text"])
        if not worst < self.tolerance:
            raise TrainingError(f"label probabilities differ by {worst:.1e} from rows computed one by one")
        return {
            "rows_compared": len(stream),
            "max_relative_label_probability_difference": worst,
            "texts_compared": texts,
            "texts_equal": equal,
        }

    def more(self, times: Sequence[float]) -> dict[str, Any]:
        """Latencies of both servers."""
        found: dict[str, Any] = {"concurrency": self.options.concurrency, "num_tasks": len(self.library.names)}
        for name, served in self._served.items():
            for key, value in percentiles(served.seconds).items():
                found[f"{KEY_PREFIX[name]}latency_ms_{key}"] = value
        return found


class Served(Implementation):
    """A server on loopback."""

    def __init__(self, process: ServerProcess, concurrency: int) -> None:
        self.process, self._concurrency = process, concurrency
        self.seconds: list[float] = []

    def run(self, prepared: Sequence[Entry]) -> list[Any]:
        """The JSON of each answer."""
        replies = post_all(self.process.address, [_request(name, row) for name, row in prepared], self._concurrency)
        if len(prepared) == REQUESTS:  # no warm-up
            self.seconds += [reply.seconds for reply in replies]
        return [reply.content for reply in replies]


class Direct(Implementation):
    """The engine, with as many rows at a time as requests would be in flight."""

    def __init__(self, library: PromptLibrary, rows: int) -> None:
        self._library, self._rows = library, rows

    def run(self, prepared: Sequence[Entry]) -> list[Any]:
        """A prediction for each row."""
        found = list[Any]()
        for start in range(0, len(prepared), self._rows):
            part = [(self._library.get(name), row) for name, row in prepared[start : start + self._rows]]
            questions = [Question(each, self._library.prompt(each), each.encode(row)) for each, row in part]
            found += answer(self._library.runner, questions, NEW_TOKENS)
        return found


def _request(name: str, row: dict[str, Any]) -> Request:
    if name.startswith("class"):
        return Request("/v1/classify", {"model": name, "input": row})
    body = {"model": name, "prompt": row, "template": True, "max_tokens": NEW_TOKENS}
    return Request("/v1/completions", body)
