"""The application: routes, their documents, and the models' lives around them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from . import shapes
from .config import ServedModel, ServerConfig
from .limits import Keys
from .metrics import Metrics
from .models import Models, Slot
from .observe import Observed
from .problems import Refusal
from .work import Desk

TITLE = "qwen3-embedding"
REFERENCE = "#/components/schemas/{model}"
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": shapes.ErrorAnswer, "description": description}
    for status, description in {
        400: "The request says something that cannot be done.",
        401: "No API key, or a wrong one.",
        404: "No such model.",
        408: "The body did not come in time.",
        413: "The body is too large.",
        415: "The body is not JSON.",
        429: "Too much waits; ask again after Retry-After.",
        409: "The model's contract is another.",
        500: "The server failed.",
        502: "The server that computes this model failed.",
        503: "The model cannot be loaded, or is going.",
    }.items()
}


def create_app(
    models: Sequence[ServedModel],
    config: ServerConfig | None = None,
    *,
    on_start_failure: Callable[[Exception], None] | None = None,
) -> FastAPI:
    """Return the application (ASGI), which loads its models when it starts.

    It answers /healthz at once and /readyz with 200 when they are loaded. `on_start_failure` is
    told the first error of the first load. Raises ConfigError.
    """
    config = config or ServerConfig()
    room = Models(models, config.keep_alive_s)
    metrics = Metrics(room)
    desk = Desk(room, config, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        room.start(on_start_failure or (lambda _: None))
        yield
        await room.close()

    app = FastAPI(
        title=TITLE,
        version=version("qwen3-embedding-integrations"),
        lifespan=lifespan,
        redoc_url=None,
        exception_handlers={HTTPException: _refuse},
    )
    _add_work(app, desk)
    _add_facts(app, room, metrics)
    app.add_middleware(Observed, keys=Keys(config.api_keys), metrics=metrics)
    _document(app, room)
    return app


def _add_work(app: FastAPI, desk: Desk) -> None:
    embeddings: dict[str, Any] = {"responses": REFUSALS, "response_model": shapes.EmbeddingAnswer}
    rerank: dict[str, Any] = {"responses": REFUSALS, "response_model": shapes.RerankAnswer}

    @app.post("/v1/embeddings", openapi_extra=_body(shapes.EmbeddingRequest), **embeddings)
    async def create_embeddings(request: Request) -> Response:
        """Make a vector of each text."""
        return await desk.answer(request, shapes.EmbeddingRequest, desk.embed)

    @app.post("/v1/rerank", openapi_extra=_body(shapes.RerankRequest), **rerank)
    async def rerank_documents(request: Request) -> Response:
        """Sort documents by how well each answers the query."""
        return await desk.answer(request, shapes.RerankRequest, desk.rerank)

    # The path of Cohere's second API, which its client appends by itself.
    app.post("/v2/rerank", include_in_schema=False)(rerank_documents)


def _add_facts(app: FastAPI, room: Models, metrics: Metrics) -> None:
    created = int(time.time())
    missing: dict[int | str, Any] = {status: REFUSALS[status] for status in (401, 404)}

    def describe(name: str, slot: Slot) -> dict[str, Any]:
        facts = {"id": name, "object": "model", "created": created, "owned_by": TITLE}
        facts |= {"kind": slot.served.kind, "state": slot.state}
        for fact in ("dimensions", "max_length"):
            value = getattr(slot.model, fact, None)
            if value is not None:
                facts[fact] = value
        return facts

    @app.get("/v1/models", responses={401: REFUSALS[401]})
    async def list_models() -> dict[str, Any]:
        """List the models by every name they answer to."""
        return {"object": "list", "data": [describe(*item) for item in room.names.items()]}

    @app.get("/v1/models/{model:path}", responses=missing)
    async def get_model(model: str) -> dict[str, Any]:
        """Describe one model."""
        if model not in room.names:
            raise room.missing(model)
        return describe(model, room.names[model])

    @app.get("/healthz")
    async def is_alive() -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"description": "Models are being loaded."}})
    async def is_ready() -> JSONResponse:
        """Say whether models answer, and the state of each."""
        states = {slot.served.name: slot.state for slot in room.slots}
        body = {"status": "ready" if room.is_ready else "not ready", "models": states}
        return JSONResponse(body, 200 if room.is_ready else 503)

    @app.get("/metrics", responses={401: REFUSALS[401]}, response_class=Response)
    async def show_metrics() -> Response:
        """Show the numbers for Prometheus."""
        content, media_type = metrics.text()
        return Response(content, media_type=media_type)


def _body(shape: type[shapes.Request]) -> dict[str, Any]:
    """Return what documents a body that the route itself reads: its size is limited there."""
    schema = {"$ref": REFERENCE.format(model=shape.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _document(app: FastAPI, room: Models) -> None:
    bodies = {"embedding": shapes.EmbeddingRequest, "reranking": shapes.RerankRequest}

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, own = models_json_schema(
                [(body, "validation") for body in bodies.values()], ref_template=REFERENCE
            )
            for kind, body in bodies.items():
                names = [name for name, slot in room.names.items() if slot.served.kind == kind]
                if names:  # an empty enum is no JSON schema
                    own["$defs"][body.__name__]["properties"]["model"]["enum"] = names
            schema.setdefault("components", {}).setdefault("schemas", {}).update(own["$defs"])
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi


async def _refuse(_: Request, error: Exception) -> Response:
    """Answer what the router refuses in the shape of all errors."""
    assert isinstance(error, HTTPException)
    return Refusal(error.status_code, error.detail, headers=error.headers).response()
