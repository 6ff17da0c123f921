"""The Chroma door: Qwen3EmbeddingFunction, and open_collection, which checks the contract."""

from __future__ import annotations

import json
from typing import Any, Unpack
from urllib.parse import urlsplit

from .contract import EmbeddingContract
from .core.config import DEFAULT_MODEL, EncoderConfig, EncoderOptions
from .encoder import Qwen3Encoder
from .errors import ConfigError, ContractMismatchError, MissingDependencyError
from .sharing import shared_encoder

try:
    import chromadb
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection
    from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
    from chromadb.errors import NotFoundError
    from chromadb.utils.embedding_functions import register_embedding_function
except ImportError as error:
    raise MissingDependencyError("chromadb", extra="chroma", reason=error) from error

NAME = "qwen3_embedding"  # stored in users' collections: never change it
CONTRACT_KEY = "qwen3_embedding_contract"  # of a collection's metadata
# Options that must agree where a collection holds no contract, only its function's configuration.
HARD_OPTIONS = ("model", "revision", "dimensions")


@register_embedding_function
class Qwen3EmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeds a collection's documents bare and its queries behind the instruction.

    Takes every option of `EncoderConfig` by name. Chroma keeps the options with the collection and
    builds this object anew whenever it opens one, so making one is free: the model loads with the
    first text, once per process. The device is not kept: a collection made on a GPU opens on a CPU.

    >>> import chromadb
    >>> from qwen3_embedding_integrations.chroma import Qwen3EmbeddingFunction
    >>> function = Qwen3EmbeddingFunction("tiny", dimensions=128)
    >>> client = chromadb.EphemeralClient()
    >>> articles = client.create_collection("articles", embedding_function=function)

    To open a collection in another program, import this module first: Chroma finds the function by
    its registered name.
    """

    def __init__(self, model: str = DEFAULT_MODEL, **options: Unpack[EncoderOptions]) -> None:
        self._config = EncoderConfig.from_options(model, **options)

    def __call__(self, input: Documents) -> Embeddings:  # the name `input` is Chroma's contract
        """Return one unit vector per document, a list of (dimensions,) float32 arrays."""
        return list(self.encoder.encode_documents(input))

    def embed_query(self, input: Documents) -> Embeddings:  # the name `input` is Chroma's contract
        """Return one unit vector per query, a list of (dimensions,) float32 arrays."""
        return list(self.encoder.encode_queries(input))

    @property
    def encoder(self) -> Qwen3Encoder:
        """This process's encoder for these options, loaded on first use."""
        return shared_encoder(self._config)

    @staticmethod
    def name() -> str:
        """Return the name Chroma keeps in every collection."""
        return NAME

    def default_space(self) -> Space:
        """Return the distance of collections that name none."""
        return "cosine"

    def supported_spaces(self) -> list[Space]:
        """Return the distances that rank unit vectors: all three agree."""
        return ["cosine", "l2", "ip"]

    def get_config(self) -> dict[str, Any]:
        """Return what Chroma keeps: every option but the device."""
        # An error here would make Chroma forget the function, so nothing is loaded.
        return self._config.portable()

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> Qwen3EmbeddingFunction:
        """Return the function of a kept configuration."""
        return Qwen3EmbeddingFunction(**config)

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Raise ConfigError for a configuration this class would not make."""
        EncoderConfig.from_options(**config)


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
    opens the collection all the same, unless it belongs to another embedding function.
    """
    if embedding_function is not None and (options or model):
        raise ConfigError("give either embedding_function or options, not both")
    function = embedding_function or Qwen3EmbeddingFunction(model or DEFAULT_MODEL, **options)
    contract = function.encoder.contract
    stored = find_collection(client, name)
    if stored is None:
        facts = {CONTRACT_KEY: json.dumps(contract.to_dict(), ensure_ascii=False)}
        # Chroma's own signature fits none of its functions: "Documents" is not all "Embeddable".
        return client.create_collection(
            name,
            embedding_function=function,  # pyright: ignore[reportArgumentType]
            metadata={**(metadata or {}), **facts},
        )
    _require_match(stored, function, contract, allow_mismatch=allow_mismatch)
    return client.get_collection(name, embedding_function=function)  # pyright: ignore[reportArgumentType]


def connect(location: str) -> ClientAPI:
    """Return a client for a folder, ":memory:" or the URL of a Chroma server."""
    if location == ":memory:":
        return chromadb.EphemeralClient()
    if not location.startswith(("http://", "https://")):
        return chromadb.PersistentClient(location)
    parts = urlsplit(location)
    is_https = parts.scheme == "https"
    port = parts.port or (443 if is_https else 8000)
    return chromadb.HttpClient(host=parts.hostname or "localhost", port=port, ssl=is_https)


def find_collection(client: ClientAPI, name: str) -> Collection | None:
    """Return the collection, or None if there is none of this name."""
    try:
        return client.get_collection(name)
    except NotFoundError:
        return None


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
