"""One request: sent as told, asked again while faults pass, put in order, judged as an answer."""

from __future__ import annotations

import base64
import gc
import json
import time
import warnings
from typing import Any

import numpy as np
import pytest

from qwen3_embedding_integrations import ConfigError, Qwen3Encoder, RemoteError
from qwen3_embedding_integrations.remote import ServerClient
from tests.remote.servers import HANG_UP, MODEL, VLLM, Reply, Server, SGLang, serving

TEXTS = ["Paris is in France.", "水在一百摄氏度沸腾。", "x"]
DEAD = "http://127.0.0.1:9/v1"  # the discard port: nobody listens


def client(server: Server | str, **options: Any) -> ServerClient:
    url = server if isinstance(server, str) else server.url
    return ServerClient(url, **{"model": MODEL, "retry_s": 20.0, **options})


def test_vectors_are_what_the_server_sent(tiny: Qwen3Encoder) -> None:
    """Bytes and numbers alike arrive bit for bit, with the server's own count of tokens."""
    expected = tiny.encode_documents(TEXTS)
    for kind in (Server, SGLang):
        with serving(kind) as server, client(server) as one:
            vectors, num_tokens = one.embed(TEXTS)
            assert vectors.dtype == np.float32
            error = np.abs(vectors - expected).max()
            assert error < 1e-6, f"{kind.__name__}: {error}"
            assert num_tokens == sum(map(tiny.count_tokens, TEXTS))
            assert one.embed([]).vectors.shape == (0, 0)


def test_the_request_is_what_was_asked() -> None:
    """Texts, token ids and further fields go out in one body, byte for byte."""
    with serving() as server, client(server) as one:
        one.embed(["Ünï 水 🚀\n"], fields={"user": "me"})
        (request,) = server.take()
        assert request.path == "/v1/embeddings"
        assert request.headers["Authorization"] == "Bearer EMPTY"
        assert request.headers["Content-Type"] == "application/json"
        assert request.body == (
            b'{"encoding_format": "base64", "model": "tiny-served", '
            b'"input": ["' + "Ünï 水 🚀".encode() + b'\\n"], "user": "me"}'
        )
        server.next.append(Reply(200, {"data": [{"index": 0, "embedding": [1.0]}]}))
        one.embed([np.array([7, 151643])])
        assert json.loads(server.take()[0].body)["input"] == [[7, 151643]]


def test_base64_is_asked_for_until_it_is_refused(tiny: Qwen3Encoder) -> None:
    """A server that refuses the format is asked for numbers, and not for bytes again."""
    detail = {"loc": ["body", "encoding_format"], "msg": "Input should be 'float'"}
    with serving() as server, client(server) as one:
        server.next.append(Reply(422, {"detail": [detail]}))
        for _ in range(2):
            assert np.abs(one.embed(TEXTS).vectors - tiny.encode_documents(TEXTS)).max() < 1e-6
        formats = [json.loads(request.body)["encoding_format"] for request in server.take()]
        assert formats == ["base64", "float", "float"]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_fault_is_outlasted(status: int) -> None:
    """A server that is busy, restarting or behind a failing proxy is asked again."""
    with serving() as server, client(server) as one:
        server.next.append(Reply(status, "<html>bad gateway</html>"))
        assert len(one.embed(["a"]).vectors) == 1
        assert len(server.take()) == 2
        assert (one.num_requests, one.num_retries) == (2, 1)


def test_a_connection_closed_as_it_is_used_again_is_no_fault() -> None:
    """The request is sent once more at once; a server that goes on hanging up is asked later."""
    with serving() as server, client(server) as one:
        server.next.append(HANG_UP)
        one.embed(["a"])
        assert (one.num_requests, one.num_retries) == (2, 0)
        server.next.extend([HANG_UP, HANG_UP])
        one.embed(["a"])
        assert (one.num_requests, one.num_retries) == (5, 1)


def test_a_server_says_how_long_to_wait() -> None:
    """Retry-After is obeyed: the server is left alone for that long."""
    with serving() as server, client(server) as one:
        server.next.append(Reply(429, {"message": "Model is overloaded"}, {"Retry-After": "1"}))
        start = time.monotonic()
        one.embed(["a"])
        assert time.monotonic() - start >= 1
        assert len(server.take()) == 2


@pytest.mark.parametrize(
    ("reply", "parts"),
    [
        (
            Reply(400, {"object": "error", "message": "no such task"}),
            ["answered 400: no such task"],
        ),
        (Reply(404, {"error": {"message": "no model `x`"}}), ["404: no model `x`", "end in /v1"]),
        (Reply(401, ""), ["answered 401: nothing", "api_key_env"]),
        (Reply(403, {"error": "Unauthorized"}), ["403: Unauthorized", "api_key_env"]),
        (Reply(424, {"message": "Inference failed", "type": "Backend"}), ["Inference failed"]),
        (
            Reply(422, {"detail": [{"loc": ["body", "input"], "msg": "Field required"}]}),
            ["422: body.input: Field required"],
        ),
        (Reply(307, "", {"Location": "http://elsewhere/"}), ["answered 307"]),
        (Reply(500, {"error": {"message": "input is too large to process"}}), ["too large"]),
        (Reply(413, "x" * 10_000), ["x" * 500]),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Reply) else "",
)
def test_a_refusal_is_an_error_in_the_servers_words(reply: Reply, parts: list[str]) -> None:
    """What asking again cannot mend is raised at once, with message, URL and status."""
    with serving() as server, client(server) as one:
        server.next.append(reply)
        with pytest.raises(RemoteError) as caught:
            one.embed(["a"])
        assert len(server.take()) == 1
        assert (caught.value.url, caught.value.status) == (server.url, reply.status)
        for part in [server.url, *parts]:
            assert part in str(caught.value)
        assert len(str(caught.value)) < 800


ONE = {"index": 0, "embedding": [1.0, 0.0]}
TWO = {"index": 1, "embedding": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({"data": [ONE]}, "answered 2 inputs with 1 vectors"),
        ({"data": [ONE, TWO, {**TWO, "index": 2}]}, "2 inputs with 3 vectors"),
        ({"data": [ONE, ONE]}, "index [0, 0]"),
        ({"data": [ONE, {**TWO, "index": "1"}]}, "index [0, '1']"),
        ({"data": [ONE, {**TWO, "embedding": [1.0]}]}, "several widths: [1, 2]"),
        ({"data": [ONE, {**TWO, "embedding": [[1.0, 2.0]]}]}, "an embedding has 2 axes"),
        ({"data": [ONE, {**TWO, "embedding": "%%%"}]}, "not base64"),
        ({"data": [ONE, {**TWO, "embedding": "AAAA"}]}, "no list of embeddings"),
        ({"data": [ONE, {"index": 1}]}, "'embedding'"),
        ({"data": None}, "no list of embeddings"),
        ({"embeddings": [[1.0]]}, "'data'"),
        ([], "no list of embeddings"),
        ("<html>welcome</html>", "<html>welcome"),
    ],
)
def test_an_answer_that_is_none_is_an_error(body: Any, part: str) -> None:
    """Vectors that do not belong to the inputs one by one are never handed on."""
    with serving() as server, client(server) as one:
        server.next.append(Reply(200, body))
        with pytest.raises(RemoteError) as caught:
            one.embed(["a", "b"])
        assert part in str(caught.value)
        assert caught.value.status == 200


def test_vectors_stand_where_their_index_says() -> None:
    """An answer out of order is put in order; null is NaN, for the caller to judge."""
    with serving() as server, client(server) as one:
        server.next.append(Reply(200, {"data": [TWO, {**ONE, "embedding": [None, 1e300]}]}))
        vectors, num_tokens = one.embed(["a", "b"])
        assert num_tokens is None
        assert np.array_equal(vectors, [[np.nan, np.inf], [0, 1]], equal_nan=True)
        raw = base64.b64encode(np.array([3, 4], "<f4").tobytes()).decode()
        server.next.append(Reply(200, {"data": [{"embedding": raw}]}))  # one without an index
        assert one.embed(["a"]).vectors.tolist() == [[3, 4]]


def test_a_dead_server_among_several_is_passed_over() -> None:
    """Calls go to those that live, in turn; the dead one is asked last for a while."""
    with serving() as first, serving() as second:
        with client(f"{DEAD}, {first.url}/,{second.url}") as one:
            for _ in range(12):
                one.embed(["a"])
            shares = len(first.take()), len(second.take())
            assert sum(shares) == 12
            assert min(shares) >= 3, shares
            assert one.num_requests == 13, "the dead one is not asked first again"
        first.next.extend([Reply(503, "loading")] * 12)
        with ServerClient([first.url, second.url], model=MODEL, retry_s=0) as one:
            for _ in range(6):
                one.embed(["a"])  # never an error: the other one answers


def test_when_nobody_answers_it_is_an_error_without_a_status() -> None:
    """After `retry_s` the failure is raised, with what to do."""
    with client(f"{DEAD},{DEAD}", retry_s=0.5) as one, pytest.raises(RemoteError) as caught:
        one.embed(["a"])
    assert caught.value.status is None
    assert "cannot be reached (ConnectError" in str(caught.value)
    assert one.num_retries >= 1


def test_a_server_that_never_answers_is_given_up() -> None:
    """`timeout_s` ends a request that hangs."""
    with serving(hold=lambda texts: True) as server:
        hurried = client(server, timeout_s=0.2, retry_s=0)
        with hurried, pytest.raises(RemoteError, match="ReadTimeout"):
            hurried.embed(["a"])
        server.gate.set()


def test_a_client_that_is_dropped_closes_its_connections() -> None:
    """Nobody need call close(): no socket is left for Python to close, which would warn of it."""
    with serving() as server, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client(server).embed(["a"])
        gc.collect()
        assert not [one for one in caught if one.category is ResourceWarning]


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key comes from the argument or from the variable that is named, and from nowhere else."""
    monkeypatch.setenv("OPENAI_API_KEY", "not asked for")
    monkeypatch.setenv("MY_KEY", "sesame")
    with serving(VLLM, key="sesame") as server:
        for options in ({"api_key": "sesame"}, {"api_key_env": "MY_KEY"}):
            with client(server, **options) as one:
                one.embed(["a"])
                assert "sesame" not in repr(one)
        with client(server) as one, pytest.raises(RemoteError, match="answered 401") as caught:
            one.embed(["a"])
        assert "EMPTY" not in str(caught.value)
        assert server.take()[-1].headers["Authorization"] == "Bearer EMPTY"
        with pytest.raises(ConfigError, match="'NO_KEY', an environment variable that is not set"):
            client(server, api_key_env="NO_KEY")
        with pytest.raises(ConfigError, match="either api_key or api_key_env"):
            client(server, api_key="a", api_key_env="MY_KEY")


def test_impossible_options_are_errors() -> None:
    """Addresses that are none, and times that cannot be, are refused when the client is made."""
    for url in ("", "localhost:8000", "ftp://a/v1", "http://", [], "http://u:p@a/v1"):
        with pytest.raises(ConfigError, match="base_url"):
            ServerClient(url, model=MODEL)
    for times in ({"timeout_s": 0}, {"retry_s": -1}):
        with pytest.raises(ConfigError, match="give seconds"):
            client(DEAD, **times)
