"""``softprompt.load``: an adapter and its base model from one name, with predictions for texts and tables."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

from ..config.options import ModelOptions, build_options
from ..data.in_memory import Rows, rows_from
from ..data.non_empty_rows import NonEmptyRows
from ..data.tokenize import Encoder
from ..errors import ConfigError
from ..storage.atomic import expand
from ..types import Row
from .adapter_files import WITHOUT_TASK
from .load_adapter import LoadedAdapter, load_adapter
from .predict import Answer, label_probabilities, predict_rows

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Prediction:
    """The predicted label of a text, and its probability among the labels."""

    label: str
    probability: float

    def __repr__(self) -> str:
        return f"Prediction(label={self.label!r}, probability={self.probability:.4f})"


class Predictor(LoadedAdapter):
    """An adapter ready for predictions; made by ``softprompt.load``.

    It predicts with everything the adapter has: prompt, ensemble and linear probe. Calls do not change it, so several
    threads may share it.

    Texts are given as one text, or as a list of texts; a dictionary of columns stands for a text where the task has
    several text columns. A pandas ``DataFrame``, a ``datasets.Dataset`` and a ``pathlib.Path`` of a file count as lists
    of rows. A single text gives a single result, anything else a list, in order. Texts that are cut to fit
    ``max_length`` or the model's context cause a warning.

    Attributes:
        name: folder or Hub id of the adapter.
        task: how rows become text, and the labels (``softprompt.Task``).
        labels: the labels in a fixed order; empty for a generation task.
    """

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in a fixed order; empty for a generation task."""
        return self.task.labels

    @overload
    def predict(  # type: ignore[overload-overlap]
        self, texts: str | Mapping[str, Any], *, batch_size: int = 32
    ) -> Prediction | str: ...
    @overload
    def predict(self, texts: Rows, *, batch_size: int = 32) -> list[Prediction] | list[str]: ...
    def predict(self, texts: Any, *, batch_size: int = 32) -> Any:
        """Predict the label of each text; an adapter of a generation task generates a text, as ``generate`` does.

        Args:
            texts: a text, or several; see the class.
            batch_size: texts per forward pass.

        Returns:
            A ``Prediction`` for a single text, a list of them for several; strings for a generation task.

        Raises:
            DataError: a text is empty, or a column is missing.
        """
        if not self.labels:
            return self.generate(texts, batch_size=batch_size)
        answers = self._answers(texts, batch_size=batch_size)
        predictions = [Prediction(answer.text, float(answer.probability or 0.0)) for answer in answers]
        return predictions[0] if _is_single(texts) else predictions

    def predict_proba(self, texts: Rows, *, batch_size: int = 32) -> np.ndarray[Any, Any]:
        """The probability of each label for each text.

        Args:
            texts: a text, or several; see the class.
            batch_size: texts per forward pass.

        Returns:
            ``[N, C]`` float32; columns are in the order of ``labels``, rows sum to 1. A single text gives one row.

        Raises:
            ConfigError: the adapter's task has no labels.
            DataError: a text is empty, or a column is missing.
        """
        if not self.labels:
            raise ConfigError(f"{self.name} generates text and has no labels; use generate instead of predict_proba")
        probabilities, examples = label_probabilities(self, self._encoder, self._rows(texts), batch_size)
        _warn_if_truncated([example.num_cut > 0 for example in examples])
        return probabilities.float().numpy()

    @overload
    def generate(  # type: ignore[overload-overlap]
        self, texts: str | Mapping[str, Any], *, max_new_tokens: int | None = None, batch_size: int = 32
    ) -> str: ...
    @overload
    def generate(self, texts: Rows, *, max_new_tokens: int | None = None, batch_size: int = 32) -> list[str]: ...
    def generate(self, texts: Any, *, max_new_tokens: int | None = None, batch_size: int = 32) -> Any:
        """Generate a text after each text, greedily; an adapter of a classification task generates freely too.

        Args:
            texts: a text, or several; see the class.
            max_new_tokens: maximum number of tokens to generate; by default 64, or a quarter of a shorter context.
            batch_size: texts per forward pass.

        Returns:
            A string for a single text, a list of strings for several.

        Raises:
            ConfigError: the model's context has no room for ``max_new_tokens``.
            DataError: a text is empty, or a column is missing.
        """
        answers = self._answers(texts, generate=True, max_new_tokens=max_new_tokens, batch_size=batch_size)
        found = [answer.text for answer in answers]
        return found[0] if _is_single(texts) else found

    def _answers(self, texts: Any, **how: Any) -> list[Answer]:
        answers = [answer for _, answer in predict_rows(self, self.task, self._rows(texts), **how)]
        _warn_if_truncated([answer.truncated for answer in answers])
        return answers

    def _rows(self, texts: Any) -> list[Row]:
        """The rows of ``texts``, each of which has a text."""
        if _is_single(texts):
            texts = [texts]
        rows = list(rows_from(texts, self.task.text_columns, self.task.label_column))
        if isinstance(texts, os.PathLike):
            rows = list(NonEmptyRows(rows))
        for row in rows:
            self.task.check_text(row.fields, row.where)
        return rows

    @cached_property
    def _encoder(self) -> Encoder:
        return self.encoder(self.task)

    def __repr__(self) -> str:
        task = f"{len(self.labels)} labels" if self.labels else "generation"
        length, parts = len(self.model.prompt), []
        if self.ensemble is not None:
            parts.append(f"ensemble of {len(self.ensemble.prompts)} prompts")
        if self.linear_probe is not None:
            parts.append("linear probe")
        with_parts = f", {', '.join(parts)}" if parts else ""
        base = self.config.base_model_name_or_path
        return f"<Predictor {self.name}: {task}, {length} virtual tokens{with_parts}, base model {base}>"


def _is_single(texts: Any) -> bool:
    return isinstance(texts, (str, Mapping))


def _warn_if_truncated(truncated: Sequence[bool]) -> None:
    if count := sum(truncated):
        message = f"{count} of {len(truncated)} texts were cut to fit max_length or the model's context"
        warnings.warn(message, stacklevel=4)


def load(
    adapter: str | os.PathLike[str],
    *,
    model_name_or_path: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    dtype: Any = None,
    device: Any = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> Predictor:
    """Load an adapter and its base model, ready for predictions.

    Args:
        adapter: a folder, or a Hub id (``owner/name``).
        model_name_or_path: the base model; by default the one that the adapter names.
        revision: revision of the base model on the Hub.
        dtype: dtype of the base model: ``"float32"``, ``"bfloat16"``, ``"float16"`` or a torch dtype; by default the
            checkpoint's own.
        device: a torch device; by default the first of cuda, mps and cpu that is available.
        attn_implementation: attention implementation in transformers: ``"sdpa"``, ``"eager"``, ...
        trust_remote_code: run Python code that the base model's repository contains.

    Raises:
        AdapterError: the adapter is missing, damaged or does not fit the base model.
        BaseModelError: the base model cannot be found or loaded.
        ConfigError: an option is invalid, or the adapter names no base model and none is given.
    """
    options = model_options(
        model_name_or_path=model_name_or_path,
        revision=revision,
        dtype=dtype,
        device=device,
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
    )
    predictor = load_predictor(adapter, options)
    if predictor.saved_task is None:
        warnings.warn(f"{predictor.name}: {WITHOUT_TASK}", stacklevel=2)
    return predictor


def model_options(
    *,
    model_name_or_path: str | os.PathLike[str] | None,
    revision: str | None,
    dtype: Any,
    device: Any,
    attn_implementation: str | None,
    trust_remote_code: bool,
) -> ModelOptions:
    """Options of a base model from the arguments of ``load``.

    Raises:
        ConfigError: an option is invalid.
    """
    given = {
        "model_name_or_path": model_name_or_path and os.fspath(model_name_or_path),
        "revision": revision,
        "dtype": dtype and str(dtype).removeprefix("torch."),
        "device": device and str(device),
        "attn_implementation": attn_implementation,
        "trust_remote_code": trust_remote_code or None,
    }
    return build_options(ModelOptions, {name: value for name, value in given.items() if value is not None})


def load_predictor(adapter: str | os.PathLike[str], options: ModelOptions) -> Predictor:
    """``load`` with an options object, and without the warning about a missing task."""
    return Predictor(**vars(load_adapter(expand(os.fspath(adapter)), options)))
