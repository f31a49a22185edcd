"""The task of a prompt: how a row becomes text, and the labels.

The adapter folder holds it as ``task.json``, so that texts are rendered as in training. PEFT ignores the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt

from ..errors import DataError
from ..storage.atomic import read_json, write_json
from ..storage.validation import validated
from .template import is_missing

TASK_NAME = "task.json"
_OLD_NAMES = {"cue": "answer_prefix"}  # old name
"""Fields as version 0.1 wrote them; still read."""
LabelScoring = Literal["text", "unique_prefix"]


@dataclass(frozen=True, slots=True)
class Task:
    """How a row becomes text, and the labels.

    Attributes:
        text_columns: columns that hold the text.
        label_column: column of the label.
        template: text with ``{column}`` fields, resolved by ``template.resolve_template``.
        labels: the classes in a fixed order; empty for a generation task.
        max_length: most tokens of text and label together; ``None`` for the model's context.
        end_token_id: id that ends every label; ``None`` if the tokenizer has none.
        answer_prefix: text between the input and the label, such as ``Label:``; empty for a suffix prompt.
        label_prefix: text before every label: a space if the template does not end in whitespace.
        label_scoring: the label candidates: the whole ``text`` of each label, or its ``unique_prefix``, the shortest
            token prefix that no other label has.
    """

    text_columns: Annotated[tuple[str, ...], Field(min_length=1)]
    label_column: str
    template: str
    labels: tuple[str, ...] = ()
    max_length: NonNegativeInt | None = None
    end_token_id: NonNegativeInt | None = None
    answer_prefix: str = ""
    label_prefix: str = ""
    label_scoring: LabelScoring = "text"

    @property
    def is_classification(self) -> bool:
        """Whether the task has labels."""
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
        """Check that a row has a text in its text column, or in at least one of several.

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
        values = {_OLD_NAMES.get(name, name): value for name, value in read_json(path).items() if value is not None}
        if values.get("label_scoring") == "start":  # version 0.1
            values["label_scoring"] = "unique_prefix"
        return validated(cls, values, path)
