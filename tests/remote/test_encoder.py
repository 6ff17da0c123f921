"""RemoteEncoder gives the vectors of the local encoder, whatever the server's manners."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from qwen3_embedding_integrations import (
    ConfigError,
    ContractMismatchError,
    EncoderConfig,
    EngineClosedError,
    InputError,
    NonFiniteOutputError,
    Qwen3Encoder,
    RemoteEncoder,
    RemoteError,
    shared_encoder,
)
from tests.remote.servers import (
    DIALECTS,
    MODEL,
    TEI,
    VLLM,
    Infinity,
    Ours,
    Reply,
    Request,
    Server,
    SGLang,
    serving,
)

QUERIES = ["如何重置密码？ 🚀", 'a "quoted"\nquery', " leading"]
DOCUMENTS = [
    "如果忘记了账户密码，可以用手机号重置。",
    "def reverse(items: list[int]) -> list[int]:\n    return items[::-1]",
    "Refunds are paid within 14 days — to the card you paid with (see Appendix B).",
    "x",
]
CLOSE = 1e-6  # batches of other sizes round otherwise


def remote(server: Server, **options: Any) -> RemoteEncoder:
    return RemoteEncoder(server.url, **{"model": MODEL, "retry_s": 20.0, **options})


def far(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference of any component."""
    assert one.shape == other.shape
    assert one.dtype == np.float32
    return float(np.abs(one - other).max(initial=0))


# --- what is sent, and what comes back -----------------------------------------------------------


@pytest.mark.parametrize("kind", DIALECTS)
async def test_vectors_are_the_local_encoders(kind: type[Server], tiny: Qwen3Encoder) -> None:
    """Queries and documents, sync, async and streamed, at every server, at every width."""
    queries, documents = tiny.encode_queries(QUERIES), tiny.encode_documents(DOCUMENTS)
    with serving(kind) as server, remote(server) as encoder:
        assert far(encoder.encode_queries(QUERIES), queries) < CLOSE
        assert far(encoder.encode_documents(DOCUMENTS), documents) < CLOSE
        assert far(await encoder.aencode_queries(QUERIES), queries) < CLOSE
        assert far(await encoder.aencode_documents(DOCUMENTS), documents) < CLOSE
        streamed = np.concatenate([*encoder.stream_documents(iter(DOCUMENTS), window=3)])
        assert far(streamed, documents) < CLOSE
        own = encoder.encode_queries(QUERIES, instruction="Find the law")
        assert far(own, tiny.encode_queries(QUERIES, instruction="Find the law")) < CLOSE
        assert encoder.dimensions == encoder.model_dimensions == tiny.dimensions
        for dimensions in (32, 100):
            short = shared_encoder(
                EncoderConfig(model="tiny", dtype="float32", dimensions=dimensions)
            )
            with remote(server, dimensions=dimensions) as cut:
                assert far(cut.encode_queries(QUERIES), short.encode_queries(QUERIES)) < CLOSE
                assert cut.dimensions == dimensions


@pytest.mark.parametrize("kind", DIALECTS)
def test_queries_carry_the_instruction_and_documents_nothing(kind: type[Server]) -> None:
    """The body of each request, byte for byte: no field that a server would drop or refuse."""
    instruction = "Given a web search query, retrieve relevant passages that answer the query"
    with serving(kind) as server, remote(server, dimensions=64) as encoder:
        encoder.encode_queries(["如何？", "a\nb"])
        encoder.encode_queries(["x"], instruction="Find the law")
        encoder.encode_documents(["如何？", " x <|endoftext|>"])
        head = '{"encoding_format": "base64", "model": "tiny-served", "input": ['
        prompt = f"Instruct: {instruction}\\nQuery:"
        assert [request.body.decode() for request in server.take()] == [
            f'{head}"{prompt}如何？", "{prompt}a\\nb"]}}',
            f'{head}"Instruct: Find the law\\nQuery:x"]}}',
            f'{head}"如何？", " x <|endoftext|>"]}}',
        ]


def test_the_end_token_is_added_only_where_it_is_asked_for() -> None:
    """A server that forgets <|endoftext|> gets it from here; no other one ever does."""
    with serving() as server, remote(server, end_token="client") as encoder:
        encoder.encode_documents(["a"])
        encoder.encode_queries(["q"], instruction="i")
        sent = [request.input for request in server.take()]
        assert sent == [["a<|endoftext|>"], ["Instruct: i\nQuery:q<|endoftext|>"]]


def test_vectors_are_made_unit_vectors(tiny: Qwen3Encoder) -> None:
    """A server that forgets to normalise, or sends what was float16, does no harm."""

    def tampered(scale: float, dtype: type[np.floating[Any]]) -> Any:
        def tamper(answer: dict[str, Any]) -> dict[str, Any]:
            for row in answer["data"]:
                row["embedding"] = (np.array(row["embedding"]) * scale).astype(dtype).tolist()
            return answer

        return tamper

    expected = tiny.encode_documents(DOCUMENTS)
    for scale, dtype, close in ((95.0, np.float32, CLOSE), (1.0, np.float16, 1e-3)):
        with serving(SGLang, tamper=tampered(scale, dtype)) as server, remote(server) as encoder:
            vectors = encoder.encode_documents(DOCUMENTS)
            assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
            assert far(vectors, expected) < close


def test_no_texts_are_no_vectors(tiny: Qwen3Encoder) -> None:
    """An empty list gives an empty array of the right width."""
    with serving() as server, remote(server) as encoder:
        assert encoder.encode_documents([]).shape == (0, tiny.dimensions)
        assert encoder.encode_queries([]).shape == (0, tiny.dimensions)
        assert list(encoder.stream_documents([])) == []


def test_texts_are_judged_as_the_local_encoder_judges_them(tiny: Qwen3Encoder) -> None:
    """Blank, damaged and wrong texts get the same errors, and nothing is sent."""
    with serving() as server, remote(server) as encoder:
        for texts in (["a", ""], ["a", " \n"], ["a", "\ud800"], ["a", None], "a", iter("a")):
            caught = []
            for one in (tiny, encoder):
                with pytest.raises((InputError, TypeError)) as error:
                    one.encode_documents(texts)  # pyright: ignore[reportArgumentType]
                caught.append((type(error.value), str(error.value)))
            assert caught[0] == caught[1]
        with pytest.raises(ConfigError, match="instruction is blank"):
            encoder.encode_queries(["a"], instruction=" ")
        with pytest.raises(InputError, match=r"documents\[700\] is empty"):
            list(encoder.stream_documents([*["a"] * 700, ""]))
        server.take()
        with remote(server, on_empty="embed") as lenient:
            lenient.encode_documents(["", "a"])
        assert server.take()[0].input == ["", "a"]
    with serving(SGLang) as server, remote(server, on_empty="embed") as lenient:
        with pytest.raises(InputError, match=r"no blank text: documents\[1\]") as caught:
            lenient.encode_documents(["a", " "])
        assert caught.value.index == 1


# --- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TEI, Infinity, Ours])
def test_how_many_texts_a_server_takes_is_learnt(kind: Any, tiny: Qwen3Encoder) -> None:
    """The first refusal says how many; no later request has more, and no vector is lost."""
    documents = [f"{DOCUMENTS[i % 4]} {i}" for i in range(70)]
    options = {"max_batch_texts": 30, "max_requests": 1}
    with serving(kind, max_client_batch_size=8) as server, remote(server, **options) as encoder:
        assert far(encoder.encode_documents(documents), tiny.encode_documents(documents)) < CLOSE
        counts = [len(request.input) for request in server.take()]
        assert counts[0] == 30
        assert sum(n for n in counts if n <= 8) == 70
        encoder.encode_documents(documents)
        counts = [len(request.input) for request in server.take()]
        assert max(counts) == 8
        assert sum(counts) == 70


def test_how_many_bytes_a_server_takes_is_learnt(tiny: Qwen3Encoder) -> None:
    """A body that is too large is halved until it passes, and the next ones are smaller."""
    documents = ["password " * 40 + str(i) for i in range(24)]
    with serving(TEI, payload_limit=3000) as server, remote(server, max_requests=1) as encoder:
        assert far(encoder.encode_documents(documents), tiny.encode_documents(documents)) < CLOSE
        server.take()
        encoder.encode_documents(documents)
        assert max(len(request.body) for request in server.take()) <= 3000
        with pytest.raises(InputError, match=r"documents\[1\] is longer than the server") as caught:
            encoder.encode_documents(["a", "so " * 1200, "b"])
        assert caught.value.index == 1


def test_a_limit_that_a_server_does_not_put_in_words_is_learnt(tiny: Qwen3Encoder) -> None:
    """A refusal that names no number is halved once, and the next requests are as small."""

    class Terse(Server):
        def refusal(self, request: Request) -> Reply | None:
            return Reply(400, {"error": "no"}) if len(request.input) > 9 else None

    documents = [f"document {i}" for i in range(40)]
    options = {"max_requests": 1, "max_batch_texts": 20}
    with serving(Terse) as server, remote(server, **options) as encoder:
        assert far(encoder.encode_documents(documents), tiny.encode_documents(documents)) < CLOSE
        server.take()
        encoder.encode_documents(documents)
        assert [len(request.input) for request in server.take()] == [5] * 8


@pytest.mark.parametrize("status", [400, 500])
def test_a_text_that_a_server_cannot_encode_is_found(status: int) -> None:
    """Ollama answers 400 for NaN, older ones 500: the text is named, and not asked for a minute."""

    class Ollama(Server):
        def refusal(self, request: Request) -> Reply | None:
            error = {"message": "embedding contains NaN or Inf values", "type": "api_error"}
            return Reply(status, {"error": error}) if "poison" in request.input else None

    with serving(Ollama) as server, remote(server) as encoder:
        with pytest.raises(NonFiniteOutputError, match=r"documents\[5\].*bfloat16"):
            encoder.encode_documents([*"abcde", "poison", *"fgh"])
        assert encoder.stats().retries == 0
        assert len(encoder.encode_documents([*"abcdefgh"])) == 8
        assert len(server.take()[-1].input) == 8, "one bad text has made later requests smaller"


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        (VLLM, {"max_model_len": 50}),
        (SGLang, {"context_length": 50}),
        (TEI, {"max_input_length": 50, "auto_truncate": False}),
        (Ours, {"max_tokens": 50}),
    ],
)
def test_a_text_that_a_server_refuses_is_named(kind: Any, limit: dict[str, Any]) -> None:
    """One text too long among many: its own index in the list, and the server's words."""
    documents = [f"document {i}" for i in range(40)]
    documents[33] = "so on " * 60
    with serving(kind, **limit) as server, remote(server) as encoder:
        with pytest.raises(InputError, match=r"documents\[33\].*(50|tokens)") as caught:
            encoder.encode_documents(documents)
        assert caught.value.index == 33
        with pytest.raises(InputError) as caught:
            list(encoder.stream_documents(["a", *documents], window=7))
        assert caught.value.index == 34
        assert len(encoder.encode_documents(documents[:33])) == 33


def test_a_text_that_a_server_cuts_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """What fills `max_length` on the server is named in a warning, or is an error when told so."""
    documents = ["short", "so on " * 60, "another", "and more " * 60]
    with serving(TEI, max_input_length=50) as server:
        with remote(server, max_length=50) as encoder, caplog.at_level(logging.WARNING):
            assert len(encoder.encode_documents(documents)) == 4
            assert encoder.stats().truncated == 2
        (message,) = caplog.messages
        assert "documents 1, 3: the server read max_length=50 tokens" in message
        with remote(server, max_length=50, on_too_long="error") as strict:
            with pytest.raises(InputError, match="documents 1, 3: the server") as caught:
                strict.encode_documents(documents)
            assert caught.value.index == 1
            assert len(strict.encode_documents(["so on " * 10])) == 1


def test_texts_are_counted(tiny: Qwen3Encoder) -> None:
    """Texts, tokens by the server's own count, requests and retries."""
    with serving() as server, remote(server) as encoder:
        server.next.append(Reply(503, ""))
        encoder.encode_documents(DOCUMENTS)
        num_tokens = sum(map(tiny.count_tokens, DOCUMENTS))
        assert encoder.stats() == (4, num_tokens, 0, 2, 1)
        assert encoder.count_tokens(DOCUMENTS[0]) == tiny.count_tokens(DOCUMENTS[0])
        server.next.append(Reply(200, {"data": [{"embedding": [1.0]}]}))
        with pytest.raises(RemoteError, match="does not say how many tokens"):
            encoder.count_tokens("a")


# --- answers that cannot be ----------------------------------------------------------------------


@pytest.mark.parametrize("bad", [None, float("inf"), 0.0])
def test_what_is_no_direction_is_refused(bad: float | None) -> None:
    """NaN (sent as null), inf and zeros are an error that names the text and the remedy."""

    def tamper(answer: dict[str, Any]) -> dict[str, Any]:
        for row, text in zip(answer["data"], server.requests[-1].input, strict=True):
            if text == "poison":
                row["embedding"] = [bad] * len(row["embedding"])
        return answer

    with serving(SGLang, tamper=tamper) as server, remote(server, max_requests=1) as encoder:
        with pytest.raises(NonFiniteOutputError, match=r"documents\[2\].*bfloat16"):
            encoder.encode_documents(["a", "b", "poison"])
        assert len(encoder.encode_documents(["a", "b"])) == 2


def test_servers_of_different_models_are_noticed() -> None:
    """Two addresses whose vectors have other widths cannot serve one index."""
    narrow = shared_encoder(EncoderConfig(model="tiny", dtype="float32", dimensions=64))
    with serving() as server, serving(encoder=narrow) as other:
        urls = [server.url, other.url]
        with (
            RemoteEncoder(urls, model=MODEL) as encoder,
            pytest.raises(RemoteError, match="every server must serve the same model"),
        ):
            for _ in range(2):
                encoder.encode_documents(["a"])
        wide = remote(server, dimensions=4096)
        with wide, pytest.raises(ConfigError, match=r"dimensions is 4096, .* makes 256"):
            wide.encode_documents(["a"])


# --- many callers --------------------------------------------------------------------------------


def test_threads_and_coroutines_get_their_own_vectors(tiny: Qwen3Encoder) -> None:
    """Threads and coroutines at once, over two servers and faults: none is swapped or lost."""

    def texts(caller: str) -> list[str]:
        return [f"{caller} text {i} " + "so " * (i % 5) for i in range(1 + int(caller[-1]) * 5)]

    with serving(TEI) as first, serving(VLLM) as second:
        urls = [first.url, second.url]
        first.next.extend([Reply(429, "", {"Retry-After": "0"})] * 5)
        with RemoteEncoder(urls, model=MODEL, max_requests=4) as encoder:

            async def coroutines() -> list[Any]:
                return await asyncio.gather(
                    *(encoder.aencode_queries(texts(f"coroutine {i}")) for i in range(20))
                )

            with ThreadPoolExecutor(33) as pool:
                running = pool.submit(asyncio.run, coroutines())
                names = [f"thread {i}" for i in range(20)]
                rows = list(pool.map(lambda name: encoder.encode_documents(texts(name)), names))
            for i, vectors in enumerate(running.result()):
                expected = tiny.encode_queries(texts(f"coroutine {i}"))
                assert far(vectors, expected) < CLOSE, f"coroutine {i}"
            for name, vectors in zip(names, rows, strict=True):
                assert far(vectors, tiny.encode_documents(texts(name))) < CLOSE, name
        assert first.most_at_once + second.most_at_once <= 2 * 2 * 4


def test_no_more_requests_than_allowed_run_at_once() -> None:
    """Back-pressure: a long call keeps `max_requests` under way, not all of its parts."""
    options = {"max_requests": 3, "max_batch_texts": 1}
    with serving(hold=lambda texts: True) as server, remote(server, **options) as encoder:
        threading.Timer(0.5, server.gate.set).start()
        encoder.encode_documents([f"text {i}" for i in range(12)])
        assert server.most_at_once == 3


def test_a_search_does_not_wait_for_an_import(tiny: Qwen3Encoder) -> None:
    """While every request of a long call hangs, a query is answered."""
    held = serving(hold=lambda texts: "import" in texts[0])
    with held as server, remote(server) as encoder, ThreadPoolExecutor(1) as pool:
        importing = pool.submit(encoder.encode_documents, ["import this"] * 400)
        assert far(encoder.encode_queries(QUERIES), tiny.encode_queries(QUERIES)) < CLOSE
        assert not importing.done()
        server.gate.set()
        assert len(importing.result()) == 400


async def test_a_call_that_is_given_up_is_not_sent_on() -> None:
    """Cancelling takes back the requests that have not begun."""
    options = {"max_requests": 1, "max_batch_texts": 1}
    with serving(hold=lambda texts: True) as server, remote(server, **options) as encoder:
        call = asyncio.ensure_future(encoder.aencode_documents([f"text {i}" for i in range(50)]))
        while not server.requests:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        server.gate.set()
        await encoder.aencode_queries(["a", "b"])
        assert sum("text" in request.input[0] for request in server.requests) <= 2


def test_a_stream_holds_no_more_than_two_windows() -> None:
    """An endless iterable is taken in as its vectors are used."""
    taken = 0

    def endless() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield f"text {taken}"

    with serving() as server, remote(server) as encoder:
        stream = encoder.stream_documents(endless(), window=20)
        for number in range(1, 4):
            assert len(next(stream)) == 20
            assert taken <= (number + 2) * 20
        stream.close()  # pyright: ignore[reportAttributeAccessIssue]


def test_closing_fails_what_is_under_way() -> None:
    """A closed encoder refuses calls, and leaves nobody waiting for an answer."""
    with serving(hold=lambda texts: True) as server:
        encoder = remote(server)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(encoder.encode_documents, ["a"])
            while not server.requests:
                threading.Event().wait(0.01)
            encoder.close()
            with pytest.raises(EngineClosedError):
                waiting.result(timeout=60)
        assert encoder.is_closed
        with pytest.raises(EngineClosedError):
            encoder.encode_documents(["a"])


# --- what it is, for indexes and other processes -------------------------------------------------


def test_it_travels_and_is_copied_without_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickled, it finds its key where it was told to look; a key of its own is not written."""
    monkeypatch.setenv("MY_KEY", "sesame")
    options = {"dimensions": 64, "api_key_env": "MY_KEY", "max_batch_texts": 2}
    with serving(key="sesame") as server, remote(server, **options) as encoder:
        data = pickle.dumps(encoder)
        assert b"sesame" not in data
        with pickle.loads(data) as again:
            assert again.config == encoder.config
            again.encode_documents(["a", "b", "c"])
            assert [len(request.input) for request in server.take()] in ([2, 1], [1, 2])
        assert copy.deepcopy(encoder) is copy.copy(encoder) is encoder
        with remote(server, api_key="sesame") as keyed:
            with pytest.raises(ConfigError, match="api_key_env"):
                pickle.dumps(keyed)
            for shown in (repr(keyed), json.dumps(keyed.config.to_dict())):
                assert "sesame" not in shown


def test_weights_that_cannot_be_seen_are_not_taken_for_others(tiny: Qwen3Encoder) -> None:
    """A local index opens over a server only by the word of its user, given as `revision`."""
    with serving() as server:
        with remote(server) as encoder:
            contract = encoder.contract
            assert (contract.model, contract.revision) == (MODEL, f"remote:{MODEL}")
            assert contract.dtype == "unknown"
            assert contract.dimensions == tiny.dimensions
            with pytest.raises(ContractMismatchError, match=r"revision: .*give revision="):
                contract.require_match(tiny.contract, index="an index")
            contract.require_match(contract, index="an index")
        with remote(server, revision=tiny.contract.revision) as encoder:
            assert encoder.contract.fingerprint == tiny.contract.fingerprint
        known = {"dtype": "float32", "max_length": tiny.max_length}
        with remote(server, revision=tiny.contract.revision, **known) as encoder:
            assert encoder.contract.difference(tiny.contract) == []
        server.take()
        with remote(server, dimensions=64) as encoder:
            assert encoder.contract.dimensions == 64
        assert server.take() == [], "with dimensions the contract needs no request"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_too_long": "chunk_mean"}, "chunk_mean"),
        ({"dimension": 64}, "did you mean 'dimensions'"),
        ({"device": "cuda"}, "device is 'cuda'"),
        ({"max_batch_texts": 0}, "max_batch_texts is 0"),
        ({"max_requests": 2.5}, "max_requests is 2.5"),
        ({"end_token": "both"}, "end_token is 'both'"),
        ({"api_key_env": "NO_KEY"}, "not set"),
    ],
)
def test_impossible_options_are_errors(options: dict[str, Any], message: str) -> None:
    """What a server decides, or nobody knows, is refused when the encoder is made."""
    with pytest.raises(ConfigError, match=message):
        RemoteEncoder("http://127.0.0.1:9/v1", model=MODEL, **options)


def test_a_config_of_a_server_is_not_loaded_here() -> None:
    """Qwen3Encoder refuses a config with an address; shared_encoder opens it."""
    config = EncoderConfig(model="tiny", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match="use RemoteEncoder, or shared_encoder"):
        Qwen3Encoder(config)
    encoder = shared_encoder(config)
    assert isinstance(encoder, RemoteEncoder)
    assert shared_encoder(config) is encoder
    encoder.close()
    assert shared_encoder(config) is not encoder


SCRIPT = """
import os, sys
from qwen3_embedding_integrations import EncoderConfig, shared_encoder
from qwen3_embedding_integrations.langchain import Qwen3Embeddings
url = sys.argv[1]
embeddings = Qwen3Embeddings("tiny-served", base_url=url)
assert len(embeddings.embed_query("a")) == 256
heavy = {"torch", "transformers", "tokenizers", "safetensors"} & set(sys.modules)
assert not heavy, heavy
encoder = shared_encoder(EncoderConfig(model="tiny-served", base_url=url))
assert encoder is embeddings.encoder
child = os.fork()
if child == 0:  # with an encoder of its parent's, and with its own
    one = encoder.encode_documents(["a"] * 50)
    other = embeddings.embed_documents(["a"] * 50)
    os._exit(0 if one.tolist() == other and embeddings.encoder is not encoder else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert len(encoder.encode_documents(["a"] * 50)) == 50
"""


def test_no_torch_is_imported_and_a_fork_goes_on() -> None:
    """A process that only asks a server stays light; its child has connections of its own."""
    with serving() as server:
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_client_library_is_named() -> None:
    """Without httpx the error says what to install."""
    code = (
        "import sys; sys.modules['httpx'] = None\n"
        "from qwen3_embedding_integrations import MissingDependencyError, RemoteEncoder\n"
        "try:\n    RemoteEncoder('http://a/v1', model='m')\n"
        "except MissingDependencyError as error:\n    print(error)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'qwen3-embedding-integrations[remote]'" in done.stdout
