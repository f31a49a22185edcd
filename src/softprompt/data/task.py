"""What a prompt was trained to do: how a row becomes text, and which answers there are.

``task.json`` beside the adapter holds it, so that whoever loads the prompt renders text as training did.
PEFT does not know the file and leaves it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import AdapterError, DataError
from ..storage.atomic import read_json, write_json
from .template import is_missing

TASK_NAME = "task.json"
_OLD_NAMES = {"cue": "answer_prefix"}
"""Fields as version 0.1 wrote them; still read."""
LabelScoring = Literal["text", "unique_prefix"]


@dataclass(frozen=True, slots=True)
class Task:
    """A task, as plain values.

    Attributes:
        text_columns: columns that hold the text.
        label_column: column of the label.
        template: text with ``{column}`` fields (see ``template.py``), already resolved: never ``None``.
        labels: the classes in a fixed order; empty for a generation task.
        max_length: most tokens of text and label together; ``None`` for what the model's context leaves.
        end_token_id: id that ends every label; ``None`` when the tokenizer has none.
        cue: what stands between text and label for a prompt in front, such as ``Label:``; one behind does without.
        label_prefix: what stands before every label, a space where the template does not end in one.
        label_scoring: what is read of each label to choose between them: its whole ``text``, or the shortest
            ``start`` that no other label has.
    """

    text_columns: tuple[str, ...]
    label_column: str
    template: str
    labels: tuple[str, ...] = ()
    max_length: int | None = None
    end_token_id: int | None = None
    answer_prefix: str = ""
    label_prefix: str = ""
    label_scoring: LabelScoring = "text"

    @property
    def is_classification(self) -> bool:
        """Whether there is a fixed set of labels."""
        return bool(self.labels)

    def label_of(self, fields: Mapping[str, Any], where: str) -> str:
        """The label text of a row.

        Raises:
            DataError: the row has no label.
        """
        value = fields.get(self.label_column)
        if is_missing(value):
            raise DataError(f"{where}: the column {self.label_column!r} is empty; every row needs a label")
        return str(value).strip()

    def check_text(self, fields: Mapping[str, Any], where: str) -> None:
        """Check that a row has a text: content in its text column, or in at least one of several.

        Raises:
            DataError: all of the row's text columns are empty.
        """
        if all(is_missing(fields.get(column)) for column in self.text_columns):
            names = " and ".join(repr(column) for column in self.text_columns)
            what = f"the column {names} is empty" if len(self.text_columns) == 1 else f"the columns {names} are empty"
            raise DataError(f"{where}: {what}; every row needs a text")

    def save(self, folder: Path) -> None:
        """Write ``task.json`` into ``folder``."""
        write_json(folder / TASK_NAME, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Task | None:
        """Read ``task.json`` of ``folder``; ``None`` when there is none (an adapter made by PEFT).

        Raises:
            AdapterError: the file is damaged.
        """
        path = folder / TASK_NAME
        return cls.read(path) if path.is_file() else None

    @classmethod
    def read(cls, path: Path) -> Task:
        """Read a ``task.json``.

        Raises:
            AdapterError: the file is damaged.
        """
        values = {_OLD_NAMES.get(name, name): value for name, value in read_json(path).items()}
        columns, labels = values.get("text_columns"), values.get("labels") or []
        numbers = [values.get(name) for name in ("max_length", "end_token_id")]
        answer_prefix, prefix = values.get("answer_prefix", ""), values.get("label_prefix", "")
        scoring: Any = values.get("label_scoring", "text")
        scoring = "unique_prefix" if scoring == "start" else scoring  # version 0.1
        if not (
            columns
            and _is_texts(columns)
            and _is_texts(labels)
            and _is_texts([values.get("label_column"), values.get("template"), answer_prefix, prefix])
            and scoring in get_args(LabelScoring)
            and all(number is None or (type(number) is int and number >= 0) for number in numbers)
        ):
            raise AdapterError(f"{path} is damaged: it must hold the fields {', '.join(f.name for f in fields(cls))}")
        return cls(
            text_columns=tuple(columns),
            label_column=values["label_column"],
            template=values["template"],
            labels=tuple(labels),
            max_length=numbers[0],
            end_token_id=numbers[1],
            answer_prefix=answer_prefix,
            label_prefix=prefix,
            label_scoring=scoring,
        )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
