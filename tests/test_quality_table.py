"""Metrics of results, tables and intervals, against numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from quality_tools import answers, make_place, make_spec
from softprompt import DataError, MissingExtraError, TrainingError
from softprompt.benchmarks.quality import charts
from softprompt.benchmarks.quality.bootstrap import differences, interval, weighted_macro_f1
from softprompt.benchmarks.quality.page import (
    as_markdown,
    difference_table,
    other_table,
    score_table,
)
from softprompt.benchmarks.quality.result_metrics import MIN_PROBABILITY, metrics_of, predictions_of
from softprompt.benchmarks.quality.result_set import ResultSet, spread_of
from softprompt.benchmarks.quality.results import Predictions, Result, append_result, read_predictions
from softprompt.benchmarks.quality.specification import QualityOptions
from softprompt.metrics import confusion_matrix, macro_f1

PNG = b"\x89PNG"


# --- metrics of a result ----------------------------------------------------------------------------


def test_figures_by_hand() -> None:
    # probabilities .8 .6 .9 .5 of a; right: a b a b
    log_probs = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.9, 0.1], [0.5, 0.5]]).log() - 7.0  # any common unit
    found = predictions_of(log_probs, (0, 1, 0, 1), ("a", "b"))
    assert found.guesses == (0, 0, 0, 0)
    assert found.confidences == (0.8, 0.6, 0.9, 0.5)
    values = metrics_of(found)
    assert values["accuracy"] == 0.5
    assert values["macro_f1"] == pytest.approx((2 * 2 / (4 + 2) + 0) / 2, abs=1e-6)
    assert values["log_loss"] == pytest.approx(
        -(math.log(0.8) + math.log(0.4) + math.log(0.9) + math.log(0.5)) / 4, abs=1e-5
    )
    assert values["expected_calibration_error"] == pytest.approx((0.2 + 0.6 + 0.1 + 0.5) / 4, abs=1e-6)


def test_a_label_that_cannot_be_costs_no_more_than_the_least_probability() -> None:
    found = predictions_of(torch.tensor([[0.0, -torch.inf]]), (1,), ("a", "b"))
    assert found.gold_log_probs[0] == pytest.approx(math.log(MIN_PROBABILITY), abs=1e-5)
    assert found.confidences == (1.0,)


@pytest.mark.parametrize("row", [[math.nan, 0.0], [-math.inf, -math.inf], [math.inf, 0.0]])
def test_scores_that_are_not_finite(row: list[float]) -> None:
    with pytest.raises(TrainingError, match="not finite"):
        predictions_of(torch.tensor([row]), (0,), ("a", "b"))


# --- the bootstrap ----------------------------------------------------------------------------------


def test_weights_count_rows_as_often() -> None:
    found = answers("aabbbc", "abbbac", labels="abcd")
    weights = torch.tensor([[1, 1, 1, 1, 1, 1], [3, 0, 2, 1, 0, 0], [0, 2, 0, 0, 0, 4]], dtype=torch.float64)
    for row, value in zip(weights.int().tolist(), weighted_macro_f1(found, weights).tolist(), strict=True):
        repeated = [i for i, count in enumerate(row) for _ in range(count)]
        gold, guesses = ([each[i] for i in repeated] for each in (found.gold, found.guesses))
        assert value == pytest.approx(macro_f1(confusion_matrix(gold, guesses, 4)))


def test_an_interval_with_a_known_answer() -> None:
    """All rows are a's, and the reference knows: with k right of N, a method scores k / (k + N), and k is binomial."""
    rows, right = 40, 30
    method, reference = answers("a" * rows, "a" * right + "b" * (rows - right)), answers("a" * rows, "a" * rows)
    difference, resampled = differences([method], [reference], 20_000)
    assert difference == pytest.approx(right / (right + rows) - 0.5)
    found = interval(difference, resampled)
    share = right / rows
    chances = [math.comb(rows, k) * share**k * (1 - share) ** (rows - k) for k in range(rows + 1)]
    edges = [next(k for k in range(rows + 1) if sum(chances[: k + 1]) >= level) for level in (0.025, 0.975)]
    assert [found.low, found.high] == pytest.approx([k / (k + rows) - 0.5 for k in edges], abs=0.005)
    assert found.excludes_zero


def test_what_both_share_cancels_out() -> None:
    lucky, unlucky = answers("abab", "abab"), answers("abab", "baba")
    difference, resampled = differences([lucky, unlucky], [lucky, unlucky], 200)
    assert difference == 0
    assert not resampled.any()
    assert not interval(difference, resampled).excludes_zero


def test_seeds_are_resampled_too() -> None:
    """Of two seeds, one is better by 1 and one equal: a resample draws the better one never, once or twice."""
    good, bad = answers("ab" * 60, "ab" * 60), answers("ab" * 60, "ba" * 60)
    difference, resampled = differences([good, good], [bad, good], 4000)
    assert difference == 0.5
    shares = [float((resampled == value).double().mean()) for value in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


@pytest.mark.parametrize(
    ("method", "reference"),
    [
        ([], []),
        ([answers("ab", "ab")], []),
        ([answers("ab", "ab")], [answers("ba", "ab")]),
    ],
)
def test_only_like_is_compared_with_like(method: list[Predictions], reference: list[Predictions]) -> None:
    with pytest.raises(DataError, match="same seeds"):
        differences(method, reference, 100)


# --- tables -----------------------------------------------------------------------------------------

GUESSES = {  # gold is aabb: macro-F1 1, 11/15, 1/3
    ("first", 0): {"majority": "aaaa", "guide": "aabb"},
    ("first", 1): {"majority": "aaaa", "guide": "abbb"},
    ("second", 0): {"majority": "aaaa", "guide": "aabb"},
    ("second", 1): {"majority": "bbbb"},
}


@pytest.fixture
def spec(tmp_path: Path) -> QualityOptions:
    """Two tasks, two methods, two seeds; one result is missing."""
    place = make_place(tmp_path)
    task = {"train_file": "x.jsonl", "test_file": "y.jsonl"}
    made = make_spec(place, tasks={"first": task, "second": task}, methods=["majority", "guide"], shots=[4, 8])
    for (name, seed), guesses in GUESSES.items():
        for method, guessed in guesses.items():
            write_cell(made, name, method, 8, seed, guessed)
    return made


def write_cell(spec: QualityOptions, task: str, method: str, shots: int, seed: int, guesses: str) -> None:
    found = answers("aabb", guesses)
    result = Result(
        task=task,
        method=method,
        model=spec.model_name_or_path,
        shots=shots,
        seed=seed,
        **metrics_of(found),
        test_rows=4,
        seconds=1.5 + seed,
        trained_parameters=1000,
        settings="0",
        date="2026-01-01",
        version="0",
    )
    append_result(spec.output_dir, result, found)
    assert read_predictions(spec.output_dir, result.key) == found


def lines(table: str) -> dict[str, list[str]]:
    """The results of a table by the first of each line."""
    rows = [[result.strip() for result in line.strip("|").split("|")] for line in table.splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_the_table_of_scores(spec: QualityOptions) -> None:
    found = lines(score_table(ResultSet(spec), 8))
    assert found["method"] == ["first", "second", "all tasks"]
    assert found["majority"] == ["33.3 ± 0.0", "33.3 ± 0.0", "33.3 ± 0.0"]
    # 1 and 11/15: mean .8667, deviation .1886
    assert found["guide"] == ["86.7 ± 18.9", "100.0 (1 of 2)", "-"]


def test_means_over_tasks_vary_with_the_seed(spec: QualityOptions) -> None:
    write_cell(spec, "second", "guide", 8, 1, "bbbb")
    # seed 0: 1 and 1; seed 1: 11/15 and 1/3, mean 8/15
    assert lines(score_table(ResultSet(spec), 8))["guide"][2] == "76.7 ± 33.0"


def test_the_table_of_differences(spec: QualityOptions) -> None:
    found = lines(difference_table(ResultSet(spec), 8))
    assert "majority" not in found
    assert found["guide"][0].strip("*").startswith("+53.3 [")  # of 2/3 and 2/5
    assert found["guide"][1:] == ["-", "-"]  # a seed is missing
    write_cell(spec, "second", "guide", 8, 1, "aabb")
    second, both = lines(difference_table(ResultSet(spec), 8))["guide"][1:]
    assert second.strip("*").startswith("+66.7 [")
    assert both.strip("*").startswith("+60.0 [")


def test_the_table_of_the_rest(spec: QualityOptions) -> None:
    found = lines(other_table(ResultSet(spec), 8))
    assert found["majority"] == ["50.0", "0.0", "0.500", "2.0", "1,000"]
    assert "guide (3 of 4 results)" in found  # no mean over all tasks yet
    assert lines(other_table(ResultSet(spec), 4))["guide"] == ["-"] * 5


def test_the_page(spec: QualityOptions) -> None:
    page = as_markdown(ResultSet(spec))
    assert "## 4 training rows" in page
    assert "## 8 training rows" in page
    assert "7 of 16 results are complete" in page
    assert "Difference from majority in points" in page
    assert page.count("| guide | - | - |") == 3  # all tables of 4 rows


def test_a_lost_file_of_predictions_costs_the_interval_alone(spec: QualityOptions) -> None:
    for path in (spec.output_dir / "predictions").glob("first--guide*"):
        path.unlink()
    write_cell(spec, "second", "guide", 8, 1, "aabb")
    first, second, both = lines(difference_table(ResultSet(spec), 8))["guide"]
    assert (first, both) == ("+53.3", "+60.0")
    assert second.strip("*").startswith("+66.7 [")
    assert lines(score_table(ResultSet(spec), 8))["guide"][0] == "86.7 ± 18.9"


def test_a_damaged_file_of_predictions(spec: QualityOptions) -> None:
    for path in (spec.output_dir / "predictions").glob("first--guide*"):
        path.write_text('{"labels": ["a", "b"], "gold": [0], "guesses": [5], "confidences": [], "gold_log_probs": []}')
    with pytest.raises(DataError, match="damaged"):
        as_markdown(ResultSet(spec))


def test_one_value_has_no_deviation() -> None:
    found = spread_of([0.25])
    assert found is not None
    assert (found.mean, found.deviation, found.seeds) == (0.25, None, 1)
    assert spread_of([]) is None


# --- plots ---------------------------------------------------------------------------------------


def test_plots(spec: QualityOptions) -> None:
    pytest.importorskip("matplotlib")
    for task in spec.tasks:
        write_cell(spec, task, "guide", 4, 0, "aabb")
    plots, reason = charts.draw(ResultSet(spec))
    assert reason is None
    assert [path.name for path in plots] == [charts.BY_SEED, charts.RELIABILITY, charts.BY_SHOTS]
    assert all(path.read_bytes().startswith(PNG) for path in plots)


def test_plots_before_anything_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    task = {"train_file": "x.jsonl", "test_file": "y.jsonl"}
    plots, _ = charts.draw(ResultSet(make_spec(make_place(tmp_path), tasks={"first": task}, methods=["guide"])))
    assert len(plots) == 2
    assert all(path.read_bytes().startswith(PNG) for path in plots)


def test_bins_pool_the_answers_of_all_cells(spec: QualityOptions) -> None:
    bins = charts._bins(ResultSet(spec).predictions("guide", 8))
    assert sum(each.rows for each in bins) == 12  # three results of four rows
    assert sum(each.rows * each.accuracy for each in bins) == pytest.approx(11)  # "aaab" for "aabb" alone errs once


def test_no_plots_without_matplotlib(spec: QualityOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise MissingExtraError("matplotlib", "demo", "drawing plots")

    monkeypatch.setattr(charts, "figure_to", missing)
    plots, reason = charts.draw(ResultSet(spec))
    assert not plots
    assert "pip install" in str(reason)


def test_methods_look_different() -> None:
    looks = [charts._look(number, "m") for number in range(30)]
    assert len({(look["color"], look["marker"]) for look in looks}) == 30
