"""Requests over loopback: a fixed number in flight, each sent when an earlier one is answered."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, NamedTuple

from ...errors import TrainingError


class ServerProcess:
    """A server in a process of its own.

    Args:
        arguments: of Python; the program prints a line that ends with the server's URL when it is ready.
        num_threads: CPU threads of torch.

    Attributes:
        address: host and port.

    Raises:
        TrainingError: the server does not start.
    """

    def __init__(self, arguments: Sequence[str], num_threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads)}
        self._process = subprocess.Popen(
            [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if "http://" not in line:
            error = (self._process.communicate()[1].strip().splitlines() or ["no message"])[-1]
            raise TrainingError(f"the server did not start: {error}")
        self.address = line.strip().rpartition("http://")[2]

    def stop(self) -> None:
        """Stop the server."""
        self._process.terminate()
        self._process.communicate()


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
