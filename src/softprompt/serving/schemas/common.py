"""Parts that several requests and responses have.

A request with an unknown parameter is refused. Parameters of OpenAI that are not supported are listed, so that they may
have the value that means nothing.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError, core_schema

Cell = str | int | float | bool | None
Columns = dict[str, Cell]
"""The columns of a row."""
Text = str | Columns
"""A text, or the columns of a row for an adapter with several text columns."""
MAX_STOP = 4


class RequestBody(BaseModel):
    """Base class of requests, which refuses unknown parameters."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Only:
    """Marks a parameter that is not supported, and may only have one of some values, which mean nothing."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def check(self, value: Any) -> Any:
        """The value, if it is allowed."""
        if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in self.values):
            raise PydanticCustomError("unsupported_parameter", "this value is not supported; leave the parameter out")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"enum": list(self.values)}


def _checked_texts(value: Any) -> Any:
    """Check a text or an object, or a list of these, for one error instead of one for each type."""
    items = value if isinstance(value, list) else [value]
    if items and all(isinstance(item, int | list) and not isinstance(item, bool) for item in items):
        raise PydanticCustomError("token_ids", "token ids are not supported; send text")
    if not items or not all(isinstance(item, str | dict) for item in items):
        raise PydanticCustomError("texts", "must be a text or an object of columns, or a list of these, not empty")
    if len({type(item) for item in items}) > 1:
        raise PydanticCustomError("texts", "must not mix texts and objects")
    cells = [cell for item in items if isinstance(item, dict) for cell in item.values()]
    if not all(isinstance(cell, Cell) and not (isinstance(cell, float) and not math.isfinite(cell)) for cell in cells):
        raise PydanticCustomError("texts", "has a column that is neither a text nor a number")
    return value


Texts = Annotated[
    str | Columns | Annotated[list[str], Field(min_length=1)] | Annotated[list[Columns], Field(min_length=1)],
    BeforeValidator(_checked_texts),
]


def listed(texts: str | Columns | list[str] | list[Columns]) -> list[Text]:
    """One or several texts as a list."""
    return [*texts] if isinstance(texts, list) else [texts]


class StreamOptions(RequestBody):
    """Options of a stream."""

    include_usage: bool = Field(False, description="End the stream with a chunk that holds the usage.")


def _stop(value: Any) -> Any:
    items = value if isinstance(value, list) else [] if value is None else [value]
    if len(items) > MAX_STOP or not all(isinstance(item, str) and item for item in items):
        raise PydanticCustomError("stop", f"must be a text or a list of at most {MAX_STOP} texts, none of them empty")
    return value


_NonEmpty = Annotated[str, Field(min_length=1)]
Stop = Annotated[_NonEmpty | Annotated[list[_NonEmpty], Field(max_length=MAX_STOP)] | None, BeforeValidator(_stop)]


class SamplingParameters(RequestBody):
    """Parameters of both completion routes."""

    model: str = Field(min_length=1, description="An adapter, or the base model.")
    temperature: float | None = Field(0.0, ge=0, le=2, description="0 takes the most probable token (greedy).")
    top_p: float | None = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(0, ge=0, description="Sample from the K most probable tokens; 0 for all.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop = Field(None, description="Texts that end the completion; they are not part of it.")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    raw: bool = Field(False, description="Generate a text, even if the adapter answers with a label.")
    user: str | None = Field(None, description="Ignored.")
    n: Annotated[Any, Only(1, None)] = 1
    presence_penalty: Annotated[Any, Only(0, None)] = 0
    frequency_penalty: Annotated[Any, Only(0, None)] = 0
    logit_bias: Annotated[Any, Only({}, None)] = None

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The texts that end the completion."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        """Whether the stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @field_validator("stream_options")
    @classmethod
    def _of_a_stream(cls, value: StreamOptions | None, others: ValidationInfo) -> StreamOptions | None:
        if value is not None and not others.data.get("stream"):
            raise PydanticCustomError("stream_options", "needs stream: true")
        return value


class Usage(BaseModel):
    """Tokens of texts, virtual tokens not counted."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int = 0) -> Usage:
        """The usage with its total."""
        total = prompt_tokens + completion_tokens
        return cls(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, total_tokens=total)


FinishReason = Literal["stop", "length"]
