"""Classification and embeddings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from .common import Only, RequestBody, Texts, Usage


def _model_names(value: Any) -> Any:
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise PydanticCustomError("models", "must be the name of an adapter, or a list of names that is not empty")
    if len(set(names)) < len(names):
        raise PydanticCustomError("models", "must name each adapter once")
    return value


class ClassifyRequest(RequestBody):
    """``POST /v1/classify``."""

    model: Annotated[
        Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)], BeforeValidator(_model_names)
    ] = Field(description="An adapter with labels, or several.")
    input: Texts = Field(description="A text or the columns of a row, or a list of these.")
    top_k: int | None = Field(None, ge=1, description="Also list the K most probable labels.")
    abstain_below: float | None = Field(None, ge=0, le=1, description="No label below this probability.")
    user: str | None = Field(None, description="Ignored.")


class LabelProbability(BaseModel):
    """A label and its probability."""

    label: str
    prob: float


class Classification(BaseModel):
    """The labels of one text by one adapter."""

    index: int = Field(description="Index of the text.")
    model: str
    label: str | None = Field(description="The most probable label; null below abstain_below.")
    probs: list[float] = Field(description="Probability of each label, in the order of the task's labels.")
    num_classes: int
    truncated: bool = Field(description="Whether the text was cut to fit.")
    top: list[LabelProbability] | None = Field(None, description="The most probable labels, with top_k.")


class ClassifyResponse(BaseModel):
    """The response of ``POST /v1/classify``: all texts of the first adapter, then those of the next."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str | list[str]
    data: list[Classification]
    usage: Usage


class EmbeddingRequest(RequestBody):
    """``POST /v1/embeddings``."""

    model: str = Field(min_length=1, description="An adapter, or the base model.")
    input: Texts = Field(description="A text or the columns of a row, or a list of these.")
    encoding_format: Literal["float", "base64"] | None = "float"
    user: str | None = Field(None, description="Ignored.")
    dimensions: Annotated[Any, Only(None)] = None


class Embedding(BaseModel):
    """The embedding of a text, of unit length."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="Numbers, or little-endian float32 in base64.")


class EmbeddingList(BaseModel):
    """The response of ``POST /v1/embeddings``."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage
