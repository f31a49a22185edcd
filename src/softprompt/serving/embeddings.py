"""``POST /v1/embeddings``: mean hidden states of texts under the prompt of an adapter."""

from __future__ import annotations

import base64
import struct

from fastapi import APIRouter, Request

from ..inference.library_adapter import Adapter
from ..types import Example
from .errors import RESPONSES, bad_request
from .jobs import StatesJob
from .schemas.classification import Embedding, EmbeddingList, EmbeddingRequest
from .schemas.common import Text, Usage, listed
from .state import ServerState, State, name_models
from .waiting import finish, in_thread

router = APIRouter()


@router.post("/v1/embeddings", responses=RESPONSES)
async def embed(request: Request, body: EmbeddingRequest, state: State) -> EmbeddingList:
    """Turn texts into vectors of unit length."""
    adapter, examples = await in_thread(_encode, request, state, body)
    found = await finish(request, state, [StatesJob(adapter, example) for example in examples])
    usage = Usage.of(sum(len(example.input_ids) for example in examples))
    state.metrics.add_tokens(usage.prompt_tokens)
    form = _base64 if body.encoding_format == "base64" else list
    data = [Embedding(index=index, embedding=form(vector)) for index, vector in enumerate(found)]
    return EmbeddingList(data=data, model=body.model, usage=usage)


def _encode(request: Request, state: ServerState, body: EmbeddingRequest) -> tuple[Adapter | None, list[Example]]:
    """The model and the tokens of a request.

    Raises:
        ApiError, SoftPromptError: it cannot be answered.
    """
    texts = listed(body.input)
    state.check_number(len(texts), "input")
    adapter = state.find(body.model)
    name_models(request, body.model)
    return adapter, [_example(state, adapter, text, f"input {index}") for index, text in enumerate(texts)]


def _example(state: ServerState, adapter: Adapter | None, text: Text, where: str) -> Example:
    """A text by the template of the adapter; as it is for the base model, which has none."""
    if adapter is not None:
        return adapter.encode(text, where)
    if not isinstance(text, str):
        raise bad_request("the base model has no columns; send a text", "input")
    ids = state.library.encode_raw(text)
    if not ids:
        raise bad_request(f"{where} has no tokens", "input")
    state.library.check_length(len(ids), 0)
    return Example(ids, ())


def _base64(vector: list[float]) -> str:
    """Little-endian float32, which OpenAI's client asks for."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
