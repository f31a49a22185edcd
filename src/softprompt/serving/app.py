"""The HTTP application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from ..config.serve_options import ServeOptions
from ..errors import ConfigError
from ..inference.library import PromptLibrary
from ..version import __version__
from . import admin, chat, classify, completions, embeddings, errors, models
from .metrics import Metrics, Observer
from .page import page_router
from .scheduler import Limits, Scheduler
from .security import AccessControl, BodyLimit, read_api_key
from .state import ServerState
from .waiting import in_thread


def create_app(
    library: PromptLibrary, options: ServeOptions, make_scheduler: Callable[..., Scheduler] = Scheduler
) -> FastAPI:
    """The application for the adapters of a library. It starts a scheduler, and stops it when it has drained.

    Args:
        make_scheduler: for benchmarks, a scheduler that computes in another way.

    Raises:
        ConfigError: the API key is malformed, or an adapter has the name of the base model.
    """
    metrics = Metrics()
    scheduler = make_scheduler(library, limits_of(options), metrics.add_round)
    metrics.watch(scheduler)
    state = ServerState(scheduler, library, options, metrics)
    if state.base_id in library.names:
        raise ConfigError(f"an adapter has the name of the base model, {state.base_id!r}; give it another one")
    app = FastAPI(
        title="softprompt",
        version=__version__,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    app.state.server = state
    for module in (models, completions, chat, classify, embeddings, admin):
        app.include_router(module.router)
    app.include_router(page_router())
    errors.install(app)
    api_key = read_api_key(options.api_key_file)
    _describe(app, has_key=api_key is not None)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, max_bytes=options.max_body_bytes, timeout=options.body_timeout)
    hosts = {options.host.lower(), *options.allowed_host}
    app.add_middleware(AccessControl, hosts=hosts, origins=options.allowed_origin, api_key=api_key)
    app.add_middleware(Observer, metrics=metrics)
    return app


def limits_of(options: ServeOptions) -> Limits:
    """The scheduler's limits."""
    return Limits(options.max_queue, options.max_rows, options.max_batch_tokens, options.max_cache_tokens)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: ServerState = app.state.server
    state.scheduler.start()
    state.phase = "ok"
    yield
    state.phase = "draining"
    await in_thread(state.scheduler.stop, drain=True)


def _describe(app: FastAPI, *, has_key: bool) -> None:
    """Name the API key in the OpenAPI schema."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        if has_key:
            schema["components"]["securitySchemes"] = {"api_key": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"api_key": []}]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
