"""Logistic regression on TF-IDF features of words and characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ....types import Row
from .cross_validation import best, cross_validated
from .logistic_regression import LogisticClassifier
from .method import FittedScores, Method

STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Candidate values of C, the inverse regularisation strength."""


class Tfidf(Method):
    """Word 1-2-grams and character 2-5-grams within words, sublinear counts; C by five-fold cross-validation."""

    uses_base: ClassVar[bool] = False

    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> FittedScores:
        """See ``Method``."""
        data = self.context.data
        texts, number = data.texts_of(rows), len(data.labels)

        def score(strength: float) -> float:
            return cross_validated(lambda *parts: _held_out(texts, labels, strength, *parts), labels, number, seed)

        vectorizer = _vectorizer()
        model = LogisticClassifier(vectorizer.fit_transform(texts), labels, best(STRENGTHS, score))
        test = vectorizer.transform(data.texts_of(data.test))
        return FittedScores(model.log_probs(test, number), model.num_weights)


def _held_out(
    texts: Sequence[str], labels: Sequence[int], strength: float, train: list[int], held_out: list[int]
) -> list[int]:
    """Predictions for held-out texts; the vocabulary is that of the other texts."""
    vectorizer = _vectorizer()
    features = vectorizer.fit_transform([texts[row] for row in train])
    model = LogisticClassifier(features, [labels[row] for row in train], strength)
    return model.predict(vectorizer.transform([texts[row] for row in held_out]))


def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    return make_union(words, characters)
