"""open_collection: a Chroma collection made or opened, its contract checked."""

from __future__ import annotations

import json
from typing import Any, Unpack

from chromadb.api import ClientAPI
from chromadb.api.models.Collection import Collection
from chromadb.errors import NotFoundError

from ..contract import EmbeddingContract
from ..core.config import DEFAULT_MODEL, EncoderConfig, EncoderOptions
from ..errors import ConfigError, ContractMismatchError
from .client import answered, end_waits
from .function import NAME, Qwen3EmbeddingFunction

CONTRACT_KEY = "qwen3_embedding_contract"  # of a collection's metadata
CURRENT_KEY = "qwen3_embedding_current"  # of a collection's metadata: which version stands for it
# Options that must agree where a collection holds no contract, only its function's configuration.
HARD_OPTIONS = ("model", "revision", "dimensions")


@answered()
def open_collection(
    client: ClientAPI,
    name: str,
    embedding_function: Qwen3EmbeddingFunction | None = None,
    *,
    model: str | None = None,
    metadata: dict[str, Any] | None = None,
    allow_mismatch: bool = False,
    **options: Unpack[EncoderOptions],
) -> Collection:
    """Return the collection `name`, made if it is not there, refused if made under other facts.

    Chroma itself compares only the function's name: other weights, another width or a whole other
    model open in silence. Here the contract of the stored vectors is compared with that of your
    function (given, or made from `options`), which loads the model. `metadata` is for a new
    collection. Raises ContractMismatchError with the differing fields; `allow_mismatch=True`
    opens the collection all the same, unless it belongs to another embedding function. StoreError
    where a server does not answer; from now on its client waits as `set_timeout` says.
    """
    end_waits(client)
    if embedding_function is not None and (options or model):
        raise ConfigError("give either embedding_function or options, not both")
    function = embedding_function or Qwen3EmbeddingFunction(model or DEFAULT_MODEL, **options)
    contract = function.encoder.contract
    stored = find_collection(client, name)
    if stored is None:
        return _create(client, name, function, contract, metadata or {})
    _require_match(stored, function, contract, allow_mismatch=allow_mismatch)
    return client.get_collection(stored.name, embedding_function=function)  # pyright: ignore[reportArgumentType]


def _create(
    client: ClientAPI,
    name: str,
    function: Qwen3EmbeddingFunction,
    contract: EmbeddingContract,
    metadata: dict[str, Any],
) -> Collection:
    facts = {CONTRACT_KEY: json.dumps(contract.to_dict(), ensure_ascii=False)}
    # Chroma's own signature fits none of its functions: "Documents" is not all "Embeddable".
    return client.create_collection(
        name,
        embedding_function=function,  # pyright: ignore[reportArgumentType]
        metadata={**metadata, **facts},
    )


@answered()
def find_collection(client: ClientAPI, name: str) -> Collection | None:
    """Return the collection, or the version that stands for it; None if there is none."""
    try:
        found = client.get_collection(name)
        version = str((found.metadata or {}).get(CURRENT_KEY, name))
        return found if version == name else client.get_collection(version)
    except NotFoundError:
        return None


@answered()
def make_version(
    client: ClientAPI, name: str, contract: EmbeddingContract, config: EncoderConfig
) -> Collection:
    """Return the collection, "NAME-v2" or later, that a new version is built in."""
    names = {one.name for one in client.list_collections()}
    current = find_collection(client, name)
    number = 2
    while (version := f"{name}-v{number}") in names:
        begun = client.get_collection(version)
        stored = stored_contract(begun)
        is_current = current is not None and version == current.name
        if not is_current and stored and stored.fingerprint == contract.fingerprint:
            return begun
        number += 1
    function = Qwen3EmbeddingFunction(**config.to_dict())
    return _create(client, version, function, contract, {})


@answered()
def make_current(client: ClientAPI, name: str, version: str) -> None:
    """Let `open_collection(client, name)` open a version, in one step."""
    client.get_collection(version)  # NotFoundError, if there is none
    collection = client.get_collection(name)
    kept = {k: v for k, v in (collection.metadata or {}).items() if not k.startswith("hnsw:")}
    collection.modify(metadata={**kept, CURRENT_KEY: version})


def stored_config(collection: Collection) -> EncoderConfig | None:
    """Return the options a collection was made with, or None if another function made it."""
    kept = collection.configuration_json.get("embedding_function") or {}
    return EncoderConfig.from_options(**kept["config"]) if kept.get("name") == NAME else None


def stored_contract(collection: Collection) -> EmbeddingContract | None:
    """Return the contract of a collection's vectors, or None if it was made without one."""
    facts = (collection.metadata or {}).get(CONTRACT_KEY)
    return EmbeddingContract.from_dict(str(facts)) if facts else None


def _require_match(
    collection: Collection,
    function: Qwen3EmbeddingFunction,
    contract: EmbeddingContract,
    *,
    allow_mismatch: bool,
) -> None:
    index = f"Chroma collection {collection.name!r}"
    if stored := stored_contract(collection):
        return contract.require_match(stored, index=index, allow_mismatch=allow_mismatch)
    # Made without open_collection: what Chroma keeps of the function is all there is.
    kept = collection.configuration_json.get("embedding_function") or {}
    # None stands for the model's own width.
    own_width = {"dimensions": function.encoder.model_dimensions}
    mine, theirs = (
        config | (own_width if config.get("dimensions") is None else {})
        for config in (function.get_config(), kept.get("config") or {})
    )
    differences = [
        (option, theirs.get(option), mine[option])
        for option in HARD_OPTIONS
        if theirs.get(option) != mine[option]
    ]
    is_ours = kept.get("name") == NAME
    if not is_ours:  # Chroma itself would refuse our function, so no override can help
        differences = [("embedding_function", kept.get("name"), NAME)]
    if differences and not (is_ours and allow_mismatch):
        described = "; ".join(f"{f}: stored {s!r}, yours {g!r}" for f, s, g in differences)
        raise ContractMismatchError(
            f"{index} was made otherwise: {described}. Open it with the options it was made with, "
            "index again under another name" + (", or pass allow_mismatch=True" if is_ours else ""),
            differences=differences,
        )
    return None
