"""How Qdrant keeps vectors in memory: float32, float16, int8 or one bit a dimension."""

from __future__ import annotations

import uuid
from typing import Any, Literal, NamedTuple, get_args

from qdrant_client import QdrantClient, models

from ..contract import EmbeddingContract
from ..core.config import EncoderConfig, check_choice
from ..errors import ConfigError
from .client import CONFIG_KEY, CONTRACT_KEY, IDENTITY_KEY, current_name, is_local, stored_contract

Storage = Literal["float32", "float16", "int8", "binary"]

# Candidates are chosen by the small vectors and ranked by the whole ones, kept on disk.
OVERSAMPLING = {"int8": 1.5, "binary": 4.0}

EXACT = models.SearchParams(
    exact=True, quantization=models.QuantizationSearchParams(ignore=True)
)  # every vector compared, none of them quantized: what recall is measured against


class StorageConfig(NamedTuple):
    """What a collection is made with."""

    datatype: models.Datatype
    on_disk: bool
    quantization: models.QuantizationConfig | None


def storage_config(client: QdrantClient, storage: Storage) -> StorageConfig:
    """Return Qdrant's settings for a storage. Raises ConfigError where they would be ignored."""
    check_choice("storage", storage, get_args(Storage))
    if storage != "float32" and is_local(client):
        raise ConfigError(
            f'storage is "{storage}", which a local Qdrant collection ignores: it keeps float32; '
            "use a Qdrant server, or leave storage out"
        )
    is_half = storage == "float16"
    quantization: dict[str, Any] = {
        "int8": models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(
                type=models.ScalarType.INT8, quantile=0.99, always_ram=True
            )
        ),
        "binary": models.BinaryQuantization(
            binary=models.BinaryQuantizationConfig(always_ram=True)
        ),
    }
    return StorageConfig(
        models.Datatype.FLOAT16 if is_half else models.Datatype.FLOAT32,
        on_disk=storage in quantization,
        quantization=quantization.get(storage),
    )


def search_params(storage: Storage) -> models.SearchParams | None:
    """Return how a collection is searched: by small vectors where it has them, then by whole."""
    if storage not in OVERSAMPLING:
        return None
    rescored = models.QuantizationSearchParams(rescore=True, oversampling=OVERSAMPLING[storage])
    return models.SearchParams(quantization=rescored)


def create(
    client: QdrantClient,
    name: str,
    contract: EmbeddingContract,
    config: dict[str, Any] | None,
    storage: Storage = "float32",
) -> None:
    """Make a collection for vectors of this contract, to be opened with these options."""
    kept = storage_config(client, storage)
    client.create_collection(
        name,
        vectors_config=models.VectorParams(
            size=contract.dimensions,
            distance=models.Distance.COSINE,
            datatype=kept.datatype,
            on_disk=kept.on_disk,
        ),
        quantization_config=kept.quantization,
        metadata={
            CONTRACT_KEY: contract.to_dict(),
            CONFIG_KEY: config,
            IDENTITY_KEY: str(uuid.uuid4()),
        },
    )


def make_version(
    client: QdrantClient,
    name: str,
    contract: EmbeddingContract,
    config: EncoderConfig,
    storage: Storage = "float32",
) -> str:
    """Return the collection, "NAME-v2" or later, that a new version is built in."""
    number = 2
    while client.collection_exists(version := f"{name}-v{number}"):
        if version != current_name(client, name):
            stored = stored_contract(client, version)
            is_ours = stored is not None and stored.fingerprint == contract.fingerprint
            if is_ours and stored_storage(client, version) == storage:
                return version  # one that was begun
        number += 1
    create(client, version, contract, config.portable(), storage)
    return version


def stored_storage(client: QdrantClient, name: str) -> Storage:
    """Return how a collection keeps its vectors."""
    config = client.get_collection(name).config
    if config.quantization_config is not None:
        is_binary = isinstance(config.quantization_config, models.BinaryQuantization)
        return "binary" if is_binary else "int8"
    vectors = config.params.vectors
    is_half = (
        isinstance(vectors, models.VectorParams) and vectors.datatype == models.Datatype.FLOAT16
    )
    return "float16" if is_half else "float32"
