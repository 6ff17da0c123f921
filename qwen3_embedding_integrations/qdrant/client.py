"""A Qdrant client, and what a collection's metadata says: contract, options, current version."""

from __future__ import annotations

import logging
import threading
import weakref
from contextlib import AbstractContextManager, nullcontext

from qdrant_client import QdrantClient, models

from ..contract import EmbeddingContract
from ..core.config import EncoderConfig

logger = logging.getLogger(__name__)

CONTRACT_KEY = "qwen3_embedding_contract"  # of a collection's metadata
CONFIG_KEY = "qwen3_embedding_config"  # of a collection's metadata: what to open it with
IDENTITY_KEY = "qwen3_embedding_identity"  # of a collection's metadata: Qdrant has none
FORBIDDEN = 403
CURRENT_KEY = "qwen3_embedding_current"  # of a collection's metadata: which one stands for it


def connect(location: str) -> QdrantClient:
    """Return a client for a URL (by gRPC where it answers, else REST), a folder or ":memory:"."""
    if location == ":memory:":
        return QdrantClient(location)
    if not location.startswith(("http://", "https://")):
        return QdrantClient(path=location)
    client = QdrantClient(url=location, prefer_grpc=True)
    try:
        client.get_collections()
    except Exception as error:
        client.close()
        logger.info("%s answers no gRPC (%r); using REST", location, error)
        return QdrantClient(url=location)
    return client


def is_local(client: QdrantClient) -> bool:
    """Whether the client is its own store, in a folder or in memory."""
    options = client.init_options
    return options.get("path") is not None or options.get("location") == ":memory:"


def guard_of(client: QdrantClient) -> AbstractContextManager[object]:
    """Return what every call to a client stands in: a lock, unless it speaks to a server.

    A local collection (a folder, or ":memory:") is arrays that one call may be growing while
    another reads them (qdrant-client 1.20).
    """
    if not is_local(client):
        return nullcontext()
    with _locks_lock:
        return _locks.setdefault(client, threading.RLock())


_locks: weakref.WeakKeyDictionary[QdrantClient, AbstractContextManager[object]]
_locks = weakref.WeakKeyDictionary()
_locks_lock = threading.Lock()


def stored_config(client: QdrantClient, name: str) -> EncoderConfig | None:
    """Return the options a collection was made with, or None if it holds none."""
    options = (client.get_collection(name).config.metadata or {}).get(CONFIG_KEY)
    return EncoderConfig.from_options(**options) if options else None


def stored_contract(client: QdrantClient, name: str) -> EmbeddingContract | None:
    """Return the contract of a collection's vectors, or None if it was made without one."""
    facts = (client.get_collection(name).config.metadata or {}).get(CONTRACT_KEY)
    return EmbeddingContract.from_dict(facts) if facts else None


def stored_identity(client: QdrantClient, name: str) -> str:
    """Return what tells a collection from another that had its name before."""
    metadata = client.get_collection(name).config.metadata or {}
    return str(metadata.get(IDENTITY_KEY, name))


def current_name(client: QdrantClient, name: str) -> str:
    """Return the collection that an alias, or a collection rebuilt under another name, stands for.

    Calls go to that one: an alias switched between two calls would bring other vectors.
    """
    aliased = _aliases(client).get(name)
    if aliased is not None:
        return aliased
    if not client.collection_exists(name):
        return name
    return str((client.get_collection(name).config.metadata or {}).get(CURRENT_KEY, name))


def make_current(client: QdrantClient, name: str, version: str) -> None:
    """Let `name` stand for a version, in one step: an alias where it is one, else a pointer."""
    if name in _aliases(client):
        client.update_collection_aliases(
            [
                models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name)),
                models.CreateAliasOperation(
                    create_alias=models.CreateAlias(collection_name=version, alias_name=name)
                ),
            ]
        )
    else:
        client.update_collection(name, metadata={CURRENT_KEY: version})


def _aliases(client: QdrantClient) -> dict[str, str]:
    """Return the collection of each alias; none where the key may not see them."""
    try:
        return {one.alias_name: one.collection_name for one in client.get_aliases().aliases}
    except Exception as error:
        code = getattr(error, "code", None)  # of a gRPC call; its class is private
        denied = callable(code) and getattr(code(), "name", "") == "PERMISSION_DENIED"
        if denied or getattr(error, "status_code", None) == FORBIDDEN:
            return {}
        raise
