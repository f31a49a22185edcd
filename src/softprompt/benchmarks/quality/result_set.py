"""The results of a benchmark, looked up by task, method and number of training rows, and compared with a reference."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .bootstrap import Interval, differences, interval
from .results import Predictions, Result, ResultKey, read_predictions, read_results
from .specification import QualityOptions


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1) over seeds; a single seed has no deviation."""

    mean: float
    deviation: float | None
    seeds: int


class ResultSet:
    """The completed results of a benchmark.

    Raises:
        DataError: the CSV or a file of predictions is damaged.
    """

    def __init__(self, spec: QualityOptions) -> None:
        self.spec = spec
        self._results = read_results(spec.output_dir)
        self._predictions: dict[ResultKey, Predictions | None] = {}

    def results(self, task: str, method: str, shots: int) -> list[Result]:
        """The completed results of all seeds, in the order of the seeds."""
        keys = (self._key(task, method, shots, seed) for seed in self.spec.seeds_of(method))
        return [self._results[key] for key in keys if key in self._results]

    def spread(self, task: str, method: str, shots: int) -> Spread | None:
        """Macro-F1 of a method on a task; ``None`` without results."""
        return spread_of([result.macro_f1 for result in self.results(task, method, shots)])

    def over_tasks(self, method: str, shots: int) -> Spread | None:
        """Mean macro-F1 over all tasks, with its deviation over seeds; ``None`` if a result is missing."""
        by_task = [self.results(task, method, shots) for task in self.spec.tasks]
        if any(len(results) < len(self.spec.seeds_of(method)) for results in by_task):
            return None
        return spread_of(
            [statistics.fmean(each.macro_f1 for each in results) for results in zip(*by_task, strict=True)]
        )

    def all_of(self, method: str, shots: int) -> list[Result]:
        """The completed results of a method on all tasks."""
        return [result for task in self.spec.tasks for result in self.results(task, method, shots)]

    def predictions(self, method: str, shots: int) -> list[Predictions]:
        """The predictions of the completed results of a method on all tasks, where their files exist."""
        return [found for result in self.all_of(method, shots) if (found := self._read(result.key)) is not None]

    def compare(self, method: str, shots: int) -> dict[str, Interval]:
        """Differences in macro-F1 from the reference.

        A difference needs the CSV only; its interval needs the predictions of all seeds.

        Returns:
            Intervals by task, where all common seeds have results; under ``""`` their mean if all tasks have one.
        """
        found: dict[str, Interval] = {}
        resamples: list[torch.Tensor] = []
        for task in self.spec.tasks:
            difference = self._difference(task, method, shots)
            if difference is None:
                continue
            found[task] = Interval(difference)
            pairs = self._pairs(task, method, shots)
            if len(pairs) == len(self.spec.seeds):
                own, reference = zip(*pairs, strict=True)
                _, resampled = differences(own, reference, self.spec.bootstrap_samples)
                found[task] = interval(difference, resampled)
                resamples.append(resampled)
        if len(found) == len(self.spec.tasks):
            found[""] = _mean(list(found.values()), resamples)
        return found

    def _difference(self, task: str, method: str, shots: int) -> float | None:
        """Mean over the common seeds; ``None`` if a result is missing."""
        gaps = []
        for seed in self.spec.seeds:
            own, reference = (
                self._results.get(self._key(task, each, shots, seed)) for each in (method, self.spec.compared_with)
            )
            if own is None or reference is None:
                return None
            gaps.append(own.macro_f1 - reference.macro_f1)
        return statistics.fmean(gaps)

    def _pairs(self, task: str, method: str, shots: int) -> list[tuple[Predictions, Predictions]]:
        """Predictions of method and reference for the seeds that have both."""
        pairs = []
        for seed in self.spec.seeds:
            own, reference = (
                self._read(self._key(task, each, shots, seed)) for each in (method, self.spec.compared_with)
            )
            if own is not None and reference is not None:
                pairs.append((own, reference))
        return pairs

    def _read(self, key: ResultKey) -> Predictions | None:
        if key not in self._results:
            return None
        if key not in self._predictions:
            self._predictions[key] = read_predictions(self.spec.output_dir, key)
        return self._predictions[key]

    def _key(self, task: str, method: str, shots: int, seed: int) -> ResultKey:
        return ResultKey(task, method, self.spec.model_name_or_path, shots, seed)


def _mean(by_task: Sequence[Interval], resamples: Sequence[torch.Tensor]) -> Interval:
    """The mean over tasks; without an interval unless every task has resamples."""
    mean = statistics.fmean(each.difference for each in by_task)
    if len(resamples) < len(by_task):
        return Interval(mean)
    # Tasks have different test rows, so their resamples are independent: each is shuffled on its own.
    order = torch.Generator().manual_seed(1)
    shuffled = [resampled[torch.randperm(len(resampled), generator=order)] for resampled in resamples]
    return interval(mean, torch.stack(shuffled).mean(0))


def spread_of(values: Sequence[float]) -> Spread | None:
    """Mean and standard deviation; ``None`` of no values."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))
