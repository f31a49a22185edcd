"""Metrics against scikit-learn on random labels, and the corners that it does not settle."""

import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from softprompt.errors import DataError, MissingExtraError, SoftPromptError
from softprompt.metrics import (
    accuracy,
    bleu,
    calibration_bins,
    confusion_matrix,
    exact_match,
    expected_calibration_error,
    macro_f1,
    majority,
    per_class,
    perplexity,
    rouge_l,
)

FEW = settings(max_examples=60, deadline=None)


@st.composite
def guesses(draw):
    """(number of labels, gold, predicted); labels may be missing from either."""
    count = draw(st.integers(2, 6))
    rows = draw(st.lists(st.tuples(*[st.integers(0, count - 1)] * 2), min_size=1, max_size=40))
    gold, predicted = zip(*rows, strict=True)
    return count, list(gold), list(predicted)


@FEW
@given(guesses())
def test_matrix_accuracy_and_macro_f1_are_those_of_sklearn(case):
    count, gold, predicted = case
    labels = list(range(count))
    matrix = confusion_matrix(gold, predicted, count)
    assert matrix == sk.confusion_matrix(gold, predicted, labels=labels).tolist()
    assert accuracy(matrix) == pytest.approx(sk.accuracy_score(gold, predicted))
    expected = sk.f1_score(gold, predicted, labels=labels, average="macro", zero_division=0)
    assert macro_f1(matrix) == pytest.approx(expected)


@FEW
@given(guesses())
def test_per_class_is_that_of_sklearn(case):
    count, gold, predicted = case
    ours = per_class(confusion_matrix(gold, predicted, count), [f"label {i}" for i in range(count)])
    theirs = sk.precision_recall_fscore_support(gold, predicted, labels=range(count), zero_division=0)
    assert [c.label for c in ours] == [f"label {i}" for i in range(count)]
    for name, values in zip(("precision", "recall", "f1", "support"), theirs, strict=True):
        assert [getattr(c, name) for c in ours] == pytest.approx(values.tolist()), name


def test_a_label_never_guessed_right_counts_as_zero():
    assert macro_f1([[3, 0, 0], [0, 3, 0], [0, 0, 0]]) == pytest.approx(2 / 3)


@FEW
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 15))
def test_calibration_error_follows_its_definition(rows, bins):
    confidences, correct = [list(column) for column in zip(*rows, strict=True)]
    total = 0.0
    for b in range(bins):
        inside = [r for r in rows if min(int(r[0] * bins), bins - 1) == b]
        if inside:
            mean_confidence = sum(c for c, _ in inside) / len(inside)
            share_right = sum(r for _, r in inside) / len(inside)
            total += len(inside) / len(rows) * abs(mean_confidence - share_right)
    assert expected_calibration_error(confidences, correct, bins) == pytest.approx(total, abs=1e-12)


def test_bins_of_confidence_by_hand():
    bins = calibration_bins([0.05, 0.95, 1.0, 0.9], [0, 1, 1, 0])
    assert [each.rows for each in bins] == [1, 3]  # eight are empty
    assert bins[0] == (1, 0.05, 0.0)
    assert bins[1][1:] == pytest.approx((0.95, 2 / 3))


def test_calibration_error_by_hand():
    assert expected_calibration_error([1.0, 1.0], [1, 1]) == 0
    assert expected_calibration_error([0.95, 0.95], [True, False]) == pytest.approx(0.45)
    assert expected_calibration_error([1.0000001, 0.0], [1, 0]) == pytest.approx(0, abs=1e-6)


@FEW
@given(st.integers(1, 5).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 1), min_size=1))))
def test_majority_is_the_first_of_the_most_frequent(case):
    count, gold = case
    best = majority(gold, count)
    assert all(gold.count(best) >= gold.count(other) for other in range(count))
    assert all(gold.count(best) > gold.count(earlier) for earlier in range(best))


def test_perplexity_is_safe_at_the_ends():
    assert perplexity(0.0) == 1.0
    assert perplexity(math.log(7)) == pytest.approx(7)
    assert perplexity(1e9) == perplexity(math.inf) == math.inf
    assert math.isnan(perplexity(math.nan))


def test_exact_match_leaves_outer_white_space_aside():
    assert exact_match(["a b", "c", "d", "E"], [" a b\n", "c", "x", "e"]) == 0.5


@pytest.mark.parametrize(
    "call",
    [
        lambda: confusion_matrix([0, 1], [0], 2),
        lambda: confusion_matrix([0, 2], [0, 1], 2),
        lambda: confusion_matrix([0], [-1], 2),
        lambda: accuracy([[0, 0], [0, 0]]),
        lambda: macro_f1([[0, 0], [0, 0]]),
        lambda: per_class([[1, 0], [0, 1]], ["only one"]),
        lambda: expected_calibration_error([], []),
        lambda: expected_calibration_error([0.5], [1], bins=0),
        lambda: expected_calibration_error([1.5], [1]),
        lambda: expected_calibration_error([math.nan], [1]),
        lambda: majority([], 2),
        lambda: majority([2], 2),
        lambda: exact_match([], []),
        lambda: exact_match(["a"], []),
    ],
)
def test_what_cannot_be_scored_is_refused(call):
    with pytest.raises(DataError) as caught:
        call()
    assert isinstance(caught.value, SoftPromptError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("module", ["metrics", "storage.record", "reporting.plots", "reporting.card"])
def test_import_is_light(module):
    code = (
        f"import sys, softprompt.{module}\n"
        "print([m for m in ('torch', 'numpy', 'matplotlib', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- texts ------------------------------------------------------------------------------------------------------


def test_exact_match_behind_a_mark():
    gold = ["so 2 + 2 = 4\n#### 4", "#### 5 #### 6"]
    assert exact_match(gold, ["four #### 4", "#### 6"], after="####") == 1.0
    assert exact_match(gold, ["#### 5", "6"], after="####") == 0.0
    assert exact_match(gold, ["4", "####"], after="####") == 0.0
    with pytest.raises(DataError, match="'####' is not in the right answer 'four'"):
        exact_match(["four"], ["four"], after="####")


def test_rouge_l_is_the_share_of_the_longest_common_subsequence():
    pytest.importorskip("rouge_score")
    # Common: "the cat sat" of 5 words; of 4 words. Precision 3/4, recall 3/5.
    assert rouge_l(["the cat sat down here"], ["the cat often sat"]) == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert rouge_l(["a b", "c d"], ["a b", "e f"]) == 0.5


def test_bleu_of_a_corpus():
    pytest.importorskip("sacrebleu")
    gold, text = "the quick brown fox jumps over it", "the quick brown fox jumps over him"
    assert bleu([gold], [gold]) == pytest.approx(1.0)
    shares = [(6, 7), (5, 6), (4, 5), (3, 4)]  # n-grams of the text that the gold text has
    assert bleu([gold], [text]) == pytest.approx(math.prod(a / b for a, b in shares) ** 0.25)
    assert 0 < bleu([gold, gold], [text, gold]) < 1


@pytest.mark.parametrize("measure", [rouge_l, bleu, exact_match])
def test_texts_that_cannot_be_compared(measure):
    with pytest.raises(DataError):
        measure([], [])
    with pytest.raises(DataError):
        measure(["a"], ["a", "b"])


@pytest.mark.parametrize(("measure", "package"), [(rouge_l, "rouge_score.rouge_scorer"), (bleu, "sacrebleu")])
def test_a_package_that_is_absent_is_named(measure, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'softprompt\[generation\]'"):
        measure(["a"], ["a"])
