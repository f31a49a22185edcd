"""Chat completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)
from pydantic_core import PydanticCustomError

from .common import FinishReason, Only, RequestBody, SamplingParameters, Usage

MAX_TOP_LOGPROBS = 20


class TextPart(RequestBody):
    """A part of a message."""

    type: Literal["text"]
    text: str


def _content(value: Any) -> Any:
    parts = value if isinstance(value, list) else []
    are_texts = all(isinstance(part, dict) and part.get("type") == "text" and len(part) == 2 for part in parts)
    if not isinstance(value, str | list) or not are_texts:
        raise PydanticCustomError("content", "must be a text, or a list of parts of the type text")
    return value


class Message(RequestBody):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | list[TextPart], BeforeValidator(_content)]
    name: Annotated[Any, Only(None)] = None
    refusal: Annotated[Any, Only(None)] = None
    tool_calls: Annotated[Any, Only(None, [])] = None
    function_call: Annotated[Any, Only(None)] = None
    audio: Annotated[Any, Only(None)] = None
    annotations: Annotated[Any, Only(None, [])] = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(SamplingParameters):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, description="By default 64, or less in a short context.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens.")
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: Annotated[Any, Only({"type": "text"}, None)] = None
    modalities: Annotated[Any, Only(["text"], None)] = None
    tools: Annotated[Any, Only([], None)] = None
    tool_choice: Annotated[Any, Only("none", "auto", None)] = None
    functions: Annotated[Any, Only([], None)] = None
    function_call: Annotated[Any, Only("none", "auto", None)] = None

    @property
    def limit(self) -> int | None:
        """Most tokens of the answer, under either name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @field_validator("top_logprobs")
    @classmethod
    def _of_logprobs(cls, value: int | None, others: ValidationInfo) -> int | None:
        if value is not None and not others.data.get("logprobs"):
            raise PydanticCustomError("top_logprobs", "needs logprobs: true")
        return value


class TopLogprob(BaseModel):
    """A token, its log-probability, and its UTF-8 bytes."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    """A token of the answer, with its alternatives."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of the tokens of an answer."""

    content: list[ChatLogprob]


class Answer(BaseModel):
    """The message of the model."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """The answer."""

    index: int = 0
    message: Answer
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None = None


class ChatCompletion(BaseModel):
    """The response of ``POST /v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class AnswerDelta(BaseModel):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None

    @model_serializer(mode="wrap")
    def _without_nulls(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}


class ChatChunkChoice(BaseModel):
    """A part of the answer."""

    index: int = 0
    delta: AnswerDelta
    finish_reason: FinishReason | None = None
    logprobs: ChatLogprobs | None = None


class ChatChunk(BaseModel):
    """A chunk of the stream of ``POST /v1/chat/completions``."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
