"""Server-sent events: completions as they are generated."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any, NamedTuple

import anyio
from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ..inference.continuous import Completion
from ..inference.text_stream import Delta
from .errors import ApiError, internal_error
from .waiting import stopping, timed_out

_log = logging.getLogger(__name__)
DONE = b"data: [DONE]\n\n"


def event(data: BaseModel) -> bytes:
    """A server-sent event that holds JSON."""
    return f"data: {data.model_dump_json()}\n\n".encode()


class EventStream(StreamingResponse):
    """A stream of events, which cancels its jobs when it ends, however it ends.

    Args:
        events: the events.
        futures: of the jobs.
        timeout: seconds for the whole stream, after which it is cut off, for a client that does not read.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], futures: Sequence[Future[Any]], timeout: float) -> None:
        super().__init__(_with_error(events))
        self._futures, self._timeout = futures, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            with anyio.move_on_after(self._timeout + 1):  # the events end before, with an error
                await super().__call__(scope, receive, send)
        finally:
            for future in self._futures:
                future.cancel()


async def _with_error(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events; an error becomes the last one, since the status was sent already."""
    try:
        async for each in events:
            yield each
    except ApiError as error:
        yield event(error.body)
    except CancelledError:
        yield event(stopping().body)
    except Exception:
        _log.exception("a stream failed")
        yield event(internal_error().body)


class Part(NamedTuple):
    """A part of a completion: new text, or at its end the whole completion."""

    number: int
    delta: Delta | None
    completion: Completion | None = None


class Parts:
    """The parts of several completions in the order in which they come from the model's thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Delta | Future[Completion]]] = asyncio.Queue()

    def listener(self, index: int) -> Callable[[Delta], None]:
        """The function that is called in the model's thread with new text of a completion."""
        return partial(self._put, index)

    async def follow(self, futures: Sequence[Future[Completion]], timeout: float) -> AsyncIterator[Part]:
        """The parts, until all completions have ended.

        Raises:
            ApiError: the time is up.
        """
        for index, future in enumerate(futures):
            future.add_done_callback(partial(self._put, index))
        running, end = len(futures), self._loop.time() + timeout
        while running:
            try:
                index, found = await asyncio.wait_for(self._queue.get(), end - self._loop.time())
            except asyncio.TimeoutError:
                raise timed_out(timeout) from None
            if isinstance(found, Delta):
                yield Part(index, found)
            else:
                running -= 1
                yield Part(index, None, found.result())

    def _put(self, index: int, part: Delta | Future[Completion]) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, part))
