"""Who may use the server, and how much they may send: middleware in plain ASGI, before a request is parsed."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ConfigError
from .errors import ApiError

API_KEY_VARIABLE = "SOFTPROMPT_API_KEY"
PUBLIC = ("/", "/health", "/ready")
"""Routes that need no API key, and all below ``/static/``: the page without any data, and the state of the server."""
_DRAINED_BYTES = 64 << 20


def read_api_key(file: Path | None) -> bytes | None:
    """The API key from a file, else from the environment; ``None`` if there is none.

    Raises:
        ConfigError: the key is empty, or cannot be sent in a header.
    """
    given = os.environ.get(API_KEY_VARIABLE) if file is None else file.read_text(encoding="utf-8", errors="replace")
    if given is None:
        return None
    key, where = given.strip(), API_KEY_VARIABLE if file is None else str(file)
    if not key or not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"the API key in {where} must be one word of printable ASCII characters")
    return key.encode()


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class AccessControl:
    """Refuses requests for other hosts, from pages of other origins, and without the API key.

    A foreign ``Host`` is how a web page reaches a server on its visitor's machine (DNS rebinding).

    Args:
        app: the application that is protected.
        hosts: names that a ``Host`` header may have, in lower case, in addition to loopback names.
        origins: further values of ``Origin``, in lower case, in addition to the server's own.
        api_key: ``None`` if anyone may use the server.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: Iterable[str], origins: Iterable[str] = (), api_key: bytes | None = None
    ) -> None:
        self._app, self._hosts, self._origins = app, frozenset(hosts), frozenset(origins)
        self._api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and (refusal := self._refusal(scope["path"], Headers(scope=scope))):
            await refusal.response(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        if not self._is_allowed_host(host_name(host)):
            message = f"this server does not answer for the host {host!r}; --allowed_host adds a name"
            return ApiError(403, message, code="host_not_allowed")
        if origin is not None and not self._is_allowed_origin(origin.lower(), host):
            message = f"pages of {origin!r} may not use this server; --allowed_origin adds an origin"
            return ApiError(403, message, code="origin_not_allowed")
        if path in PUBLIC or path.startswith("/static/") or self._has_key(headers):
            return None
        message = "the API key is missing or wrong; send it in the header Authorization: Bearer KEY"
        return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _is_allowed_host(self, name: str) -> bool:
        return is_loopback(name) or name in self._hosts

    def _is_allowed_origin(self, origin: str, host: str) -> bool:
        return origin in (f"http://{host}", f"https://{host}") or origin in self._origins

    def _has_key(self, headers: Headers) -> bool:
        if self._api_key is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), self._api_key)


def host_name(header: str) -> str:
    """The name in a ``Host`` header, without the port and the brackets of an IPv6 address."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if ":" in header else header


class BodyLimit:
    """Reads the body of a request before the application sees it, up to a size and a time.

    Args:
        app: the application.
        max_bytes: of a body, whether or not its length is announced.
        timeout: seconds for the whole body.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout: float) -> None:
        self._app, self._max_bytes, self._timeout = app, max_bytes, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if "content-length" not in headers and "transfer-encoding" not in headers:
            await self._app(scope, receive, send)
            return
        try:
            with anyio.fail_after(self._timeout):
                body = await self._read(headers, receive)
        except TimeoutError:
            late = f"the request did not arrive within {self._timeout:g} seconds"
            await _close(ApiError(408, late, code="request_timeout"), scope, receive, send)
        except ApiError as error:
            await _close(error, scope, receive, send)
        else:
            if body is not None:
                await self._app(scope, _replayed(body, receive), send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """The body; ``None`` if the client left.

        Raises:
            ApiError: it is too large.
        """
        announced = headers.get("content-length", "0")
        if int(announced if announced.isdecimal() else "0") > self._max_bytes:
            if "expect" not in headers:  # a client that waits for the answer has sent nothing yet
                await _drain(receive)
            raise self._too_large()
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                body.clear()
                if message.get("more_body"):
                    await _drain(receive)
                raise self._too_large()
            if not message.get("more_body"):
                return bytes(body)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the request is larger than {self._max_bytes:,} bytes", code="request_too_large")


async def _drain(receive: Receive) -> None:
    """Drop the rest of a body: a client that is cut off while it sends does not read the answer."""
    dropped = 0
    while dropped < _DRAINED_BYTES:
        message = await receive()
        dropped += len(message.get("body", b""))
        if not message.get("more_body"):
            return


async def _close(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error and close the connection, since part of the body may not be read."""
    error.headers["Connection"] = "close"
    await error.response(scope, receive, send)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that hands out the body first."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
