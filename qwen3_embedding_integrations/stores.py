"""A collection of Chroma or Qdrant, opened by its location, for the command line."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .contract import EmbeddingContract
from .core.config import EncoderConfig, check_options
from .encoder import Qwen3Encoder
from .errors import ConfigError, InputError, Qwen3EmbeddingError, StoreError
from .hybrid import HybridStore
from .indexing import ReindexReport, can_cut, rebuild
from .indexing.job import Progress
from .keywords import KeywordIndex
from .remote import RemoteEncoder
from .sharing import shared_encoder

if TYPE_CHECKING:
    from .chroma import ChromaStore
    from .qdrant import QdrantStore, Storage

MakeEncoder = Callable[[EncoderConfig], Any]


class OpenStore(NamedTuple):
    """A collection and the encoder that made its vectors."""

    store: ChromaStore | QdrantStore | HybridStore
    encoder: Qwen3Encoder | RemoteEncoder

    def with_keywords(self, path: str | Path) -> OpenStore:
        """Return the collection with the keyword index of this file, made or brought up to date."""
        if isinstance(self.store, HybridStore):
            return self
        return self._replace(store=HybridStore(self.store, KeywordIndex(path)))


def open_store(
    store: str,
    location: str,
    collection: str,
    options: dict[str, Any],
    *,
    create: bool,
    make_encoder: MakeEncoder = shared_encoder,
) -> OpenStore:
    """Return the collection at `location`, a folder or URL; made if missing and `create`.

    Options not given are those the collection was made with; `make_encoder` is asked with all.
    Raises ContractMismatchError where given ones differ in a hard fact, InputError where there is
    nothing to search.
    """
    open_one = {"chroma": _open_chroma, "qdrant": _open_qdrant}[store]
    if not create:
        _require_folder(location)
    with _failures_named(store, location):
        return open_one(location, collection, options, make_encoder, create=create)


def _open_chroma(
    location: str,
    collection: str,
    options: dict[str, Any],
    make_encoder: MakeEncoder,
    *,
    create: bool,
) -> OpenStore:
    from . import chroma

    client = chroma.connect(location)
    stored = chroma.find_collection(client, collection)
    if stored is None and not create:
        raise _nothing(collection, location, [one.name for one in client.list_collections()])
    encoder = make_encoder(merge(chroma.stored_config(stored) if stored else None, options))
    function = chroma.Qwen3EmbeddingFunction.over(encoder)
    opened = chroma.open_collection(client, collection, function)
    return OpenStore(chroma.ChromaStore(client, opened), encoder)


def _open_qdrant(
    location: str,
    collection: str,
    options: dict[str, Any],
    make_encoder: MakeEncoder,
    *,
    create: bool,
) -> OpenStore:
    from . import qdrant

    client = qdrant.connect(location)
    try:
        current = qdrant.current_name(client, collection)
        exists = client.collection_exists(current)
        if not exists and not create:
            names = [one.name for one in client.get_collections().collections]
            raise _nothing(collection, location, names)
        config = merge(qdrant.stored_config(client, current) if exists else None, options)
        encoder = make_encoder(config)
        opened = qdrant.Qwen3Collection(client, collection, encoder=encoder)
    except BaseException:
        client.close()
        raise
    return OpenStore(opened.store, encoder)


def reindex(
    store: str,
    location: str,
    collection: str,
    *,
    storage: Storage | None = None,
    retry_s: int = 300,
    on_progress: Progress | None = None,
    **options: Any,
) -> ReindexReport:
    """Build a collection anew under other options beside the old one, check it, make it current.

    `store` is "chroma" or "qdrant", `location` a folder or URL. Options not given are those the
    collection was made with. With fewer `dimensions` alone the stored vectors are cut, which takes
    no model; with `storage` alone ("float16", "int8", "binary", on a Qdrant server) they are
    copied. What is open goes on with the old collection until it is opened again; that one is
    kept. Killed, the next call goes on. Raises IndexingError, and changes nothing that is current,
    when the two do not come to hold the same rows or sampled vectors are not what they should be.
    """
    check_options(options, EncoderConfig.option_names())
    _require_folder(location)
    with _failures_named(store, location), _versions(store, location, collection) as versions:
        old, config = versions.contract, merge(versions.config, dict(options))
        contract, encoder = old, None
        if set(options) == {"dimensions"} and config.dimensions:
            contract = replace(old, dimensions=config.dimensions)
        if (options and contract == old) or not can_cut(old, contract):
            encoder = shared_encoder(config)
            contract = encoder.contract
            encoder = None if can_cut(old, contract) else encoder
        if contract.fingerprint == old.fingerprint and storage in (None, versions.storage):
            raise InputError(
                f"{versions.current.name} is made under these options already; queries take "
                "another instruction without a new index"
            )
        name, target = versions.make(contract, config, storage or versions.storage)
        report = rebuild(
            versions.current, target, contract, encoder, retry_s=retry_s, on_progress=on_progress
        )
        versions.make_current(name)
    return replace(report, old=versions.name, new=name)


def make_current(store: str, location: str, collection: str, version: str) -> None:
    """Let a collection's name stand for an older version again, or for a newer one."""
    _require_folder(location)
    with _failures_named(store, location), _versions(store, location, collection) as versions:
        versions.make_current(version)


class _Versions(NamedTuple):
    """A collection's current version, and how another one is made."""

    name: str
    current: ChromaStore | QdrantStore
    contract: EmbeddingContract
    config: EncoderConfig | None
    storage: Storage
    make: Callable[
        [EmbeddingContract, EncoderConfig, Storage], tuple[str, ChromaStore | QdrantStore]
    ]
    make_current: Callable[[str], None]


@contextmanager
def _versions(store: str, location: str, collection: str) -> Generator[_Versions]:
    opened = _chroma_versions if store == "chroma" else _qdrant_versions
    with opened(location, collection) as versions:
        yield versions


@contextmanager
def _chroma_versions(location: str, collection: str) -> Generator[_Versions]:
    from . import chroma

    client = chroma.connect(location)
    current = chroma.find_collection(client, collection)
    if current is None:
        raise _nothing(collection, location, [one.name for one in client.list_collections()])

    def make(
        contract: EmbeddingContract, config: EncoderConfig, storage: Storage
    ) -> tuple[str, ChromaStore]:
        if storage != "float32":
            raise ConfigError(
                f'storage is "{storage}", but Chroma keeps float32 alone; cut dimensions instead, '
                "or use a Qdrant server"
            )
        made = chroma.make_version(client, collection, contract, config)
        return made.name, chroma.ChromaStore(client, made)

    yield _Versions(
        current.name,
        chroma.ChromaStore(client, current),
        _required(chroma.stored_contract(current), collection),
        chroma.stored_config(current),
        "float32",
        make,
        partial(chroma.make_current, client, collection),
    )


@contextmanager
def _qdrant_versions(location: str, collection: str) -> Generator[_Versions]:
    from . import qdrant

    with closing(qdrant.connect(location)) as client:
        current = qdrant.current_name(client, collection)
        if not client.collection_exists(current):
            names = [one.name for one in client.get_collections().collections]
            raise _nothing(collection, location, names)

        def make(
            contract: EmbeddingContract, config: EncoderConfig, storage: Storage
        ) -> tuple[str, QdrantStore]:
            made = qdrant.make_version(client, collection, contract, config, storage)
            return made, qdrant.QdrantStore(client, made)

        yield _Versions(
            current,
            qdrant.QdrantStore(client, current),
            _required(qdrant.stored_contract(client, current), collection),
            qdrant.stored_config(client, current),
            qdrant.stored_storage(client, current),
            make,
            partial(qdrant.make_current, client, collection),
        )


def _required(contract: EmbeddingContract | None, collection: str) -> EmbeddingContract:
    if contract is None:
        raise InputError(
            f"collection {collection!r} holds no contract, so nothing says how its vectors were "
            "made; index its documents into a collection of another name"
        )
    return contract


def read_contract(store: str, location: str, collection: str) -> EmbeddingContract:
    """Return the contract stored in a collection, without loading a model."""
    _require_folder(location)
    with _failures_named(store, location), _versions(store, location, collection) as versions:
        return versions.contract


def merge(stored: EncoderConfig | None, options: dict[str, Any]) -> EncoderConfig:
    """Return the stored options, overridden by those given; with a model goes its adapter."""
    kept = stored.portable() if stored else {}
    if "model" in options:
        kept.pop("lora", None)  # it may be in the model's weights already
    return EncoderConfig.from_options(**{**kept, **options})


def keywords_path(location: str, collection: str, given: Path | None) -> Path | None:
    """Return the file of a collection's keywords: as given, or in its folder; None for a URL."""
    if given is not None or is_url(location):
        return given
    return Path(location) / f"{collection}.keywords"


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
