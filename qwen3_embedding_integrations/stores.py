"""A collection of Chroma or Qdrant, opened by its location, for the command line."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .contract import EmbeddingContract
from .core.config import EncoderConfig
from .encoder import Qwen3Encoder
from .errors import InputError, Qwen3EmbeddingError, StoreError
from .sharing import shared_encoder

if TYPE_CHECKING:
    from .chroma import ChromaStore
    from .qdrant import QdrantStore


class OpenStore(NamedTuple):
    """A collection and the encoder that made its vectors."""

    store: ChromaStore | QdrantStore
    encoder: Qwen3Encoder


def open_store(
    store: str, location: str, collection: str, options: dict[str, Any], *, create: bool
) -> OpenStore:
    """Return the collection at `location`, a folder or URL; made if missing and `create`.

    Options not given are those the collection was made with. Raises ContractMismatchError where
    given ones differ in a hard fact, InputError where there is nothing to search.
    """
    open_one = {"chroma": _open_chroma, "qdrant": _open_qdrant}[store]
    if not create:
        _require_folder(location)
    with _failures_named(store, location):
        return open_one(location, collection, options, create=create)


def _open_chroma(
    location: str, collection: str, options: dict[str, Any], *, create: bool
) -> OpenStore:
    from . import chroma

    client = chroma.connect(location)
    stored = chroma.find_collection(client, collection)
    if stored is None and not create:
        raise _nothing(collection, location, [one.name for one in client.list_collections()])
    config = merge(chroma.stored_config(stored) if stored else None, options)
    function = chroma.Qwen3EmbeddingFunction(**config.to_dict())
    opened = chroma.open_collection(client, collection, function)
    return OpenStore(chroma.ChromaStore(client, opened), function.encoder)


def _open_qdrant(
    location: str, collection: str, options: dict[str, Any], *, create: bool
) -> OpenStore:
    from . import qdrant

    client = qdrant.connect(location)
    try:
        exists = client.collection_exists(collection)
        if not exists and not create:
            names = [one.name for one in client.get_collections().collections]
            raise _nothing(collection, location, names)
        config = merge(qdrant.stored_config(client, collection) if exists else None, options)
        encoder = shared_encoder(config)
        opened = qdrant.Qwen3Collection(client, collection, encoder=encoder)
    except BaseException:
        client.close()
        raise
    return OpenStore(qdrant.QdrantStore(opened), encoder)


def read_contract(store: str, location: str, collection: str) -> EmbeddingContract | None:
    """Return the contract stored in a collection, without loading a model."""
    _require_folder(location)
    with _failures_named(store, location):
        if store == "chroma":
            from . import chroma

            found = chroma.find_collection(chroma.connect(location), collection)
            return chroma.stored_contract(found) if found else None
        from . import qdrant

        with closing(qdrant.connect(location)) as client:
            exists = client.collection_exists(collection)
            return qdrant.stored_contract(client, collection) if exists else None


def merge(stored: EncoderConfig | None, options: dict[str, Any]) -> EncoderConfig:
    """Return the stored options, overridden by those given."""
    return EncoderConfig.from_options(**{**(stored.portable() if stored else {}), **options})


def is_url(location: str) -> bool:
    """Whether a location is a server's address, not a folder."""
    return location.startswith(("http://", "https://"))


def _require_folder(location: str) -> None:
    if not is_url(location) and not Path(location).is_dir():
        raise InputError(f"no folder {location!r}; run `qwen3-embedding index` first")


@contextmanager
def _failures_named(store: str, location: str) -> Generator[None]:
    """Say which store failed, whatever its client raises."""
    try:
        yield
    except Qwen3EmbeddingError:
        raise
    except Exception as error:
        hint = "does the server run?" if is_url(location) else "is it open in another process?"
        raise StoreError(
            f"{store} at {location} cannot be opened ({type(error).__name__}: {error}); {hint}"
        ) from error


def _nothing(collection: str, location: str, names: list[str]) -> InputError:
    there = ", ".join(sorted(names)) or "none"
    return InputError(f"no collection {collection!r} at {location} (there: {there})")
