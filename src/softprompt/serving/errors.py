"""Errors as OpenAI's clients expect them: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ..config.options import nearest
from ..errors import ContextLengthError, SoftPromptError


class ErrorDetails(BaseModel):
    """What is wrong with a request, and with which of its parameters."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetails


class ApiError(Exception):
    """An error with its HTTP status.

    Args:
        status: 400 to 599.
        message: one line for the client.
        code: OpenAI's code, or one of ours.
        param: the parameter that is wrong.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        param = None if param is None else _printable(param)
        details = ErrorDetails(message=_printable(message), type=_type(status), param=param, code=code)
        self.body = ErrorBody(error=details)

    @property
    def response(self) -> Response:
        """The response for the client."""
        return Response(self.body.model_dump_json(), self.status, self.headers, media_type="application/json")


def _printable(text: str) -> str:
    """The text with half of a surrogate pair, which a message may quote, as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def _type(status: int) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Status 400."""
    return ApiError(400, message, param=param, code=code)


def unknown_model(name: str, known: list[str]) -> ApiError:
    """Status 404, with the most similar name."""
    message = f"there is no model {name!r}{nearest(name, known)} (GET /v1/models lists them)"
    return ApiError(404, message, param="model", code="model_not_found")


def internal_error() -> ApiError:
    """Status 500; what happened is in the server's log only."""
    return ApiError(500, "the server failed; its log has the details", code="internal_error")


def from_validation(error: RequestValidationError) -> ApiError:
    """Status 400 for the first mistake in a request."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        what = f"{first['ctx']['error']} at character {first['loc'][1]}"
        return bad_request(f"the body is not valid JSON: {what}", code="json")
    place = _place(first, error.body)
    if not place:
        return bad_request("the body must be a JSON object, sent as Content-Type: application/json", code="json")
    param = ".".join(place)
    if first["type"] == "extra_forbidden":
        return bad_request(f"unknown parameter {param!r}; leave it out", param, "unknown_parameter")
    if first["type"] == "missing":
        return bad_request(f"the parameter {param} is missing", param, "missing_parameter")
    code = "unsupported_parameter" if first["type"] == "unsupported_parameter" else "invalid_parameter"
    return bad_request(f"{param}: {_reason(first)}", param, code)


def _place(error: Mapping[str, Any], body: Any) -> list[str]:
    """Where a mistake is, without the names of the types that pydantic tried there."""
    found = []
    for part in error["loc"][1:]:
        try:
            body = body[part]
        except (KeyError, IndexError, TypeError):  # not a part of the request
            continue
        found.append(str(part))
    return [*found, str(error["loc"][-1])] if error["type"] == "missing" and error["loc"][1:] else found


def _reason(error: Mapping[str, Any]) -> str:
    reason = str(error["msg"]).removeprefix("Value error, ")
    return reason[:1].lower() + reason[1:]


def from_http(error: HTTPException, request: Request) -> ApiError:
    """An error of the router: no such route, another method, or a body that makes the parser fail."""
    status = error.status_code
    route = f"{request.method} {request.url.path}"
    messages = {
        400: "the body cannot be read as JSON: it is too deep, has a number of too many digits, or is not UTF-8",
        404: f"there is no route {route}",
        405: f"the route does not have this method: {route}",
    }
    codes = {400: "json", 404: "route_not_found", 405: "method_not_allowed"}
    message = messages.get(status, str(error.detail))
    return ApiError(status, message, code=codes.get(status), headers=error.headers)


def install(app: FastAPI) -> None:
    """Answer all errors with OpenAI's body; those that nobody expects are answered in ``metrics.Observer``."""

    @app.exception_handler(ApiError)
    async def _api(request: Request, error: ApiError) -> Response:
        return error.response

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> Response:
        return from_validation(error).response

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        return from_http(error, request).response

    @app.exception_handler(SoftPromptError)
    async def _ours(request: Request, error: SoftPromptError) -> Response:
        code = "context_length_exceeded" if isinstance(error, ContextLengthError) else None
        return bad_request(str(error), code=code).response


RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request is wrong."},
    401: {"description": "The API key is missing or wrong."},
    403: {"description": "The Host or Origin header is foreign, or the server does not allow it."},
    404: {"description": "There is no such model or route."},
    408: {"description": "The request did not arrive in time."},
    413: {"description": "The request is too large."},
    429: {"description": "The queue is full; the header Retry-After says when to try again."},
    500: {"description": "The server failed."},
    503: {"description": "The server is loading, or stops."},
    504: {"description": "The request took too long."},
    "default": {"description": "Any other error."},
}
"""The errors in the OpenAPI schema."""
for _response in RESPONSES.values():
    _response["model"] = ErrorBody
