"""Time measurements: the implementations take turns on the same batches, and medians are compared."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..quiet import quiet
from .catalog import DIRECT, DROP_IN, GUIDE, KEY_PREFIX, OURS, PEFT_BEST, PEFT_GUIDE, PREFIX, implementation_names
from .workload import COMPARED_ROWS, Implementation, Workload

Progress = Callable[[str], None]


def measure(workload: Workload, progress: Progress) -> dict[str, Any]:
    """Measure the speed of all implementations of a workload.

    Returns:
        Rows per second of each implementation (medians), ratios, spreads, and agreement with rows computed one by one.
    """
    options = workload.options
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of position ids at each token that transformers' generate makes
        names = implementation_names(workload.name, with_peft=options.against == "peft")
        implementations = {name: workload.make_implementation(name) for name in names}
        progress("comparing with rows computed one by one")
        agreement = workload.agreement(implementations)
        times = _take_turns(workload, implementations, progress)
    device = workload.device
    result = {
        "workload": workload.name,
        "model": options.shape or options.model_name_or_path,
        "num_virtual_tokens": options.num_virtual_tokens,
        "per_device_train_batch_size": options.per_device_train_batch_size,
        "rows_per_batch": len(workload.batches[0]),
        "rounds": options.rounds,
        "num_threads": options.num_threads,
        "dtype": str(workload.base.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        **speeds(len(workload.batches[0]), times),
        **agreement,
        **workload.more(times[OURS]),
    }
    if options.text_tokens is not None:
        result["text_tokens"] = options.text_tokens
    return result


def _take_turns(
    workload: Workload, implementations: dict[str, Implementation], progress: Progress
) -> dict[str, list[float]]:
    """Seconds of each turn: in every round, each implementation computes the same batch. A few rows warm it up."""
    times: dict[str, list[float]] = {name: [] for name in implementations}
    for each in implementations.values():
        each.run(each.prepare(workload.batches[0][:COMPARED_ROWS]))
    for number in range(workload.options.rounds):
        progress(f"round {number + 1} of {workload.options.rounds}")
        batch = workload.batches[number % len(workload.batches)]
        # Each turn starts with the memory and caches that the previous one left, so every other round is reversed.
        for name, each in reversed(implementations.items()) if number % 2 else implementations.items():
            times[name].append(seconds_of(each.run, each.prepare(batch), workload.device))
        workload.after_round()
    return times


def seconds_of(run: Callable[[Any], Any], given: Any, device: torch.device) -> float:
    """Seconds that ``run(given)`` takes, including the work that it queues on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run(given)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def speeds(rows: int, times: dict[str, list[float]]) -> dict[str, Any]:
    """Rows per second of each implementation (median turn), ratios and spreads.

    Args:
        rows: number of rows per turn.
        times: seconds of each turn, by implementation.
    """
    speed = {name: rows / statistics.median(seconds) for name, seconds in times.items()}
    found: dict[str, Any] = {f"{KEY_PREFIX[name]}rows_per_second": value for name, value in speed.items()}
    for name in (OURS, DROP_IN):
        for other in (PEFT_GUIDE, PEFT_BEST, PREFIX, GUIDE, DIRECT):
            if name in speed and other in speed:
                versus = KEY_PREFIX[other].rstrip("_")
                found[f"{KEY_PREFIX[name]}speedup_vs_{versus}"] = speed[name] / speed[other]
    found["spread"] = {name: spread(seconds) for name, seconds in times.items()}
    return found


def spread(times: Sequence[float]) -> float:
    """Half the interquartile range relative to the median; half the range for fewer than four times."""
    if len(times) < 4:
        return (max(times) - min(times)) / 2 / statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4)
    return (high - low) / 2 / statistics.median(times)
