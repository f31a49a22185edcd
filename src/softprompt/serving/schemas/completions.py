"""Completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from .common import FinishReason, Only, SamplingParameters, Texts, Usage

MAX_LOGPROBS = 5


class CompletionRequest(SamplingParameters):
    """``POST /v1/completions``."""

    prompt: Texts = Field(description="A text, or several; with template, also the columns of a row, or of several.")
    template: bool = Field(False, description="Put the text into the template of the adapter's task.")
    max_tokens: int | None = Field(None, ge=1, description="By default 64, or less in a short context.")
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: Annotated[Any, Only(False, None)] = False
    suffix: Annotated[Any, Only("", None)] = None
    best_of: Annotated[Any, Only(1, None)] = None


class CompletionLogprobs(BaseModel):
    """Log-probabilities of the tokens of a completion; offsets count the characters of its text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class LabelAnswer(BaseModel):
    """The answer of an adapter that answers with labels."""

    kind: Literal["label"] = "label"
    label: str
    probability: float


class CompletionChoice(BaseModel):
    """One completion, or a part of it in a stream."""

    index: int
    text: str
    finish_reason: FinishReason | None
    logprobs: CompletionLogprobs | None = None
    answer: LabelAnswer | None = Field(None, description="Set if the text is the most probable label.")
    truncated: bool = Field(False, description="Whether the text was cut to fit, which a template allows.")


class Completion(BaseModel):
    """The response of ``POST /v1/completions``, or a chunk of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
