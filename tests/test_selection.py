"""The selection that ``make test`` runs of large products: every value of each parameter occurs."""

import itertools

import pytest

import tiny
from selection import LEVELWISE_ONLY, covering
from softprompt.engine.runner import backends

FAMILIES = ["llama", "gpt2", "bloom", "mistral", "gemma2", "gptj", "opt", "phi"]


@pytest.mark.parametrize(
    "others",
    [
        {"backend": ["packed", "levelwise"]},
        {"dtype": ["float32", "float64", "bfloat16"]},
        {"backend": ["packed", "levelwise"], "kept": [False, True], "nodes": [1, 2, 3]},
        {"options": [{"a": 1}, {"b": 2}]},
    ],
)
def test_every_value_and_every_pair_beside_the_family(others):
    names, values = zip(*{"family": FAMILIES, **others}.items(), strict=True)
    cases = [dict(zip(names, each, strict=True)) for each in itertools.product(*values)]
    chosen = [cases[i] for i in covering(cases, "family")]
    assert {case["family"] for case in chosen} == set(FAMILIES)
    for a, b in itertools.combinations(others, 2):
        assert len({(repr(case[a]), repr(case[b])) for case in chosen}) == len(others[a]) * len(others[b])
    for name, given in others.items():
        counts = [sum(case[name] == value for case in chosen) for value in given]
        assert min(counts) > 0
        assert max(counts) - min(counts) <= 2, "values do not alternate"
    assert len(chosen) < len(cases)


def test_a_family_is_not_covered_by_a_case_that_is_skipped():
    cases = [{"family": f, "backend": b} for f in FAMILIES for b in ("packed", "levelwise")]
    chosen = [cases[i] for i in covering(cases, "family")]
    assert {"family": "gptj", "backend": "levelwise"} in chosen
    assert {"family": "gptj", "backend": "packed"} not in chosen


def test_families_without_the_packed_backend():
    assert {f for f in tiny.FAMILIES if "packed" not in backends(tiny.base(f).base_model)} == LEVELWISE_ONLY
