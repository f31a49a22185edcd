"""Figures of merit, in plain Python: accuracy, macro-F1, calibration, perplexity, exact match; overlap of texts.

Everything about classes comes from one table, the confusion matrix, so that the figures of a report
agree with each other. The conventions are scikit-learn's with ``labels`` = all labels of the task and
``zero_division=0``: a label that is never guessed right counts as 0, it is not left out of the mean.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .errors import DataError, MissingExtraError

Matrix = Sequence[Sequence[int]]
"""A confusion matrix ``[C, C]``: rows are gold labels, columns are predicted ones, cells are counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMetrics:
    """How well one label is found; shares are in 0..1."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int  # rows whose gold label this is


def confusion_matrix(gold: Sequence[int], predicted: Sequence[int], num_labels: int) -> list[list[int]]:
    """Count gold against predicted label indices.

    Args:
        gold: index of the right label, one per row.
        predicted: index of the guessed label, one per row.
        num_labels: labels of the task, C.

    Returns:
        Counts ``[C, C]``, rows are gold.

    Raises:
        DataError: the lengths differ, or an index is not in ``0..C-1``.
    """
    _same_length(gold, predicted)
    matrix = [[0] * num_labels for _ in range(num_labels)]
    for row, (right, guess) in enumerate(zip(gold, predicted, strict=True)):
        if not (0 <= right < num_labels and 0 <= guess < num_labels):
            raise DataError(f"row {row}: labels {right} and {guess} must be in 0..{num_labels - 1}")
        matrix[right][guess] += 1
    return matrix


def accuracy(matrix: Matrix) -> float:
    """Share of rows guessed right.

    Raises:
        DataError: the matrix counts no rows.
    """
    total = _total(matrix)
    return sum(matrix[i][i] for i in range(len(matrix))) / total


def per_class(matrix: Matrix, labels: Sequence[str]) -> list[ClassMetrics]:
    """Precision, recall, F1 and support of each label, in the order of ``labels`` (length C).

    Raises:
        DataError: there is not one label per row of the matrix.
    """
    if len(labels) != len(matrix):
        raise DataError(f"{len(labels)} labels do not fit a matrix of {len(matrix)} rows")
    guessed = [sum(column) for column in zip(*matrix, strict=True)]
    return [
        ClassMetrics(
            label=label,
            precision=_share(matrix[i][i], guessed[i]),
            recall=_share(matrix[i][i], sum(matrix[i])),
            f1=_share(2 * matrix[i][i], guessed[i] + sum(matrix[i])),
            support=sum(matrix[i]),
        )
        for i, label in enumerate(labels)
    ]


def macro_f1(matrix: Matrix) -> float:
    """Mean F1 over *all* labels, whether or not the rows hold them.

    Raises:
        DataError: the matrix counts no rows.
    """
    _total(matrix)
    classes = per_class(matrix, [""] * len(matrix))
    return math.fsum(c.f1 for c in classes) / len(classes)


class CalibrationBin(NamedTuple):
    """Rows whose confidences lie together: how many, their mean confidence, and the share that is right."""

    rows: int
    confidence: float
    accuracy: float


def calibration_bins(
    confidences: Sequence[float], correct: Sequence[bool | int], bins: int = 10
) -> list[CalibrationBin]:
    """The points of a reliability diagram: equally wide bins of confidence, in order, without empty ones.

    Args:
        confidences: probability of the guessed label, one per row, in 0..1.
        correct: whether the guess was right, one per row.
        bins: number of bins; a confidence on an edge belongs to the upper bin, 1.0 to the last.

    Raises:
        DataError: no rows, lengths that differ, a confidence outside 0..1, or no bins.
    """
    _same_length(confidences, correct)
    if not confidences or bins < 1:
        raise DataError(f"calibration needs rows and bins, not {len(confidences)} and {bins}")
    counts, confidence_sum, correct_sum = [0] * bins, [0.0] * bins, [0] * bins
    for confidence, right in zip(confidences, correct, strict=True):
        if not -1e-6 <= confidence <= 1 + 1e-6:  # a float32 softmax may end a little above 1
            raise DataError(f"a confidence must be in 0..1, not {confidence}")
        index = min(max(int(confidence * bins), 0), bins - 1)
        counts[index] += 1
        confidence_sum[index] += confidence
        correct_sum[index] += bool(right)
    return [
        CalibrationBin(rows, sure / rows, right / rows)
        for rows, sure, right in zip(counts, confidence_sum, correct_sum, strict=True)
        if rows
    ]


def expected_calibration_error(confidences: Sequence[float], correct: Sequence[bool | int], bins: int = 10) -> float:
    """Mean distance between confidence and accuracy over the bins of ``calibration_bins``, weighted by their rows.

    Returns:
        0 for perfect calibration, at most 1.

    Raises:
        DataError: as ``calibration_bins``.
    """
    found = calibration_bins(confidences, correct, bins)
    return math.fsum(each.rows * abs(each.accuracy - each.confidence) for each in found) / len(confidences)


def perplexity(loss: float) -> float:
    """``exp(loss)`` of a mean loss in nats per token; infinity where that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def majority(gold_train: Sequence[int], num_labels: int) -> int:
    """Index of the label that most training rows have; among equals the first label.

    Raises:
        DataError: there are no rows, or an index is not in ``0..num_labels-1``.
    """
    if not gold_train:
        raise DataError("the majority class needs at least one training row")
    counts = Counter(gold_train)
    if min(counts) < 0 or max(counts) >= num_labels:
        raise DataError(f"labels {min(counts)}..{max(counts)} must be in 0..{num_labels - 1}")
    return max(range(num_labels), key=lambda label: (counts[label], -label))


def exact_match(gold_texts: Sequence[str], predicted_texts: Sequence[str], *, after: str | None = None) -> float:
    """Share of rows whose texts are equal, white space around them aside.

    Args:
        after: compare only the text after the last such mark (``####`` in GSM8K); a text without it has no answer.

    Raises:
        DataError: there are no rows, the lengths differ, or a gold text lacks the mark.
    """
    _comparable(gold_texts, predicted_texts)
    if after:
        if missing := [gold for gold in gold_texts if after not in gold]:
            raise DataError(f"the mark {after!r} is not in the right answer {missing[0][:60]!r}")
        gold_texts = [gold.rpartition(after)[2] for gold in gold_texts]
        predicted_texts = [text.rpartition(after)[2] if after in text else "\0" for text in predicted_texts]
    pairs = zip(gold_texts, predicted_texts, strict=True)
    return sum(gold.strip() == guess.strip() for gold, guess in pairs) / len(gold_texts)


def rouge_l(gold_texts: Sequence[str], predicted_texts: Sequence[str]) -> float:
    """Mean ROUGE-L F1 in 0..1 (longest common subsequence of stemmed words, Lin 2004), by ``rouge-score``.

    Raises:
        DataError: there are no rows, or the lengths differ.
        MissingExtraError: ``rouge-score`` is absent.
    """
    _comparable(gold_texts, predicted_texts)
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise MissingExtraError("rouge-score", "generation", "ROUGE-L") from None
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(gold_texts, predicted_texts, strict=True)
    return math.fsum(scorer.score(gold, guess)["rougeL"].fmeasure for gold, guess in pairs) / len(gold_texts)


def bleu(gold_texts: Sequence[str], predicted_texts: Sequence[str]) -> float:
    """BLEU of the whole corpus in 0..1 (Papineni et al. 2002), by ``sacrebleu`` with its defaults.

    Raises:
        DataError: there are no rows, or the lengths differ.
        MissingExtraError: ``sacrebleu`` is absent.
    """
    _comparable(gold_texts, predicted_texts)
    try:
        import sacrebleu
    except ImportError:
        raise MissingExtraError("sacrebleu", "generation", "BLEU") from None
    return float(sacrebleu.corpus_bleu(list(predicted_texts), [list(gold_texts)]).score) / 100


def _comparable(gold_texts: Sequence[str], predicted_texts: Sequence[str]) -> None:
    _same_length(gold_texts, predicted_texts)
    if not gold_texts:
        raise DataError("there are no rows to compare")


def _same_length(first: Sequence[object], second: Sequence[object]) -> None:
    if len(first) != len(second):
        raise DataError(f"{len(first)} rows cannot be compared with {len(second)}")


def _total(matrix: Matrix) -> int:
    total = sum(sum(row) for row in matrix)
    if not total:
        raise DataError("there are no rows to score")
    return total


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
