"""A Chroma client whose waits have an end: chromadb 1.5 lets its HTTP client wait for ever."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from urllib.parse import urlsplit

import chromadb
import httpx  # Chroma's own
from chromadb.api import ClientAPI

from ..core.workers import Workers
from ..errors import ConfigError, StoreError

TIMEOUT_S = 300.0  # an upsert of all 5,461 rows that a write may hold takes some 50 (hosts' costs)
CONNECT_S = 10.0
OPEN_S = 60.0  # three small requests


def connect(location: str, *, timeout_s: float = TIMEOUT_S) -> ClientAPI:
    """Return a client for a folder, ":memory:" or the URL of a Chroma server.

    A server is waited for as `set_timeout` says. Raises StoreError where it does not answer.
    """
    if location == ":memory:":
        return chromadb.EphemeralClient()
    if not location.startswith(("http://", "https://")):
        return chromadb.PersistentClient(location)
    parts = urlsplit(location)
    is_https = parts.scheme == "https"
    port = parts.port or (443 if is_https else 8000)
    host = parts.hostname or "localhost"
    wait_s = min(timeout_s, OPEN_S)
    # It asks the server before a timeout can be set: on a thread, which a dead server keeps.
    making = Workers(1, "qwen3-connect").submit(
        partial(chromadb.HttpClient, host=host, port=port, ssl=is_https)
    )
    try:
        client = making.result(wait_s)
    except TimeoutError as error:
        raise StoreError(
            f"the Chroma server at {location} gave no answer in {wait_s:g} s; see whether it is "
            "busy or stuck, and start it anew"
        ) from error
    set_timeout(client, timeout_s)
    return client


def set_timeout(client: ClientAPI, timeout_s: float) -> None:
    """Let no call of a client wait longer for its server's next byte; of a folder's, do nothing.

    What `connect` makes has one; ChromaStore and open_collection give 300 s to clients without. A
    call of Chroma's own then raises httpx.TimeoutException, one of ours StoreError. ConfigError.
    """
    if timeout_s <= 0:
        raise ConfigError(f"timeout_s is {timeout_s}; give seconds, more than 0")
    if (session := _session(client)) is not None:
        session.timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s))


def end_waits(client: ClientAPI) -> None:
    """Set a timeout where there is none."""
    session = _session(client)
    if session is not None and session.timeout == httpx.Timeout(None):
        set_timeout(client, TIMEOUT_S)


@contextmanager
def answered() -> Generator[None]:
    """Raise StoreError where a server gives no answer in time."""
    try:
        yield
    except httpx.TimeoutException as error:
        phase = "connect" if isinstance(error, httpx.ConnectTimeout) else "read"
        wait_s = error.request.extensions["timeout"][phase]
        raise StoreError(
            f"the Chroma server at {error.request.url.netloc.decode()} gave no answer in "
            f"{wait_s:g} s; see whether it is busy or stuck, or give it longer: "
            "qwen3_embedding_integrations.chroma.set_timeout(client, timeout_s)"
        ) from error


def _session(client: ClientAPI) -> httpx.Client | None:
    """Return what a client asks its server by; chromadb 1.5 has no setting for its timeout."""
    session = getattr(getattr(client, "_server", None), "_session", None)
    return session if isinstance(session, httpx.Client) else None
