"""The verb `serve`."""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.config import DEFAULT_MODEL, EncoderConfig, RerankerConfig
from ..errors import ConfigError, needs
from ..options import MACHINE, Options, given, takes
from .config import ServedModel, ServerConfig

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)

API_KEYS = "QWEN3_EMBEDDING_API_KEYS"
MAX_QUEUE_TOKENS = 1_000_000
# What OpenMP, oneDNN and our CPU path read when they start; what the user has set stays.
LIBRARY_SETTINGS = {
    # Threads that spin at barriers take the cores that the event loop needs: on two busy cores a
    # query then takes ten times as long.
    "OMP_WAIT_POLICY": "passive",
    # Queries, and the event loop, come before bulk on the cores too.
    "QWEN3_EMBEDDING_BULK_NICE": "10",
    # What was made for each of the last 1,024 shapes is kept, and every batch has another: with
    # `tiny` half a GB, for nothing.
    "LRU_CACHE_CAPACITY": "128",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
}
LOOPBACK = ("127.0.0.1", "::1", "localhost")

ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model", help=f"[NAME=]hub id, folder or 'tiny'; again for more. {DEFAULT_MODEL}"
    ),
]
RerankerOption = Annotated[
    list[str] | None, typer.Option("--reranker", help="[NAME=]hub id or folder; again for more.")
]
AliasOption = Annotated[
    list[str] | None, typer.Option("--alias", help="ALIAS=NAME of a served model; again for more.")
]
KeepAliveOption = Annotated[
    float | None, typer.Option(help="Idle seconds until a model is unloaded; default: never.")
]
KeyFileOption = Annotated[
    Path | None, typer.Option(help=f"API keys, one a line; or {API_KEYS}, with commas.")
]
MaxBatchOption = Annotated[
    int | None, typer.Option(help="Tokens of a forward: fewer, and queries wait less for bulk.")
]
MaxQueueOption = Annotated[int, typer.Option(help="Tokens that may wait; more get a 429.")]


@takes(*MACHINE, "lora", "instruction", "max_length", on_too_long="truncate (default) or error.")
def serve(
    options: Options,
    model: ModelOption = None,
    reranker: RerankerOption = None,
    alias: AliasOption = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    keep_alive: KeepAliveOption = None,
    api_key_file: KeyFileOption = None,
    max_batch_tokens: MaxBatchOption = None,
    max_queue_tokens: MaxQueueOption = MAX_QUEUE_TOKENS,
    max_body_mb: Annotated[float, typer.Option(help="Size of a body.")] = 8.0,
    max_texts: Annotated[int, typer.Option(help="Texts of a request.")] = 2048,
    max_tokens: Annotated[int, typer.Option(help="Tokens of a request.")] = 300_000,
    max_requests: Annotated[int, typer.Option(help="Requests under way.")] = 1024,
    drain: Annotated[int, typer.Option(min=0, help="Seconds to finish at SIGTERM.")] = 30,
) -> None:
    """Serve /v1/embeddings as OpenAI does and /v1/rerank as Cohere does."""
    options |= given(locals(), "max_batch_tokens", "max_queue_tokens")
    config = ServerConfig(
        api_keys=read_keys(api_key_file),
        keep_alive_s=keep_alive,
        max_body_bytes=int(max_body_mb * 2**20),
        max_texts=max_texts,
        max_tokens=max_tokens,
        max_requests=max_requests,
    )
    served = served_models(model, reranker, alias, options)
    run(served, config, host=host, port=port, drain_s=drain)


def served_models(
    models: list[str] | None,
    rerankers: list[str] | None,
    aliases: list[str] | None,
    options: dict[str, Any],
) -> list[ServedModel]:
    """Return what the command line names. Raises ConfigError."""
    alias_of: dict[str, list[str]] = {}
    for alias in aliases or []:
        new, is_pair, name = alias.partition("=")
        if not (new and is_pair and name):
            raise ConfigError(f"--alias {alias}: write ALIAS=NAME")
        alias_of.setdefault(name, []).append(new)
    num_models = len(models or []) + len(rerankers or [])
    if "lora" in options and num_models > 1:
        raise ConfigError(f"--lora goes with one model, not {num_models}; merge the others first")
    served: list[ServedModel] = []
    for name, place in map(_split, models or ([] if rerankers else [DEFAULT_MODEL])):
        config = EncoderConfig.from_options(place, **options)
        served.append(ServedModel.embedding(config, name=name))
    for name, place in map(_split, rerankers or []):
        config = RerankerConfig.from_options(place, **options)
        served.append(ServedModel.reranking(config, name=name))
    served = [replace(one, aliases=tuple(alias_of.pop(one.name, ()))) for one in served]
    if alias_of:
        known = ", ".join(one.name for one in served)
        raise ConfigError(f"--alias: no model is called {', '.join(alias_of)} (served: {known})")
    return served


def _split(model: str) -> tuple[str | None, str]:
    name, is_pair, place = model.partition("=")
    return (name, place) if is_pair and not Path(model).exists() else (None, model)


def read_keys(file: Path | None) -> tuple[str, ...]:
    """Return the keys of the file and of the environment. Raises ConfigError for an empty file."""
    keys = [key.strip() for key in os.environ.get(API_KEYS, "").split(",")]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-key-file {file} cannot be read: {error}") from error
        in_file = [line.strip() for line in lines if line.strip()]
        if not in_file:
            raise ConfigError(f"--api-key-file {file} holds no key; write one a line")
        keys += in_file
    return tuple(key for key in keys if key)


def run(
    served: list[ServedModel], config: ServerConfig, *, host: str, port: int, drain_s: int
) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises what the first load of a model raises."""
    for name, value in LIBRARY_SETTINGS.items():
        os.environ.setdefault(name, value)
    with needs("fastapi", extra="server"):
        import uvicorn

        from .app import create_app
    failures: list[Exception] = []

    def stop(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    app: FastAPI = create_app(served, config, on_start_failure=stop)
    _log_json()
    if host not in LOOPBACK and not config.api_keys:
        logger.warning("%s is open to others and no API key is set: see --api-key-file", host)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=drain_s,
        )
    )
    # uvicorn drains, then raises the signal again: after an orderly end the process has no fault.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run()
    if failures:
        raise failures[0]


def _log_json() -> None:
    from .observe import JsonLines

    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    for name in ("httpx", "urllib3", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.WARNING)
