"""TF-IDF of words and characters, and a logistic regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ....types import Row
from .cross_validation import best, cross_validated
from .linear import Logistic
from .method import Fitted, Method

STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Values of C that are tried; the larger, the weaker the penalty."""


class Tfidf(Method):
    """Words 1-2 and characters 2-5 inside words, sublinear counts; C by five-fold cross-validation."""

    uses_base: ClassVar[bool] = False

    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> Fitted:
        """See ``Method``."""
        data = self.work.data
        texts, number = data.texts_of(rows), len(data.labels)

        def score(strength: float) -> float:
            return cross_validated(lambda *parts: _held_out(texts, labels, strength, *parts), labels, number, seed)

        vectorizer = _vectorizer()
        model = Logistic(vectorizer.fit_transform(texts), labels, best(STRENGTHS, score))
        tested = vectorizer.transform(data.texts_of(data.test))
        return Fitted(model.log_probs(tested, number), model.num_weights)


def _held_out(
    texts: Sequence[str], labels: Sequence[int], strength: float, learned: list[int], held_out: list[int]
) -> list[int]:
    """Answers to held-out texts; what is counted are the words of the others alone."""
    vectorizer = _vectorizer()
    features = vectorizer.fit_transform([texts[row] for row in learned])
    model = Logistic(features, [labels[row] for row in learned], strength)
    return model.predict(vectorizer.transform([texts[row] for row in held_out]))


def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    return make_union(words, characters)
