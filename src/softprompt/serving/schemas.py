"""Requests and responses: the names and shapes of OpenAI's API, and what is added to them.

A request with an unknown parameter is refused. Parameters of OpenAI that are not supported are listed, so that they may
have the value that means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_serializer,
)
from pydantic_core import PydanticCustomError

Cell = str | int | float | bool | None
Columns = dict[str, Cell]
"""The columns of a row."""
Text = str | Columns
"""A text, or the columns of a row for an adapter with several text columns."""
MAX_STOP = 4
MAX_LOGPROBS = 5
MAX_TOP_LOGPROBS = 20


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _only(*values: Any) -> Any:
    """The type of a parameter that is not supported and may only have one of these values."""

    def check(value: Any) -> Any:
        if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in values):
            raise PydanticCustomError("unsupported_parameter", "this value is not supported; leave the parameter out")
        return value

    return Annotated[Any, AfterValidator(check), WithJsonSchema({"enum": list(values)})]


def _texts(message: str) -> Callable[[Any], Any]:
    """Check that a value is a text or an object, or a list of these; one error instead of one for each type."""

    def check(value: Any) -> Any:
        items = value if isinstance(value, list) else [value]
        if items and all(isinstance(item, int | list) and not isinstance(item, bool) for item in items):
            raise PydanticCustomError("token_ids", "token ids are not supported; send text")
        if not items or not all(isinstance(item, str | dict) for item in items):
            raise PydanticCustomError("texts", message)
        if len({type(item) for item in items}) > 1:
            raise PydanticCustomError("texts", "must not mix texts and objects")
        cells = [cell for item in items if isinstance(item, dict) for cell in item.values()]
        if not all(isinstance(cell, Cell) and cell not in (math.inf, -math.inf) and cell == cell for cell in cells):
            raise PydanticCustomError("texts", "has a column that is neither a text nor a number")
        return value

    return check


Texts = Annotated[
    str | Columns | Annotated[list[str], Field(min_length=1)] | Annotated[list[Columns], Field(min_length=1)],
    BeforeValidator(_texts("must be a text or an object of columns, or a list of these that is not empty")),
]


def listed(texts: str | Columns | list[str] | list[Columns]) -> list[Text]:
    """One or several texts as a list."""
    return [*texts] if isinstance(texts, list) else [texts]


# ---- models


class TaskInfo(BaseModel):
    """The task of an adapter."""

    kind: Literal["classification", "generation"]
    labels: list[str]
    text_columns: list[str]
    template: str
    answers_with: Literal["label", "text"] = Field(description="What /v1/completions returns.")
    num_virtual_tokens: int
    prompt_placement: Literal["prefix", "suffix"]
    linear_probe: bool
    ensemble: int = Field(description="Number of prompts of the ensemble; 0 without one.")


class Model(BaseModel):
    """The base model or an adapter."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["base", "softprompt"]
    parent: str | None = Field(None, description="The base model of an adapter.")
    problem: str | None = Field(None, description="Why the adapter's folder cannot be read now.")
    task: TaskInfo | None = None


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[Model]


class NearestToken(BaseModel):
    """A token of the vocabulary and its cosine similarity with a virtual token."""

    token: str
    similarity: float


class AdapterDetails(BaseModel):
    """What a prompt looks like, and how it was trained."""

    name: str
    nearest: list[list[NearestToken]] = Field(description="Nearest tokens of each virtual token.")
    log: list[dict[str, Any]] = Field(description="Rows of log.jsonl.")
    metrics: dict[str, Any] | None = Field(description="metrics.json.")


# ---- parts of requests


class StreamOptions(_Request):
    """Options of a stream."""

    include_usage: bool = Field(False, description="End the stream with a chunk that holds the usage.")


def _stop(value: Any) -> Any:
    items = value if isinstance(value, list) else [] if value is None else [value]
    if len(items) > MAX_STOP or not all(isinstance(item, str) and item for item in items):
        raise PydanticCustomError("stop", f"must be a text or a list of at most {MAX_STOP} texts, none of them empty")
    return value


_NonEmpty = Annotated[str, Field(min_length=1)]
Stop = Annotated[_NonEmpty | Annotated[list[_NonEmpty], Field(max_length=MAX_STOP)] | None, BeforeValidator(_stop)]


class SamplingParameters(_Request):
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
    n: _only(1, None) = 1  # type: ignore[valid-type]
    presence_penalty: _only(0, None) = 0  # type: ignore[valid-type]
    frequency_penalty: _only(0, None) = 0  # type: ignore[valid-type]
    logit_bias: _only({}, None) = None  # type: ignore[valid-type]

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


# ---- completions


class CompletionRequest(SamplingParameters):
    """``POST /v1/completions``."""

    prompt: Texts = Field(description="A text, or several; with template, also the columns of a row, or of several.")
    template: bool = Field(False, description="Put the text into the template of the adapter's task.")
    max_tokens: int | None = Field(None, ge=1, description="By default 64, or less in a short context.")
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: _only(False, None) = False  # type: ignore[valid-type]
    suffix: _only("", None) = None  # type: ignore[valid-type]
    best_of: _only(1, None) = None  # type: ignore[valid-type]


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


# ---- chat


class TextPart(_Request):
    """A part of a message."""

    type: Literal["text"]
    text: str


def _content(value: Any) -> Any:
    parts = value if isinstance(value, list) else []
    are_texts = all(isinstance(part, dict) and part.get("type") == "text" and len(part) == 2 for part in parts)
    if not isinstance(value, str | list) or not are_texts:
        raise PydanticCustomError("content", "must be a text, or a list of parts of the type text")
    return value


class Message(_Request):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | list[TextPart], BeforeValidator(_content)]
    name: _only(None) = None  # type: ignore[valid-type]
    refusal: _only(None) = None  # type: ignore[valid-type]
    tool_calls: _only(None, []) = None  # type: ignore[valid-type]
    function_call: _only(None) = None  # type: ignore[valid-type]
    audio: _only(None) = None  # type: ignore[valid-type]
    annotations: _only(None, []) = None  # type: ignore[valid-type]

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
    response_format: _only({"type": "text"}, None) = None  # type: ignore[valid-type]
    modalities: _only(["text"], None) = None  # type: ignore[valid-type]
    tools: _only([], None) = None  # type: ignore[valid-type]
    tool_choice: _only("none", "auto", None) = None  # type: ignore[valid-type]
    functions: _only([], None) = None  # type: ignore[valid-type]
    function_call: _only("none", "auto", None) = None  # type: ignore[valid-type]

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


# ---- classification and embeddings


def _model_names(value: Any) -> Any:
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise PydanticCustomError("models", "must be the name of an adapter, or a list of names that is not empty")
    if len(set(names)) < len(names):
        raise PydanticCustomError("models", "must name each adapter once")
    return value


class ClassifyRequest(_Request):
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


class EmbeddingRequest(_Request):
    """``POST /v1/embeddings``."""

    model: str = Field(min_length=1, description="An adapter, or the base model.")
    input: Texts = Field(description="A text or the columns of a row, or a list of these.")
    encoding_format: Literal["float", "base64"] | None = "float"
    user: str | None = Field(None, description="Ignored.")
    dimensions: _only(None) = None  # type: ignore[valid-type]


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


# ---- administration


class LoadRequest(_Request):
    """``POST /v1/adapters/load``."""

    name: str = Field(min_length=1, max_length=200)
    path: str = Field(min_length=1, description="The adapter's folder, relative to the server's root of adapters.")


class UnloadRequest(_Request):
    """``POST /v1/adapters/unload``."""

    name: str = Field(min_length=1)


class Status(BaseModel):
    """The state of the server."""

    status: Literal["ok", "loading", "draining"]
