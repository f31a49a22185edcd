"""Requests over loopback: a fixed number in flight, each sent when an earlier one is answered."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, NamedTuple

from ...errors import TrainingError


class Request(NamedTuple):
    """A path and the JSON to post there."""

    path: str
    body: dict[str, Any]


class Reply(NamedTuple):
    """The JSON of an answer, and the seconds until it was complete."""

    content: Any
    seconds: float


def post_all(address: str, requests: Sequence[Request], concurrency: int) -> list[Reply]:
    """Post requests with ``concurrency`` connections, and return the replies in order.

    Raises:
        TrainingError: a request failed.
    """
    replies: list[Reply | None] = [None] * len(requests)
    numbers = count()

    def work(_: int) -> None:
        connection = http.client.HTTPConnection(address)
        while (number := next(numbers)) < len(requests):
            replies[number] = _post(connection, requests[number])
        connection.close()

    with ThreadPoolExecutor(concurrency) as threads:
        list(threads.map(work, range(concurrency)))
    return [reply for reply in replies if reply is not None]


def _post(connection: http.client.HTTPConnection, request: Request) -> Reply:
    started = time.perf_counter()
    connection.request("POST", request.path, json.dumps(request.body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    content = json.loads(response.read())
    if response.status != 200:
        raise TrainingError(f"{request.path} answered {response.status}: {content}")
    return Reply(content, time.perf_counter() - started)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Latencies in milliseconds at which 50, 95 and 99% of requests were answered."""
    ordered = sorted(seconds)
    return {f"p{share}": 1000 * ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (50, 95, 99)}
