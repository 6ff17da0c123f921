"""Errors as answers: our error tree and every refusal of the server, in OpenAI's shape."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.responses import Response

from ..errors import (
    ConfigError,
    ContractMismatchError,
    EngineClosedError,
    InputError,
    QueueFullError,
    RemoteError,
    TextTooLongError,
)

logger = logging.getLogger(__name__)

INVALID = "invalid_request_error"
SERVER = "server_error"

INPUT_FORMS = (
    "must be a text, a list of texts, a list of token ids, or a list of such lists, none of them "
    "mixed"
)


class Refusal(Exception):
    """An answer other than 200, with its reason; not a fault of the server's unless it is 5xx."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": code}
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """Return the answer."""
        content = orjson.dumps({"error": self.body})
        return Response(content, self.status, self.headers, "application/json")


class ClientGoneError(Exception):
    """The client hung up: there is no one to answer."""


# What a client is told, by the error's class: its message where the fault is the client's.
ANSWERS: dict[type[Exception], tuple[int, dict[str, Any]]] = {
    InputError: (400, {"param": "input"}),
    ConfigError: (400, {}),
    ContractMismatchError: (409, {}),
    QueueFullError: (
        429,
        {"kind": "tokens", "code": "rate_limit_exceeded", "headers": {"Retry-After": "5"}},
    ),
}


def refusal_of(error: Exception) -> Refusal:
    """Return what a client is told of an error. What is nobody's fault but ours is logged."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, EngineClosedError):
        return unavailable("the model was unloaded meanwhile; try again")
    if isinstance(error, RemoteError):
        logger.error("a remote model failed", exc_info=error)
        message = "the server that computes this model failed; the log here says how"
        return Refusal(502, message, kind=SERVER, code="bad_gateway")
    for kind, (status, facts) in ANSWERS.items():
        if isinstance(error, kind):
            refusal = Refusal(status, str(error), **facts)
            if isinstance(error, TextTooLongError):
                refusal.body["code"] = "context_length_exceeded"
            return refusal
    # Not its text: what an unforeseen error says may hold a caller's.
    logger.error("a request failed", exc_info=error)
    return Refusal(500, "the server failed; its log says why", kind=SERVER, code="internal_error")


def unavailable(message: str) -> Refusal:
    """Return the refusal of a server that may answer later."""
    headers = {"Retry-After": "1"}
    return Refusal(503, message, kind=SERVER, code="unavailable", headers=headers)


def invalid_body(error: ValidationError) -> Refusal:
    """Return what is wrong with a body, by its first field that is wrong."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = [str(part) for part in first["loc"]]
    if first["type"] == "json_invalid":
        return Refusal(400, f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    if not place:
        return Refusal(400, "the body must be a JSON object")
    field = place[0]
    if first["type"] == "extra_forbidden" and len(place) == 1:
        return Refusal(
            400,
            f"Unrecognized request argument supplied: {field[:80]}",
            code="unknown_parameter",
            param=field[:80],
        )
    if first["type"] == "missing":
        return Refusal(400, f"you must provide a {field} parameter", param=field)
    if field == "input":
        return Refusal(400, f"input {INPUT_FORMS}", param=field)
    message = f"{'.'.join(place)}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    return Refusal(400, message, param=field)
