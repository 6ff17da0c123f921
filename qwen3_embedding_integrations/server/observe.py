"""Every request: its id, who may ask, one line in the log without its texts, its metrics."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import traceback
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import InputError, Qwen3EmbeddingError
from .limits import Keys
from .metrics import Metrics
from .problems import ClientGoneError, refusal_of, unavailable

logger = logging.getLogger(__name__)

OPEN_PATHS = ("/healthz", "/readyz", "/docs", "/openapi.json")
ROUTES = ("/v1/embeddings", "/v1/rerank", "/v2/rerank", "/v1/models", "/metrics", *OPEN_PATHS)
QUIET_ROUTES = ("/healthz", "/readyz", "/metrics")  # asked for every few seconds
CLIENT_GONE = 499  # nginx's word
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
NOTE = "qwen3_note"  # of a scope: what is logged of a request beside its path and status


class Observed:
    """The application with ids, keys, log and metrics around it (ASGI)."""

    def __init__(self, app: ASGIApp, *, keys: Keys, metrics: Metrics) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid4().hex
        note: dict[str, Any] = scope.setdefault(NOTE, {})
        status, start = CLIENT_GONE, time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        self._metrics.under_way.inc()
        try:
            try:
                if scope["path"] not in OPEN_PATHS:
                    self._keys.check(headers)
                await self._app(scope, receive, send_with_id)
            except ClientGoneError:
                pass
            except asyncio.CancelledError:  # the server ends, and its patience has
                if status == CLIENT_GONE:
                    refusal = unavailable("the server is going down; ask another, or later")
                    await refusal.response()(scope, receive, send_with_id)
                raise
            except Exception as error:
                if status != CLIENT_GONE:  # the answer has begun: it can only end
                    logger.error("an answer ended early", exc_info=error)
                    raise
                await refusal_of(error).response()(scope, receive, send_with_id)
        finally:
            self._metrics.under_way.dec()
            self._note(scope, status, time.perf_counter() - start, request_id, note)
        return None

    def _note(
        self, scope: Scope, status: int, seconds: float, request_id: str, note: dict[str, Any]
    ) -> None:
        path = scope["path"]
        route = path if path in ROUTES else "other"
        self._metrics.requests.labels(route, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        level = logging.DEBUG if route in QUIET_ROUTES else logging.INFO
        if logger.isEnabledFor(level):
            facts = {
                "id": request_id,
                "method": scope["method"],
                "path": path[:200],
                "status": status,
                "ms": round(seconds * 1000, 2),
                **{name: fact for name, fact in note.items() if fact},
            }
            logger.log(level, "request", extra={"facts": facts})


class JsonLines(logging.Formatter):
    """Writes a record as one line of JSON; of an error its type and its frames, and no texts."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line["error"] = type(error).__name__
            # A foreign error's message, and an input's, may hold the text they are about.
            if isinstance(error, Qwen3EmbeddingError) and not isinstance(error, InputError):
                line["reason"] = str(error)
            line["frames"] = "".join(traceback.format_tb(error.__traceback__))
        return json.dumps(line, ensure_ascii=False, default=str)
