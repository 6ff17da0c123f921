"""The server: OpenAI's embeddings route and Cohere's rerank route over models of this process."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import needs

if TYPE_CHECKING:
    from .app import create_app
    from .config import ServedModel, ServerConfig

__all__ = ["ServedModel", "ServerConfig", "create_app"]

_HOMES = {"create_app": "app", "ServedModel": "config", "ServerConfig": "config"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs("fastapi", extra="server"):
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
