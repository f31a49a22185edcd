"""Work for the model: handing it to the scheduler and waiting for it, while the client may leave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from .errors import ApiError, bad_request
from .jobs import Job
from .scheduler import ClosedError, QueueFullError
from .state import ServerState

RETRY_SECONDS = 1
"""Value of ``Retry-After``."""
P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function that reads files or tokenises texts, off the event loop."""
    return await run_in_threadpool(function, *args, **kwargs)


def submit(state: ServerState, jobs: Sequence[Job]) -> list[Future[Any]]:
    """Queue jobs: all or none.

    Raises:
        ApiError: the queue is full or too short for them, or the server stops.
    """
    if len(jobs) > (most := state.scheduler.limits.max_queue):
        raise bad_request(f"{len(jobs)} results in one request; this server computes at most {most}, so divide it")
    try:
        return state.scheduler.submit(jobs)
    except QueueFullError as error:
        retry = {"Retry-After": str(RETRY_SECONDS)}
        raise ApiError(429, f"the queue is full: {error}", code="queue_full", headers=retry) from None
    except ClosedError:
        raise stopping() from None


async def finish(request: Request, state: ServerState, jobs: Sequence[Job]) -> list[Any]:
    """The results of jobs, in order. Those that nobody waits for any more are cancelled.

    Raises:
        ApiError: see ``submit``; or the time is up, or the client left.
    """
    futures = submit(state, jobs)
    results = asyncio.gather(*map(asyncio.wrap_future, futures))
    results.add_done_callback(_mark_taken)
    gone = asyncio.ensure_future(_client_left(request))
    either: list[asyncio.Future[Any]] = [results, gone]
    try:
        timeout = state.options.request_timeout
        await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if results.done():
            return list(results.result())
        raise left() if gone.done() else timed_out(timeout)
    except asyncio.CancelledError:
        if any(future.cancelled() for future in futures):  # by the scheduler, which does not wait for them
            raise stopping() from None
        raise
    finally:
        gone.cancel()
        results.cancel()
        for future in futures:
            future.cancel()


def _mark_taken(done: asyncio.Future[Any]) -> None:
    """Take the error of results that nobody waits for any more, which asyncio would log otherwise."""
    if not done.cancelled():
        done.exception()


def stopping() -> ApiError:
    """Status 503."""
    return ApiError(503, "the server is stopping", code="unavailable")


def timed_out(seconds: float) -> ApiError:
    """Status 504."""
    return ApiError(504, f"the request took more than {seconds:g} seconds", code="timeout")


def left() -> ApiError:
    """For the metrics, since nobody reads the answer."""
    return ApiError(499, "the client left", code="client_left")


async def _client_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
