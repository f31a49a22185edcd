"""``softprompt bench train``: training steps against PEFT, in turn, on the same rows."""

from __future__ import annotations

import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import Field

from ..base import load_base, load_tokenizer
from ..data import load_splits, make_task
from ..encode import Encoder, default_end_token_id
from ..errors import TrainingError
from ..families import context_length
from ..initialize import sample_vocab
from ..options import DataOptions, ModelOptions
from ..types import Example
from .shapes import random_base
from .sides import DROP_IN, OURS, PEFT_BEST, PEFT_GUIDE, SIDES, Side, make_side


class BenchOptions(ModelOptions, DataOptions):
    """What is measured."""

    shape: str | None = Field(None, description="Random weights of a known shape instead of a model: bloomz-560m.")
    num_virtual_tokens: int = Field(8, ge=1, description="Rows of the prompt.")
    per_device_train_batch_size: int = Field(8, ge=1, description="Rows of a step.")
    rounds: int = Field(7, ge=1, description="Times that each side makes a step; the medians count.")
    num_threads: int = Field(2, ge=1, description="CPU threads, the same for all.")
    max_length: int | None = Field(64, ge=1, description="Length that the guide pads to; longer rows are cut.")
    memory: bool = Field(True, description="Measure the peak memory of each side, in a process of its own.")


def bench_train(options: BenchOptions, progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure all sides.

    Returns:
        One JSON object: rows per second of each side (medians), their ratios, peak memory, and how far
        loss and gradient of ours are from those of the rows computed alone.
    """
    torch.set_num_threads(options.num_threads)
    base, tokenizer = load_models(options)
    batches = batches_of(options, tokenizer, base)
    prompt = start_prompt(base, options)
    progress(
        f"{sum(map(len, batches))} rows in batches of {options.per_device_train_batch_size}, {options.rounds} rounds"
    )
    bases = {name: base if name == OURS else copy.deepcopy(base) for name in SIDES}
    sides = {name: make_side(name, bases[name], prompt, options.max_length or 0) for name in SIDES}
    agreement = _agreement(sides, batches[0])
    times = _interleaved(sides, batches, options.rounds, progress)
    speed = {name: options.per_device_train_batch_size / statistics.median(times[name]) for name in SIDES}
    result = {
        "model": options.shape or options.model_name_or_path,
        "num_virtual_tokens": options.num_virtual_tokens,
        "per_device_train_batch_size": options.per_device_train_batch_size,
        "rows_per_second": speed[OURS],
        "drop_in_rows_per_second": speed[DROP_IN],
        "peft_guide_rows_per_second": speed[PEFT_GUIDE],
        "peft_best_rows_per_second": speed[PEFT_BEST],
        "speedup_vs_peft_guide": speed[OURS] / speed[PEFT_GUIDE],
        "speedup_vs_peft_best": speed[OURS] / speed[PEFT_BEST],
        "drop_in_speedup_vs_peft_guide": speed[DROP_IN] / speed[PEFT_GUIDE],
        "spread": {name: _spread(times[name]) for name in SIDES},
        **agreement,
    }
    if options.memory:
        del sides, bases, base
        peaks = {name: _peak_in_own_process(options, name, progress) for name in (OURS, PEFT_GUIDE)}
        result |= {
            "peak_memory_bytes": peaks[OURS],
            "peft_peak_memory_bytes": peaks[PEFT_GUIDE],
            "memory_ratio": peaks[OURS] / peaks[PEFT_GUIDE],
        }
    return result


def load_models(options: BenchOptions) -> tuple[Any, Any]:
    """Base model and tokenizer; with ``shape``, the tokenizer of ``model`` alone is loaded."""
    if options.shape:
        return random_base(options.shape), load_tokenizer(options)
    loaded = load_base(options)
    return loaded.model, loaded.tokenizer


def start_prompt(base: Any, options: BenchOptions) -> torch.Tensor:
    """The prompt ``[P, D]`` that every side starts from."""
    torch.manual_seed(0)
    return sample_vocab(options.num_virtual_tokens, base.get_input_embeddings())


def batches_of(options: BenchOptions, tokenizer: Any, base: Any) -> list[list[Example]]:
    """Four batches of training rows, as ``softprompt train`` encodes them."""
    size = options.per_device_train_batch_size
    splits = load_splits(options.model_copy(update={"max_train_samples": options.max_train_samples or 4 * size}))
    task = make_task(splits, options, end_token_id=default_end_token_id(tokenizer))
    length = context_length(base.config)
    encoder = Encoder(tokenizer, task, num_virtual_tokens=options.num_virtual_tokens, context_length=length)
    examples = encoder.encode_all(splits.train)
    return [examples[i : i + size] for i in range(0, len(examples) - size + 1, size)]


def _interleaved(
    sides: dict[str, Side], batches: Sequence[Sequence[Example]], rounds: int, progress: Callable[[str], None]
) -> dict[str, list[float]]:
    """Seconds per step: every round, each side makes one step of the same rows (after one to warm up)."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            side.step(batches[number % len(batches)])
            if number:
                times[name].append(time.perf_counter() - started)
        progress(f"round {number} of {rounds}")
    return times


def _agreement(sides: dict[str, Side], batch: Sequence[Example]) -> dict[str, float]:
    """Loss and gradient of ours against PEFT's on each row alone and unpadded, where PEFT is exact."""
    weights = [len(example.label_ids) / sum(len(each.label_ids) for each in batch) for example in batch]
    alone = _rows(sides[PEFT_BEST], batch)
    loss = sum(weight * value for weight, (value, _) in zip(weights, alone, strict=True))
    gradient = torch.stack([weight * value for weight, (_, value) in zip(weights, alone, strict=True)]).sum(0)
    worst_loss = worst_gradient = 0.0
    for name in (OURS, DROP_IN):
        our_loss, our_gradient = sides[name].step(batch)
        worst_loss = max(worst_loss, abs(our_loss - loss) / abs(loss))
        worst_gradient = max(worst_gradient, float((our_gradient - gradient).norm() / gradient.norm()))
    if worst_gradient > 1e-2:
        raise TrainingError(f"the sides disagree: gradients differ by {worst_gradient:.1e}; speed would mean nothing")
    return {"max_relative_loss_difference": worst_loss, "max_relative_gradient_difference": worst_gradient}


def _rows(side: Side, batch: Sequence[Example]) -> list[tuple[float, torch.Tensor]]:
    found = []
    for example in batch:
        loss, gradient = side.step([example])
        found.append((loss, gradient.clone()))
    return found


def _spread(times: Sequence[float]) -> float:
    """Half the distance between the quartiles, relative to the median."""
    if len(times) < 4:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4)
    return (high - low) / 2 / statistics.median(times)


def _peak_in_own_process(options: BenchOptions, name: str, progress: Callable[[str], None]) -> int:
    """Peak resident memory in bytes of a process that loads the model and makes one side's steps."""
    progress(f"memory of {name}")
    values = json.dumps({"side": name, "options": options.model_dump(mode="json")})
    done = subprocess.run(
        [sys.executable, "-m", "softprompt.bench.memory"], input=values, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise TrainingError(f"measuring the memory of {name} failed: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout.strip().splitlines()[-1])
