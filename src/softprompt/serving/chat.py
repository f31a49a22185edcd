"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request

from ..inference.continuous import Completion as Generated
from ..inference.library_adapter import Adapter
from ..inference.text_stream import TokenLogprob
from .chat_template import Turn, chat_ids, has_chat_template
from .completions import STREAM, sampling_of
from .errors import RESPONSES, bad_request
from .jobs import TextJob
from .schemas.chat import (
    Answer,
    AnswerDelta,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprob,
    ChatLogprobs,
    ChatRequest,
    TopLogprob,
)
from .schemas.common import Usage
from .state import ServerState, State, name_models
from .streams import DONE, EventStream, Parts, event
from .tasks import answers_with
from .waiting import finish, in_thread, submit

router = APIRouter()


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses={**RESPONSES, 200: STREAM})
async def chat(request: Request, body: ChatRequest, state: State) -> Any:
    """Answer a conversation, under the prompt of an adapter or without one."""
    adapter, ids = await in_thread(_encode, request, state, body)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    sampling = sampling_of(state, body, adapter, len(ids), max_tokens=body.limit, logprobs=logprobs, chat=True)
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
    if body.stream:
        parts = Parts()
        futures = submit(state, [TextJob(adapter, ids, sampling, parts.listener(0))])
        timeout = state.options.request_timeout
        return EventStream(_events(state, body, head, len(ids), parts, futures), futures, timeout)
    [found] = await finish(request, state, [TextJob(adapter, ids, sampling, None)])
    message, logs = Answer(content=found.text), _logprobs(found.logprobs)
    choice = ChatChoice(message=message, finish_reason=found.finish_reason, logprobs=logs)
    return ChatCompletion(**head, choices=[choice], usage=_usage(state, len(ids), found))


def _encode(request: Request, state: ServerState, body: ChatRequest) -> tuple[Adapter | None, tuple[int, ...]]:
    """The model and the tokens of a request.

    Raises:
        ApiError, SoftPromptError: it cannot be answered.
    """
    adapter = state.find(body.model)
    name_models(request, body.model)
    if adapter is not None and not body.raw and answers_with(adapter) == "label":
        message = f"{body.model!r} answers with a label, not in a chat; use /v1/classify or /v1/completions"
        raise bad_request(message, "model")
    tokenizer = state.library.tokenizer if adapter is None else adapter.loaded.tokenizer
    if not has_chat_template(tokenizer):
        message = f"the base model {state.base_id} has no chat template; use /v1/completions with a prompt instead"
        raise bad_request(message, "messages", "no_chat_template")
    turns = [Turn("system" if each.role == "developer" else each.role, each.text) for each in body.messages]
    return adapter, chat_ids(tokenizer, turns)


def _usage(state: ServerState, num_tokens: int, found: Generated) -> Usage:
    state.metrics.add_tokens(num_tokens, found.num_tokens)
    return Usage.of(num_tokens, found.num_tokens)


def _logprobs(tokens: Sequence[TokenLogprob] | None) -> ChatLogprobs | None:
    if tokens is None:
        return None
    content = []
    for each in tokens:
        top = [TopLogprob(**_token(token, logprob)) for token, logprob in each.top]
        content.append(ChatLogprob(**_token(each.token, each.logprob), top_logprobs=top))
    return ChatLogprobs(content=content)


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


async def _events(
    state: ServerState, body: ChatRequest, head: dict[str, Any], num_tokens: int, parts: Parts, futures: Sequence[Any]
) -> AsyncIterator[bytes]:
    def chunk(delta: AnswerDelta, **values: Any) -> bytes:
        return event(ChatChunk(**head, choices=[ChatChunkChoice(delta=delta, **values)]))

    yield chunk(AnswerDelta(role="assistant", content=""))
    usage = None
    async for _, delta, completion in parts.follow(futures, state.options.request_timeout):
        if delta is not None:
            logprobs = _logprobs(delta.logprobs) if body.logprobs else None
            yield chunk(AnswerDelta(content=delta.text), logprobs=logprobs)
        if completion is not None:
            usage = _usage(state, num_tokens, completion)
            yield chunk(AnswerDelta(), finish_reason=completion.finish_reason)
    if body.includes_usage:
        yield event(ChatChunk(**head, choices=[], usage=usage))
    yield DONE
