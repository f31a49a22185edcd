"""Values that were read from a file, checked against a type."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..errors import AdapterError, SoftPromptError

T = TypeVar("T")


def validated(kind: type[T], values: Mapping[str, Any], path: Path, error: type[SoftPromptError] = AdapterError) -> T:
    """A dataclass or a typed dictionary with the values of a JSON object; unknown keys are ignored.

    Nothing is converted except lists to tuples and whole numbers to floats: the text ``"5"`` is no number.

    Args:
        path: of the file, for messages.
        error: class of the error.

    Raises:
        SoftPromptError: of the class ``error``, if a field is missing or has the wrong type.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as found:
        first = found.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        given = "" if first["type"] == "missing" else f", not {first['input']!r:.80}"
        problem = first["msg"][0].lower() + first["msg"][1:]
        raise error(f"{path} is damaged: {field}: {problem}{given}") from None
