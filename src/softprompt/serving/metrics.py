"""Measurements for Prometheus, and the outermost middleware, which takes them and adds headers to every response."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import internal_error
from .scheduler import Round, Scheduler

_log = logging.getLogger(__name__)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
"""Headers of every response."""


class Metrics:
    """What the server counts, in a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "softprompt_requests", "Answered requests.", ("route", "model", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "softprompt_request_seconds",
            "Seconds from the arrival of a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._prompt_tokens = Counter(
            "softprompt_prompt_tokens", "Tokens of texts; their rate is tokens per second.", registry=self.registry
        )
        self._completion_tokens = Counter(
            "softprompt_completion_tokens", "Generated tokens; their rate is tokens per second.", registry=self.registry
        )

        self._jobs = Histogram(
            "softprompt_batch_jobs", "Jobs that a round starts together.", buckets=_SIZES, registry=self.registry
        )
        self._rows = Histogram(
            "softprompt_batch_rows",
            "Texts that get a token in a decoding step.",
            buckets=_SIZES,
            registry=self.registry,
        )
        self._model_seconds = Counter(
            "softprompt_model_seconds", "Seconds in which the model computed.", registry=self.registry
        )

    def watch(self, scheduler: Scheduler) -> None:
        """Report how many jobs wait and run."""
        waiting = Gauge("softprompt_waiting_jobs", "Jobs that were not started.", registry=self.registry)
        waiting.set_function(lambda: scheduler.num_waiting)
        running = Gauge("softprompt_running_texts", "Texts that are being generated.", registry=self.registry)
        running.set_function(lambda: scheduler.num_running)

    def add_round(self, done: Round) -> None:
        """Count what the scheduler did in a round."""
        if done.jobs:
            self._jobs.observe(done.jobs)
        if done.rows:
            self._rows.observe(done.rows)
        self._model_seconds.inc(done.seconds)

    def add_request(self, route: str, models: list[str], status: int, seconds: float) -> None:
        """Count an answered request, for each model that it names."""
        for model in models or [""]:
            self._requests.labels(route, model, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def add_tokens(self, prompt: int, completion: int = 0) -> None:
        """Count the tokens of an answered request."""
        self._prompt_tokens.inc(prompt)
        self._completion_tokens.inc(completion)

    def text(self) -> bytes:
        """All measurements in Prometheus' format."""
        return generate_latest(self.registry)


class Observer:
    """Counts requests, adds headers to responses, and answers errors that nobody expected.

    A route names its models in ``scope["state"]["models"]``.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = perf_counter(), 0
        scope.setdefault("state", {})

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_missing(message)]
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception:
            if status:
                raise  # uvicorn logs it and closes the connection
            _log.exception("a request failed: %s %s", scope["method"], scope["path"])
            await internal_error().response(scope, receive, observed)
        finally:
            route = getattr(scope.get("route"), "path_format", "other")
            self._metrics.add_request(route, scope["state"].get("models", []), status, perf_counter() - start)


def _missing(message: Message) -> Iterator[tuple[bytes, bytes]]:
    given = {name.lower() for name, _ in message.get("headers", ())}
    return (header for header in HEADERS if header[0] not in given)
