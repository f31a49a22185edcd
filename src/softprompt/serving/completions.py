"""``POST /v1/completions``."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..inference.continuous import Completion as Generated
from ..inference.library_adapter import Adapter
from ..inference.sampling import Sampling
from ..inference.text_stream import TokenLogprob
from ..types import Example
from .errors import RESPONSES, bad_request
from .jobs import LabelJob, TextJob
from .schemas.common import SamplingParameters, Text, Usage, listed
from .schemas.completions import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest, LabelAnswer
from .state import ServerState, State, name_models
from .streams import DONE, EventStream, Parts, event
from .tasks import answers_with, encode_for_label, end_token_ids, room_for_answer
from .waiting import finish, in_thread, submit

router = APIRouter()
STREAM: dict[str, Any] = {"content": {"text/event-stream": {}}, "description": "JSON, or with stream events of JSON."}

SMALLEST_TEMPERATURE = 1e-5
"""Below it, probabilities overflow, and the most probable token has all of the probability anyway."""


class _Rows(NamedTuple):
    """The texts of a request as token ids."""

    adapter: Adapter | None
    by_label: bool
    examples: list[Example]

    @property
    def num_tokens(self) -> int:
        return sum(len(example.input_ids) for example in self.examples)


@router.post("/v1/completions", response_model=Completion, responses={**RESPONSES, 200: STREAM})
async def complete(request: Request, body: CompletionRequest, state: State) -> Any:
    """Continue texts under the prompt of an adapter, or without one."""
    texts = listed(body.prompt)
    state.check_number(len(texts), "prompt")
    rows = await in_thread(_encode, request, state, body, texts)
    head = Completion(id=f"cmpl-{uuid.uuid4().hex}", created=int(time.time()), model=body.model, choices=[])
    if rows.by_label:
        return await _answer_with_labels(request, state, body, rows, head)
    if body.stream:
        return _stream(state, body, rows, head)
    found = await finish(request, state, _jobs(state, body, rows))
    head.choices = [_choice(number, rows, each) for number, each in enumerate(found)]
    return _with_usage(state, head, rows, found)


def _encode(request: Request, state: ServerState, body: CompletionRequest, texts: Sequence[Text]) -> _Rows:
    """The model and the tokens of a request.

    Raises:
        ApiError, SoftPromptError: it cannot be answered.
    """
    adapter = state.find(body.model)
    name_models(request, body.model)
    if body.template and adapter is None:
        raise bad_request("the base model has no template; leave template out", "template")
    by_label = adapter is not None and not body.raw and answers_with(adapter) == "label"
    examples = [_example(state, body, adapter, text, by_label, number) for number, text in enumerate(texts)]
    return _Rows(adapter, by_label, examples)


def _example(
    state: ServerState, body: CompletionRequest, adapter: Adapter | None, text: Text, by_label: bool, number: int
) -> Example:
    if body.template and adapter is not None:
        wanted = 0 if by_label else body.max_tokens or adapter.max_new_tokens
        return adapter.encode(text, f"prompt {number}", max_new_tokens=wanted)
    if not isinstance(text, str):
        raise bad_request("the columns of a row need template: true", "prompt")
    if by_label and adapter is not None:
        return encode_for_label(state.library, adapter, text)
    return Example(state.library.encode_raw(text), ())


def sampling_of(
    state: ServerState,
    body: SamplingParameters,
    adapter: Adapter | None,
    num_tokens: int,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    chat: bool = False,
) -> Sampling:
    """How tokens are chosen after a text of ``num_tokens``.

    Raises:
        ApiError: the context has no room for the completion.
    """
    most = state.options.max_completion_tokens
    return Sampling(
        max_new_tokens=room_for_answer(state.library, adapter, num_tokens, max_tokens, most),
        temperature=body.temperature if body.temperature and body.temperature > SMALLEST_TEMPERATURE else 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        seed=body.seed,
        stop=body.stop_texts,
        logprobs=logprobs,
        end_token_ids=end_token_ids(state.library, adapter, chat=chat),
    )


def _jobs(state: ServerState, body: CompletionRequest, rows: _Rows, parts: Parts | None = None) -> list[TextJob]:
    jobs = []
    for number, example in enumerate(rows.examples):
        ids = example.input_ids
        sampling = sampling_of(state, body, rows.adapter, len(ids), max_tokens=body.max_tokens, logprobs=body.logprobs)
        jobs.append(TextJob(rows.adapter, ids, sampling, None if parts is None else parts.listener(number)))
    return jobs


def _choice(number: int, rows: _Rows, found: Generated) -> CompletionChoice:
    return CompletionChoice(
        index=number,
        text=found.text,
        finish_reason=found.finish_reason,
        logprobs=None if found.logprobs is None else _logprobs(found.logprobs),
        truncated=rows.examples[number].num_cut > 0,
    )


def _logprobs(tokens: Sequence[TokenLogprob]) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=[each.token for each in tokens],
        token_logprobs=[each.logprob for each in tokens],
        top_logprobs=[dict(each.top) for each in tokens],
        text_offset=[each.offset for each in tokens],
    )


def _with_usage(state: ServerState, head: Completion, rows: _Rows, found: Sequence[Generated] = ()) -> Completion:
    head.usage = Usage.of(rows.num_tokens, sum(each.num_tokens for each in found))
    state.metrics.add_tokens(head.usage.prompt_tokens, head.usage.completion_tokens)
    return head


# ---- streams


def _stream(state: ServerState, body: CompletionRequest, rows: _Rows, head: Completion) -> Response:
    parts = Parts()
    futures = submit(state, _jobs(state, body, rows, parts))
    return EventStream(_events(state, body, rows, head, parts, futures), futures, state.options.request_timeout)


async def _events(
    state: ServerState, body: CompletionRequest, rows: _Rows, head: Completion, parts: Parts, futures: Sequence[Any]
) -> AsyncIterator[bytes]:
    found = list[Generated]()
    async for index, delta, completion in parts.follow(futures, state.options.request_timeout):
        choice = CompletionChoice(index=index, text="", finish_reason=None)
        choice.truncated = rows.examples[index].num_cut > 0
        if delta is not None:
            choice.text = delta.text
            choice.logprobs = None if body.logprobs is None else _logprobs(delta.logprobs)
        if completion is not None:
            choice.finish_reason = completion.finish_reason
            found.append(completion)
        yield event(head.model_copy(update={"choices": [choice]}))
    total = _with_usage(state, head, rows, found)
    if body.includes_usage:
        yield event(total)
    yield DONE


# ---- labels


async def _answer_with_labels(
    request: Request, state: ServerState, body: CompletionRequest, rows: _Rows, head: Completion
) -> Any:
    assert rows.adapter is not None
    found = await finish(request, state, [LabelJob(rows.adapter, example) for example in rows.examples])
    head.choices = [_label_choice(number, rows, each) for number, each in enumerate(found)]
    total = _with_usage(state, head, rows)
    if not body.stream:
        return total
    return EventStream(_label_events(body, total), (), state.options.request_timeout)


def _label_choice(number: int, rows: _Rows, probabilities: Sequence[float]) -> CompletionChoice:
    assert rows.adapter is not None
    probability, label = max(zip(probabilities, rows.adapter.task.labels, strict=True))
    answer = LabelAnswer(label=label, probability=probability)
    cut = rows.examples[number].num_cut > 0
    return CompletionChoice(index=number, text=label, finish_reason="stop", logprobs=None, answer=answer, truncated=cut)


async def _label_events(body: CompletionRequest, total: Completion) -> AsyncIterator[bytes]:
    yield event(total.model_copy(update={"usage": None}))
    if body.includes_usage:
        yield event(total.model_copy(update={"choices": []}))
    yield DONE
