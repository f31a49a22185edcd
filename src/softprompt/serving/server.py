"""Running the application on a socket until a signal stops it."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..config.options import ModelOptions
from ..config.serve_options import ServeOptions
from ..errors import ConfigError
from ..inference.library import PromptLibrary
from .app import create_app
from .security import API_KEY_VARIABLE, is_loopback, read_api_key
from .state import ServerState

KEEP_ALIVE_SECONDS = 65
"""Longer than the minute after which load balancers close idle connections."""


def open_server(model: ModelOptions, options: ServeOptions, on_warning: Callable[[str], None]) -> Server:
    """Load the base model and the adapters, and reserve the address.

    Raises:
        SoftPromptError: an option is invalid, the address is taken, or an adapter cannot be loaded.
    """
    if read_api_key(options.api_key_file) is None and not is_loopback(options.host):
        on_warning(
            f"other machines can use this server without an API key; set {API_KEY_VARIABLE}, give --api_key_file, or "
            "listen on 127.0.0.1"
        )
    bound = bind(options.host, options.port)  # before the model is loaded, which takes long
    # Each thread that runs torch has OpenMP threads of its own, and those of idle ones slow the others down by a third.
    # So the model is loaded in a thread that ends, and only the scheduler's thread runs it.
    with ThreadPoolExecutor(1) as loader:
        memory = options.prompt_memory << 20
        opening = loader.submit(
            PromptLibrary.from_options, options.adapter, model, adapter_dir=options.adapter_dir, prompt_memory=memory
        )
        library = opening.result()
    for problem in library.problems.values():
        on_warning(problem)
    return Server(create_app(library, options), options, bound)


class _Protocol(H11Protocol):
    """HTTP that also closes connections on which no request arrives, or only the beginning of its headers."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        timer = self.timeout_keep_alive_task  # which uvicorn cancels at the first byte
        super().data_received(data)
        if timer is not None and self.conn.their_state is h11.IDLE:  # the headers are not complete
            self.timeout_keep_alive_task = self.loop.call_at(timer.when(), self.timeout_keep_alive_handler)


class Server(uvicorn.Server):
    """Runs the application on a socket.

    Args:
        app: from ``create_app``.
        options: those of the application.
        bound: a socket with an address, which does not listen yet.
    """

    def __init__(self, app: FastAPI, options: ServeOptions, bound: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(options.body_timeout + options.request_timeout) + 5,
        )
        super().__init__(config)
        self.state: ServerState = app.state.server
        self._bound = bound
        self.on_ready: Callable[[], None] = lambda: None

    @property
    def url(self) -> str:
        """Address of the server."""
        host, port = self._bound.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run_until_stopped(self, say: Callable[[str], None]) -> None:
        """Serve until SIGINT or SIGTERM, finish accepted requests, and return.

        Args:
            say: is called with one line when requests are accepted.
        """
        names = ", ".join(self.state.library.names) or "no adapters"
        self.on_ready = lambda: say(f"serving {self.state.base_id} with {names} at {self.url}")
        with _handled(self.handle_exit):
            self.run()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until ``should_exit`` is set."""
        super().run(sockets or [self._bound])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept requests."""
        await super().startup(sockets)
        self.on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no further requests, and finish those that were accepted."""
        self.state.phase = "draining"
        await super().shutdown(sockets)


@contextmanager
def _handled(handler: Callable[..., None]) -> Iterator[None]:
    """Handle SIGINT and SIGTERM; uvicorn has its own handlers, and raises a signal again once it has stopped."""
    before: dict[int, Any] = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def bind(host: str, port: int) -> socket.socket:
    """A socket with an address.

    Raises:
        ConfigError: the address is taken, or is not one of this machine.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, number)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}, port {port}: {error.strerror}; choose another --port") from None
    return bound
