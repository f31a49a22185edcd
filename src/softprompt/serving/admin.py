"""Loading and unloading adapters while the server runs; health, readiness and measurements."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..errors import UnknownAdapterError
from .errors import RESPONSES, ApiError, bad_request, unknown_model
from .metrics import Metrics
from .models import show_model
from .schemas.models import LoadRequest, Model, Status, UnloadRequest
from .state import ServerState, State, name_models
from .waiting import in_thread

router = APIRouter()


@router.post("/v1/adapters/load", responses=RESPONSES)
async def load(request: Request, body: LoadRequest, state: State) -> Model:
    """Load an adapter, or another one under the same name; needs --allow_runtime_loading."""
    await in_thread(_load, state, body)
    name_models(request, body.name)
    return await show_model(body.name, state)


@router.post("/v1/adapters/unload", responses=RESPONSES)
async def unload(request: Request, body: UnloadRequest, state: State) -> Status:
    """Unload an adapter; needs --allow_runtime_loading."""
    _root(state)
    try:
        await in_thread(state.library.remove, body.name)
    except UnknownAdapterError:
        raise unknown_model(body.name, state.library.names) from None
    return Status(status="ok")


def _load(state: ServerState, body: LoadRequest) -> None:
    folder = _folder(_root(state), body.path)
    if body.name == state.base_id:
        raise bad_request(f"{body.name!r} is the name of the base model; choose another one", "name")
    try:
        state.library.add(body.name, folder)
    except OSError as error:
        raise bad_request(f"the folder {body.path!r} cannot be read: {error.strerror}", "path") from None


def _folder(root: Path, path: str) -> str:
    """A folder below the root, with symbolic links resolved.

    Raises:
        ApiError: it is not below the root, or there is none.
    """
    try:
        folder = os.path.realpath(root / path)
    except ValueError:  # NUL, or half of a surrogate pair
        raise bad_request("path has a character that cannot be in a path", "path") from None
    if Path(os.path.realpath(root)) not in Path(folder).parents:
        raise ApiError(403, "path is not below the server's root of adapters", param="path", code="path_not_allowed")
    if not os.path.isdir(folder):
        raise bad_request(f"there is no folder {path!r} below the server's root of adapters", "path")
    return folder


def _root(state: ServerState) -> Path:
    """The folder below which adapters may be loaded.

    Raises:
        ApiError: none may be.
    """
    if state.options.allow_runtime_loading is None:
        message = "this server does not load or unload adapters while it runs; --allow_runtime_loading allows it"
        raise ApiError(403, message, code="runtime_loading_not_allowed")
    return state.options.allow_runtime_loading


@router.get("/health", responses=RESPONSES)
async def health(state: State) -> Status:
    """Whether the process answers."""
    return Status(status=state.phase)


@router.get("/ready", responses=RESPONSES)
async def ready(state: State) -> Status:
    """Whether the server takes requests."""
    if state.phase != "ok":
        raise ApiError(503, f"the server is {state.phase}", code="unavailable")
    return Status(status=state.phase)


@router.get("/metrics", response_class=Response, responses={**RESPONSES, 200: {"content": {"text/plain": {}}}})
async def metrics(state: State) -> Response:
    """Measurements for Prometheus."""
    return Response(state.metrics.text(), media_type=Metrics.content_type)
