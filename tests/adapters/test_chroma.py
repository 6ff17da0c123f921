"""The Chroma door in real Chromas: in memory, in a folder across processes, behind HTTP.

The configuration tests are the scenarios of Chroma's own chromadb.test.configurations, which is
bound to its toy functions, rewritten for ours.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import chromadb
import numpy as np
import pytest
from chromadb.api import ClientAPI
from chromadb.api.collection_configuration import load_collection_configuration_from_json
from chromadb.api.types import (
    Documents,
    EmbeddingFunction,
    Embeddings,
    Schema,
    VectorIndexConfig,
)
from chromadb.utils.embedding_functions import (
    DefaultEmbeddingFunction,
    known_embedding_functions,
    register_embedding_function,
)

import qwen3_embedding_integrations
from qwen3_embedding_integrations import (
    ConfigError,
    ContractMismatchError,
    EncoderConfig,
    InputError,
    Qwen3Encoder,
)
from qwen3_embedding_integrations.chroma import (
    CONTRACT_KEY,
    NAME,
    Qwen3EmbeddingFunction,
    find_collection,
    open_collection,
    stored_config,
    stored_contract,
)

ROOT = Path(qwen3_embedding_integrations.__file__).parents[1]
TINY = ROOT / "qwen3_embedding_integrations" / "tiny"
QUERY = "How do I reset my password?"
DOCUMENTS = [
    "If you forgot your password, reset it by phone.",
    "Refunds are paid within 14 days.",
    "民法调整平等主体的自然人、法人和非法人组织之间的人身关系和财产关系。",
]
IDS = ["password", "refunds", "law"]


@pytest.fixture(scope="session")
def client() -> ClientAPI:
    return chromadb.EphemeralClient()


@pytest.fixture
def name() -> str:
    """Return a new name: all ephemeral clients of a process share one database."""
    return f"test-{uuid.uuid4().hex}"


@register_embedding_function
class OtherFunction(EmbeddingFunction[Documents]):
    """Somebody else's function."""

    def __init__(self) -> None:
        pass

    def __call__(self, input: Documents) -> Embeddings:
        return [np.eye(256, dtype=np.float32)[len(text)] for text in input]

    @staticmethod
    def name() -> str:
        return "somebody_elses"

    def get_config(self) -> dict[str, Any]:
        return {}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> OtherFunction:
        return OtherFunction()


def function(**options: Any) -> Qwen3EmbeddingFunction:
    """Return the function whose encoder is the `tiny` fixture's, unless told otherwise."""
    return Qwen3EmbeddingFunction(**{"model": "tiny", "dtype": "float32", **options})


def function_json(collection: chromadb.Collection) -> dict[str, Any]:
    """Return what Chroma keeps of a collection's function."""
    return dict(collection.configuration_json["embedding_function"])


def space(collection: chromadb.Collection) -> str:
    return collection.configuration_json["hnsw"]["space"]


# --- the function itself -------------------------------------------------------------------------


def test_it_is_registered_under_its_permanent_name() -> None:
    """Stored collections say "qwen3_embedding": Chroma finds the class under it."""
    assert NAME == Qwen3EmbeddingFunction.name() == "qwen3_embedding"
    assert known_embedding_functions["qwen3_embedding"] is Qwen3EmbeddingFunction
    assert isinstance(function(), EmbeddingFunction)


def test_every_option_but_the_machines_survives_the_round_trip() -> None:
    """`get_config` is JSON from which `build_from_config` makes the same function elsewhere."""
    options = {
        "model": "tiny",
        "revision": "97b0c614",
        "lora": "owner/adapter",
        "dtype": "float32",
        "quantization": "int8",
        "dimensions": 64,
        "instruction": "Find the help article that answers the question",
        "max_length": 77,
        "on_too_long": "chunk_mean",
        "on_empty": "embed",
        "base_url": None,
        "api_key_env": None,
    }
    machine = {
        "device": "cpu",
        "attention": "sdpa",
        "max_batch_tokens": 99,
        "max_queue_tokens": 9999,
        "local_files_only": True,
        "backend": "torch",
    }
    assert {*options, *machine} == set(EncoderConfig.option_names()), "an option is not tried"
    config = Qwen3EmbeddingFunction(**options, **machine).get_config()
    assert config == options
    stored = json.loads(json.dumps(config))
    Qwen3EmbeddingFunction.validate_config(stored)
    assert Qwen3EmbeddingFunction.build_from_config(stored).get_config() == options
    server = {"base_url": "http://localhost:8000/v1", "api_key_env": "EMBEDDING_KEY"}
    remote = Qwen3EmbeddingFunction(**{**options, **server, "on_too_long": "error"}).get_config()
    assert remote == {**options, **server, "on_too_long": "error"}
    assert Qwen3EmbeddingFunction.build_from_config(remote).get_config() == remote


def test_a_configuration_it_would_not_make_is_invalid() -> None:
    """Unknown names and impossible values are refused with what is allowed."""
    for config in ({"model": "tiny", "dimension": 64}, {"model": "tiny", "dimensions": 31}):
        with pytest.raises(ConfigError):
            Qwen3EmbeddingFunction.validate_config(config)
        with pytest.raises(ConfigError):
            Qwen3EmbeddingFunction(**config)


def test_rows_are_float32_arrays_of_the_given_width(tiny: Qwen3Encoder) -> None:
    """Both methods return what Chroma takes without conversion: a list of float32 rows."""
    rows = [*function()(DOCUMENTS), *function().embed_query(input=[QUERY])]
    assert {(row.dtype.name, row.shape) for row in rows} == {("float32", (tiny.dimensions,))}
    assert {row.shape for row in function(dimensions=64)(DOCUMENTS)} == {(64,)}


def test_bad_texts_write_nothing_and_harm_no_later_call(client: ClientAPI, name: str) -> None:
    """A text that cannot be encoded is refused by `add` before a row is written."""
    collection = client.create_collection(name, embedding_function=function())
    for bad in ("", " \n", "\ud800"):
        with pytest.raises(InputError):
            collection.add(ids=["good", "bad"], documents=[DOCUMENTS[0], bad])
    assert collection.count() == 0
    collection.add(ids=IDS, documents=DOCUMENTS)
    assert collection.count() == len(IDS)
    with pytest.raises(InputError):
        collection.query(query_texts=[""])
    assert collection.query(query_texts=[QUERY], n_results=1)["ids"] == [["password"]]


# --- Chroma's configuration scenarios ------------------------------------------------------------


def test_the_whole_configuration_is_kept_with_the_collection(client: ClientAPI, name: str) -> None:
    """Chroma keeps name and options as a known function, never as a "legacy" one."""
    collection = client.create_collection(name, embedding_function=function(dimensions=64))
    stored = function_json(client.get_collection(name))
    assert stored["type"] == "known"
    assert stored["name"] == NAME
    assert stored["config"] == function(dimensions=64).get_config()
    assert function_json(collection) == stored
    assert stored_config(collection) == EncoderConfig(model="tiny", dtype="float32", dimensions=64)


def test_the_configuration_and_its_json_agree(client: ClientAPI, name: str) -> None:
    """The function Chroma builds from the stored JSON has the options of the JSON."""
    collection = client.create_collection(
        name, configuration={"embedding_function": function(dimensions=64)}
    )
    built = collection.configuration["embedding_function"]
    assert isinstance(built, Qwen3EmbeddingFunction)
    assert built.get_config() == function_json(collection)["config"]


def test_the_function_is_rebuilt_when_a_collection_is_opened(
    client: ClientAPI, name: str, tiny: Qwen3Encoder
) -> None:
    """`get_collection(name)` alone embeds queries as the collection was made to."""
    made = client.create_collection(name, embedding_function=function(dimensions=64))
    made.add(ids=IDS, documents=DOCUMENTS)
    found = client.get_collection(name).query(query_texts=[QUERY], n_results=1)
    assert found["ids"] == [["password"]]
    more = client.get_collection(name)
    more.add(ids=["more"], documents=["The capital of China is Beijing."])
    rows = more.get(include=["embeddings"])["embeddings"]
    assert np.shape(rows) == (4, 64)


def test_creating_again_with_get_or_create_keeps_the_configuration(
    client: ClientAPI, name: str
) -> None:
    """`get_or_create_collection` with the same function opens what is there."""
    made = client.create_collection(name, embedding_function=function(dimensions=64))
    again = client.get_or_create_collection(name, embedding_function=function(dimensions=64))
    assert again.id == made.id
    assert function_json(again) == function_json(made)


def test_the_function_may_be_given_twice_if_it_is_the_same(client: ClientAPI, name: str) -> None:
    """As parameter and in the configuration: accepted when equal, refused when another."""
    collection = client.create_collection(
        name, embedding_function=function(), configuration={"embedding_function": function()}
    )
    assert function_json(collection)["name"] == NAME
    with pytest.raises(ValueError, match=r"(?i)embedding function"):
        client.create_collection(
            f"{name}-other",
            embedding_function=function(),
            configuration={"embedding_function": OtherFunction()},
        )


def test_another_function_cannot_open_the_collection(client: ClientAPI, name: str) -> None:
    """Chroma refuses a function of another name, whichever of the two made the collection."""
    other = OtherFunction()
    client.create_collection(name, embedding_function=function())
    with pytest.raises(ValueError, match=r"(?i)embedding function conflict"):
        client.get_collection(name, embedding_function=other)
    client.create_collection(f"{name}-other", embedding_function=other)
    with pytest.raises(ValueError, match=r"(?i)embedding function conflict"):
        client.get_collection(f"{name}-other", embedding_function=function())


def test_cosine_is_the_distance_where_none_is_named(client: ClientAPI, name: str) -> None:
    """Scores of a collection that names no distance are 1 - cosine."""
    assert function().default_space() == "cosine"
    assert space(client.create_collection(name, embedding_function=function())) == "cosine"


def test_the_configuration_goes_before_the_metadata(client: ClientAPI, name: str) -> None:
    """Where both name a distance, Chroma takes the configuration's, as for its own functions."""
    collection = client.create_collection(
        name,
        embedding_function=function(),
        configuration={"hnsw": {"space": "ip"}},
        metadata={"hnsw:space": "l2"},
    )
    assert space(collection) == "ip"


@pytest.mark.parametrize("named", ["cosine", "l2", "ip"])
def test_every_distance_may_be_named(client: ClientAPI, name: str, named: str) -> None:
    """All three rank unit vectors alike, so each is accepted without a warning."""
    for suffix, options in (
        ("-a", {"configuration": {"hnsw": {"space": named}}}),
        ("-b", {"metadata": {"hnsw:space": named}}),
    ):
        collection = client.create_collection(
            name + suffix, embedding_function=function(), **options
        )
        assert space(collection) == named
        collection.add(ids=IDS, documents=DOCUMENTS)
        assert collection.query(query_texts=[QUERY], n_results=1)["ids"] == [["password"]]


def test_the_function_may_stand_in_a_schema(client: ClientAPI, name: str) -> None:
    """Chroma's schema road (`VectorIndexConfig`) stores and rebuilds the function as well."""
    schema = Schema().create_index(
        config=VectorIndexConfig(space="cosine", embedding_function=function(dimensions=64))
    )
    client.create_collection(name, schema=schema).add(ids=IDS, documents=DOCUMENTS)
    found = client.get_collection(name).query(query_texts=[QUERY], n_results=1)
    assert found["ids"] == [["password"]]


def test_a_configuration_of_an_older_version_gets_the_defaults() -> None:
    """An option the stored JSON lacks is the default one."""
    stored = {"embedding_function": {"type": "known", "name": NAME, "config": {"model": "tiny"}}}
    built = load_collection_configuration_from_json(stored)["embedding_function"]
    assert built is not None
    assert built.get_config() == Qwen3EmbeddingFunction("tiny").get_config()


def test_a_damaged_configuration_is_an_error_when_texts_are_embedded() -> None:
    """An option nobody knows is not dropped in silence: the vectors would be others."""
    config = {"model": "tiny", "pooling": "mean"}
    stored = {"embedding_function": {"type": "known", "name": NAME, "config": config}}
    with pytest.raises(ValueError, match="pooling"):
        load_collection_configuration_from_json(stored)


def test_the_device_is_never_stored(client: ClientAPI, name: str) -> None:
    """A collection made on one device opens on another: neither place keeps the device."""
    collection = open_collection(client, name, function(device="cpu"))
    kept = json.dumps([collection.configuration_json, collection.metadata])
    assert '"device"' not in kept
    assert "cpu" not in kept


def test_queries_are_not_embedded_as_documents(
    client: ClientAPI, name: str, tiny: Qwen3Encoder
) -> None:
    """`query(query_texts)` searches behind the instruction: no text is at distance 0 of itself."""
    collection = client.create_collection(name, embedding_function=function())
    collection.add(ids=["same"], documents=[QUERY])
    found = collection.query(query_texts=[QUERY])["distances"]
    assert found is not None
    expected = 1 - (tiny.encode_queries([QUERY]) @ tiny.encode_documents([QUERY]).T).item()
    assert abs(found[0][0] - expected) < 1e-5, f"distance {found[0][0]}, expected {expected}"
    assert expected > 1e-3, f"query and document of one text are {expected} apart only"


def test_chromas_own_suite_passes_beside_ours(tmp_path: Path) -> None:
    """Chroma's tests of its functions and of custom ones pass with our class registered."""
    # Without its conftest, which wants a server's packages and has nothing that these tests use.
    command = "-m pytest -q --noconftest -p no:cacheprovider -p qwen3_embedding_integrations.chroma"
    modules = ["chromadb.test.ef.test_ef", "chromadb.test.ef.test_custom_ef"]
    done = subprocess.run(
        [sys.executable, *command.split(), "--pyargs", *modules],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout, done.stdout


# --- two processes -------------------------------------------------------------------------------

MAKE = """
import json, sys, time
import chromadb
from qwen3_embedding_integrations.chroma import Qwen3EmbeddingFunction

folder, documents, ids = json.loads(sys.argv[1])
start = time.perf_counter()
for _ in range(1000):
    function = Qwen3EmbeddingFunction("tiny", dtype="float32", dimensions=64, device="cpu")
client = chromadb.PersistentClient(folder)
collection = client.create_collection("kept", embedding_function=function)
heavy = sorted({"torch", "tokenizers", "transformers"} & set(sys.modules))
collection.add(ids=ids, documents=documents)
print(json.dumps({"heavy": heavy}))
"""
OPEN = """
import json, sys
import chromadb

folder, query = json.loads(sys.argv[1])
collection = chromadb.PersistentClient(folder).get_collection("kept")
try:
    collection.query(query_texts=[query])
except Exception as error:
    report = {"error": str(error)}
vector = collection.get(include=["embeddings"])["embeddings"][0]
report["by vector"] = collection.query(query_embeddings=[vector], n_results=1)["ids"]

import qwen3_embedding_integrations.chroma

report["stored"] = collection.configuration_json["embedding_function"]
found = collection.query(query_texts=[query], n_results=3)
print(json.dumps(report | {"ids": found["ids"][0], "distances": found["distances"][0]}))
"""


class TwoProcesses(NamedTuple):
    made: dict[str, Any]
    opened: dict[str, Any]


def run_script(script: str, *arguments: Any) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, json.dumps(arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> TwoProcesses:
    """Make a collection in one process, open it in another; return what each reports."""
    folder = str(tmp_path_factory.mktemp("chroma"))
    return TwoProcesses(run_script(MAKE, folder, DOCUMENTS, IDS), run_script(OPEN, folder, QUERY))


def test_making_a_function_and_a_collection_loads_nothing(processes: TwoProcesses) -> None:
    """A thousand functions and a collection import neither torch nor the tokenizer."""
    assert processes.made["heavy"] == []


def test_another_process_rebuilds_the_function(processes: TwoProcesses, tiny: Qwen3Encoder) -> None:
    """Opened elsewhere, the collection embeds queries with the options it was made with."""
    assert processes.opened["stored"]["config"] == function(dimensions=64).get_config()
    encoder = function(dimensions=64).encoder
    scores = encoder.encode_documents(DOCUMENTS) @ encoder.encode_queries([QUERY])[0]
    order = np.argsort(-scores)
    assert processes.opened["ids"] == [IDS[i] for i in order]
    error = np.abs(1 - scores[order] - processes.opened["distances"]).max()
    assert error < 1e-5, f"distances differ by {error}"


def test_without_our_import_chroma_says_what_is_missing(processes: TwoProcesses) -> None:
    """A process that does not import our module is told the stored name; vectors still search."""
    assert "Embedding function qwen3_embedding not found" in processes.opened["error"]
    assert processes.opened["by vector"] == [["password"]]


# --- over HTTP -----------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Yield the port of a real `chroma run`."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    chroma = shutil.which("chroma", path=str(Path(sys.executable).parent))
    assert chroma is not None, "the command `chroma` is not beside this Python"
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [chroma, "run", "--path", str(folder / "data"), "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
        ) as process,
    ):
        try:
            wait_for_port(port, process, folder / "log")
            yield port
        finally:
            process.kill()


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as one:
            one.settimeout(1)
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail(f"`chroma run` did not come up:\n{log.read_text()}")


def test_a_server_keeps_function_and_contract(server: int, name: str, tiny: Qwen3Encoder) -> None:
    """Made by one HTTP client, found by another: same configuration, same contract, same order."""
    made = open_collection(chromadb.HttpClient(port=server), name, function())
    made.add(ids=IDS, documents=DOCUMENTS)
    other = chromadb.HttpClient(port=server)
    collection = other.get_collection(name)
    assert function_json(collection)["config"] == function().get_config()
    assert stored_contract(collection) == tiny.contract
    scores = tiny.encode_documents(DOCUMENTS) @ tiny.encode_queries([QUERY])[0]
    found = collection.query(query_texts=[QUERY], n_results=3)
    assert found["ids"] == [[IDS[i] for i in np.argsort(-scores)]]
    kept = collection.get(ids=IDS, include=["embeddings"])["embeddings"]
    assert kept is not None
    error = np.abs(np.float32(kept) - tiny.encode_documents(DOCUMENTS)).max()
    # Not 0: Chroma itself makes unit vectors again where the distance is cosine.
    assert error < 1e-7, f"the vectors a server returns differ by {error}"
    with pytest.raises(ContractMismatchError, match="dimensions"):
        open_collection(other, name, function(dimensions=64))


async def test_the_async_client_works(server: int, name: str) -> None:
    """Chroma's asynchronous client embeds through the same function."""
    client = await chromadb.AsyncHttpClient(port=server)
    collection = await client.create_collection(name, embedding_function=function())
    await collection.add(ids=IDS, documents=DOCUMENTS)
    found = await (await client.get_collection(name)).query(query_texts=[QUERY], n_results=1)
    assert found["ids"] == [["password"]]


# --- open_collection -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_copy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a folder with the files of "tiny" under another path."""
    return str(shutil.copytree(TINY, tmp_path_factory.mktemp("copy") / "renamed"))


def fields(error: pytest.ExceptionInfo[ContractMismatchError]) -> list[str]:
    return [field for field, _, _ in error.value.differences]


def test_open_collection_makes_one_with_the_contract(
    client: ClientAPI, name: str, tiny: Qwen3Encoder
) -> None:
    """A new collection holds the function, the contract and the caller's metadata."""
    assert find_collection(client, name) is None
    made = open_collection(client, name, model="tiny", dtype="float32", metadata={"owner": "me"})
    assert stored_contract(made) == tiny.contract
    assert function_json(made)["config"] == function().get_config()
    assert made.metadata["owner"] == "me"
    assert space(made) == "cosine"


def test_open_collection_reopens_what_agrees(client: ClientAPI, name: str) -> None:
    """The same facts open the same collection, by options or by function, rows and all."""
    open_collection(client, name, function(dimensions=64)).add(ids=IDS, documents=DOCUMENTS)
    again = open_collection(client, name, model="tiny", dtype="float32", dimensions=64)
    assert again.count() == len(IDS)
    assert again.query(query_texts=[QUERY], n_results=1)["ids"] == [["password"]]


def test_open_collection_refuses_another_width(client: ClientAPI, name: str) -> None:
    """The error names the field and both values, and the override opens it."""
    open_collection(client, name, function(dimensions=64))
    with pytest.raises(ContractMismatchError, match="dimensions: stored 64, yours 256") as error:
        open_collection(client, name, function())
    assert error.value.differences == (("dimensions", 64, 256),)
    assert "allow_mismatch=True" in str(error.value)
    assert open_collection(client, name, function(), allow_mismatch=True).name == name


def test_open_collection_refuses_other_weights(
    client: ClientAPI, name: str, small_checkpoint: Path
) -> None:
    """Two models of one width cannot be told apart by Chroma; their contracts can."""
    open_collection(client, name, function())
    other = function(model=str(small_checkpoint))
    assert other.encoder.dimensions == function().encoder.dimensions
    with pytest.raises(ContractMismatchError, match="stored: tiny, yours: checkpoint") as error:
        open_collection(client, name, other)
    assert fields(error) == ["revision"]
    assert open_collection(client, name, other, allow_mismatch=True).name == name
    other.encoder.close()


def test_the_same_files_elsewhere_are_the_same_model(
    client: ClientAPI, name: str, tiny_copy: str
) -> None:
    """A model is told by its content: a copy under another path opens the collection."""
    open_collection(client, name, function(model=tiny_copy)).add(ids=IDS, documents=DOCUMENTS)
    opened = open_collection(client, name, function())
    assert opened.query(query_texts=[QUERY], n_results=1)["ids"] == [["password"]]


@pytest.mark.parametrize(
    ("option", "made_with"),
    [
        ("dtype", "bfloat16"),
        ("instruction", "Find the law"),
        ("max_length", 99),
        ("on_too_long", "chunk_mean"),
    ],
)
def test_a_soft_difference_only_warns(
    client: ClientAPI, name: str, caplog: pytest.LogCaptureFixture, option: str, made_with: Any
) -> None:
    """Made in bfloat16 on a GPU, opened in float32 on a CPU: noted once, never refused."""
    made = function(**{option: made_with})
    assert made.encoder.contract  # now, so that what loading may say is no part of this
    caplog.clear()
    open_collection(client, name, made)
    assert caplog.messages == []
    assert open_collection(client, name, function()).name == name
    assert [name in message and option in message for message in caplog.messages] == [True]
    open_collection(client, name, function())
    assert len(caplog.messages) == 1


def test_a_collection_of_another_function_is_refused(client: ClientAPI, name: str) -> None:
    """Vectors of Chroma's default function are no vectors of ours."""
    client.create_collection(name, embedding_function=DefaultEmbeddingFunction())
    with pytest.raises(ContractMismatchError, match="stored 'default'") as error:
        open_collection(client, name, function())
    assert fields(error) == ["embedding_function"]


def test_a_collection_made_without_open_collection_is_judged_by_its_options(
    client: ClientAPI, name: str
) -> None:
    """`create_collection` stores no contract: the function's stored options stand in for it."""
    made = client.create_collection(name, embedding_function=function(dimensions=64))
    assert stored_contract(made) is None
    assert open_collection(client, name, function(dimensions=64)).id == made.id
    with pytest.raises(ContractMismatchError, match="dimensions: stored 64, yours 256") as error:
        open_collection(client, name, function())
    assert fields(error) == ["dimensions"]
    with pytest.raises(ContractMismatchError, match="model: stored 'tiny'") as error:
        open_collection(client, name, function(dimensions=64, model=str(TINY)))
    assert fields(error) == ["model"]
    assert open_collection(client, name, function(), allow_mismatch=True).id == made.id


def test_naming_the_models_own_width_is_no_difference(client: ClientAPI, name: str) -> None:
    """`dimensions=None` and the model's own width make the same vectors, so either opens both."""
    client.create_collection(name, embedding_function=function())
    assert open_collection(client, name, function(dimensions=256)).name == name
    open_collection(client, f"{name}-2", function(dimensions=256))
    assert open_collection(client, f"{name}-2", function()).name == f"{name}-2"


def test_a_contract_that_was_erased_is_replaced_by_the_options(
    client: ClientAPI, name: str
) -> None:
    """`modify(metadata=...)` erases the contract; the stored options still guard the vectors."""
    made = open_collection(client, name, function(dimensions=64))
    made.modify(metadata={"owner": "me"})
    assert CONTRACT_KEY not in (client.get_collection(name).metadata or {})
    assert open_collection(client, name, function(dimensions=64)).id == made.id
    with pytest.raises(ContractMismatchError, match="dimensions: stored 64"):
        open_collection(client, name, function())


def test_a_contract_of_a_later_version_is_not_guessed_at(
    client: ClientAPI, name: str, tiny: Qwen3Encoder
) -> None:
    """Facts this version does not know are refused with the advice to upgrade."""
    facts = json.dumps({**tiny.contract.to_dict(), "matryoshka": "reversed"})
    client.create_collection(name, embedding_function=function(), metadata={CONTRACT_KEY: facts})
    with pytest.raises(ContractMismatchError, match=r"matryoshka.*upgrade"):
        open_collection(client, name, function())


@pytest.mark.parametrize("damaged", ["{", "[1]", "{}"])
def test_a_damaged_contract_is_refused_as_such(client: ClientAPI, name: str, damaged: str) -> None:
    """Metadata that somebody overwrote is named in the error, not a parser's riddle."""
    client.create_collection(name, embedding_function=function(), metadata={CONTRACT_KEY: damaged})
    with pytest.raises(ContractMismatchError, match="contract"):
        open_collection(client, name, function())


def test_open_collection_takes_a_function_or_options(client: ClientAPI, name: str) -> None:
    """Both together would contradict each other; unknown options are refused."""
    with pytest.raises(ConfigError, match="not both"):
        open_collection(client, name, function(), dimensions=64)
    with pytest.raises(ConfigError, match="not both"):
        open_collection(client, name, function(), model="tiny")
    with pytest.raises(ConfigError, match="did you mean 'dimensions'"):
        open_collection(client, name, model="tiny", dimension=64)  # pyright: ignore[reportCallIssue]
    assert find_collection(client, name) is None
