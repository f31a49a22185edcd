"""``POST /v1/classify``: one or several tasks for one or several texts."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import NamedTuple

from fastapi import APIRouter, Request

from ..inference.library_adapter import Adapter
from ..types import Example
from .errors import RESPONSES, bad_request
from .jobs import LabelJob
from .schemas.classification import Classification, ClassifyRequest, ClassifyResponse, LabelProbability
from .schemas.common import Usage, listed
from .state import ServerState, State, name_models
from .waiting import finish, in_thread

router = APIRouter()


class _Row(NamedTuple):
    adapter: Adapter
    number: int
    example: Example


@router.post("/v1/classify", responses=RESPONSES)
async def classify(request: Request, body: ClassifyRequest, state: State) -> ClassifyResponse:
    """Label texts: all texts by the first adapter, then all by the next."""
    names = [body.model] if isinstance(body.model, str) else body.model
    rows = await in_thread(_encode, request, state, body, names)
    found = await finish(request, state, [LabelJob(row.adapter, row.example) for row in rows])
    usage = Usage.of(sum(len(row.example.input_ids) for row in rows))
    state.metrics.add_tokens(usage.prompt_tokens)
    return ClassifyResponse(
        id=f"classify-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=body.model,
        data=[_classification(row, probs, body) for row, probs in zip(rows, found, strict=True)],
        usage=usage,
    )


def _encode(request: Request, state: ServerState, body: ClassifyRequest, names: Sequence[str]) -> list[_Row]:
    """The model and the tokens of a request.

    Raises:
        ApiError, SoftPromptError: it cannot be answered.
    """
    texts = listed(body.input)
    state.check_number(len(texts), "input")
    adapters = [state.find_adapter(name) for name in names]
    name_models(request, *names)
    _check_labels(adapters)
    return [
        _Row(adapter, index, adapter.encode(text, f"input {index}"))
        for adapter in adapters
        for index, text in enumerate(texts)
    ]


def _check_labels(adapters: Sequence[Adapter]) -> None:
    for adapter in adapters:
        if not adapter.task.is_classification:
            message = f"the adapter {adapter.name!r} generates text and has no labels; use /v1/completions"
            raise bad_request(message, "model")


def _classification(row: _Row, probs: list[float], body: ClassifyRequest) -> Classification:
    ranked = sorted(zip(row.adapter.task.labels, probs, strict=True), key=lambda pair: -pair[1])
    label, best = ranked[0]
    top = [LabelProbability(label=label, prob=prob) for label, prob in ranked[: body.top_k]] if body.top_k else None
    return Classification(
        index=row.number,
        model=row.adapter.name,
        label=None if body.abstain_below is not None and best < body.abstain_below else label,
        probs=probs,
        num_classes=len(probs),
        truncated=row.example.num_cut > 0,
        top=top,
    )
