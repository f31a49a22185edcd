"""Which cases of a large product of parameters ``make test`` runs; ``make test-all`` runs all of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

FAMILY = ("family", "name")
"""Names of the parameter that stands for an architecture."""
MIN_FAMILIES = 5
LEVELWISE_ONLY = {"falcon", "falcon_alibi", "gpt_neo", "gptj", "mpt"}
"""Architectures of ``tiny.FAMILIES`` without the packed backend, whose tests skip it."""
_NEVER_PACKED = LEVELWISE_ONLY | {"gemma3_images"}

Case = Mapping[str, Any]


def left_out(items: Iterable[Any]) -> list[Any]:
    """The pytest items that only ``make test-all`` runs.

    A test function whose parameters are an architecture and something else is reduced to a covering selection.
    """
    by_function: dict[str, list[Any]] = defaultdict(list)
    for item in items:
        if hasattr(item, "callspec"):
            by_function[item.nodeid.partition("[")[0]].append(item)
    found = []
    for same in by_function.values():
        cases = [item.callspec.params for item in same]
        family = next((name for name in FAMILY if name in cases[0]), None)
        if family and len(cases[0]) > 1 and len({key(case[family]) for case in cases}) >= MIN_FAMILIES:
            kept = set(covering(cases, family))
            found += [item for number, item in enumerate(same) if number not in kept]
    return found


def covering(cases: Sequence[Case], family: str) -> list[int]:
    """Positions of a few cases that have every value of each parameter, and every pair of values beside the family.

    Greedy; of equally good cases, the one whose values were chosen least often, so that backends and dtypes alternate
    between architectures.
    """
    goals = [_goals(case, family) for case in cases]
    missing, chosen, used = set[Hashable]().union(*goals), list[int](), Counter[Hashable]()
    while missing:
        best = max(
            range(len(cases)),
            key=lambda i: (len(goals[i] & missing), not _skipped(cases[i], family), -sum(used[g] for g in goals[i])),
        )
        chosen.append(best)
        missing -= goals[best]
        used.update(goals[best])
    return chosen


def _goals(case: Case, family: str) -> set[Hashable]:
    values = sorted((name, key(value)) for name, value in case.items())
    others = [each for each in values if each[0] != family]
    pairs = set[Hashable](combinations(others, 2))
    return pairs | set(others) | (set() if _skipped(case, family) else {(family, key(case[family]))})


def _skipped(case: Case, family: str) -> bool:
    return case.get("backend") == "packed" and case[family] in _NEVER_PACKED


def key(value: Any) -> str:
    """What tells one value of a parameter from another."""
    return getattr(value, "__qualname__", None) or repr(value)
