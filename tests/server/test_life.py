"""A server's life: start, idle unload and reload, a model that went, SIGTERM, what is counted."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import qwen3_embedding_integrations as package
from qwen3_embedding_integrations import ConfigError, EncoderConfig, Qwen3Encoder
from qwen3_embedding_integrations.cache import CachedEncoder
from qwen3_embedding_integrations.core.prompts import query_prompt
from qwen3_embedding_integrations.remote import RemoteEncoder
from qwen3_embedding_integrations.server import ServedModel, ServerConfig, create_app
from qwen3_embedding_integrations.server.command import served_models
from tests.adapters.spy import spied_encoder
from tests.commands import run_here
from tests.server.serving import Running, assert_close, serving, wait_until

TINY = Path(package.__file__).parent / "tiny"


def folder_model(folder: Path, name: str) -> ServedModel:
    shutil.copytree(TINY, folder)
    return ServedModel.embedding(EncoderConfig(model=str(folder), dtype="float32"), name=name)


def asking(running: Running, model: str) -> tuple[int, dict]:
    answer = running.post("/v1/embeddings", {"model": model, "input": "a"})
    return answer.status, answer.body


def test_idle_models_are_unloaded_and_loaded_again(
    tmp_path: Path, tiny: Qwen3Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    """After its keep-alive a model is freed; the next requests, many at once, load it once."""
    caplog.set_level(logging.INFO, package.__name__)
    model = folder_model(tmp_path / "a", "tiny")
    with serving([model], ServerConfig(keep_alive_s=0.3)) as running:
        assert_close(running.vectors(["a"]), tiny.encode_documents(["a"]))
        wait_until(lambda: running.metric("qwen3_model_loaded", model="tiny") == 0)
        assert running.get("/readyz").body["models"] == {"tiny": "unloaded"}
        assert running.get("/readyz").status == 200
        with ThreadPoolExecutor(16) as pool:
            texts = [f"text {number}" for number in range(16)]
            rows = list(pool.map(lambda text: running.vectors([text]), texts))
        assert_close(np.concatenate(rows), tiny.encode_documents(texts))
        num_loads = running.metric("qwen3_model_loads_total", model="tiny")
    # Where the machine stands still for a keep-alive, it is freed and loaded more often.
    words = [one.split()[2] for one in caplog.messages if one.startswith("model tiny ")]
    assert words[:3] == ["loaded", "unloaded", "loaded"]
    assert all(word != following for word, following in itertools.pairwise(words))
    assert words.count("loaded") == num_loads


def test_a_model_that_went(tmp_path: Path) -> None:
    """A model whose folder is gone at reload is a 503 that names it; another one answers on."""
    gone = folder_model(tmp_path / "gone", "gone")
    stays = folder_model(tmp_path / "stays", "stays")
    with serving([gone, stays], ServerConfig(keep_alive_s=0.3)) as running:
        assert asking(running, "gone")[0] == 200
        wait_until(lambda: running.metric("qwen3_model_loaded", model="gone") == 0)
        shutil.move(tmp_path / "gone", tmp_path / "away")
        status, body = asking(running, "gone")
        assert status == 503
        assert "'gone' cannot be loaded" in body["error"]["message"]
        assert str(tmp_path) not in body["error"]["message"], "paths are the server's own"
        assert asking(running, "stays")[0] == 200
        states = running.get("/readyz").body["models"]
        assert states["gone"] == "failed"
        shutil.move(tmp_path / "away", tmp_path / "gone")
        assert asking(running, "gone")[0] == 200, "what is there again is loaded again"


def test_a_cached_encoder_is_served(tiny: Qwen3Encoder) -> None:
    """What is asked again comes from the cache, by role; usage and hits are counted."""
    config = EncoderConfig(model="tiny", dtype="float32")
    cached = ServedModel("cached", "embedding", lambda: CachedEncoder(Qwen3Encoder(config)))
    with serving([cached]) as running:
        for word, expected, read in (
            ("query", tiny.encode_queries(["a b"]), query_prompt(config.instruction) + "a b"),
            ("document", tiny.encode_documents(["a b"]), "a b"),
        ):
            body = {"model": "cached", "input": "a b", "input_type": word, "truncate": "END"}
            for _ in range(3):
                answer = running.post("/v1/embeddings", body)
                vectors = np.array([answer.body["data"][0]["embedding"]], np.float32)
                assert_close(vectors, expected)
                assert answer.body["usage"]["prompt_tokens"] == tiny.count_tokens(read)
        assert running.metric("qwen3_cache_hits_total", model="cached") == 4
        assert running.metric("qwen3_forwards_total", model="cached") == 2
        long = "word " * (tiny.max_length + 1)
        body = {"model": "cached", "input": ["a", long], "truncate": "NONE"}
        answer = running.post("/v1/embeddings", body)
        assert answer.status == 400
        assert answer.body["error"]["code"] == "context_length_exceeded"
        ids = tiny._loaded.tokenizer.encode(["a b"])[0].tolist()
        answer = running.post("/v1/embeddings", {"model": "cached", "input": ids})
        vectors = np.array([answer.body["data"][0]["embedding"]], np.float32)
        assert_close(vectors, tiny.encode_documents(["a b"]))


def test_a_remote_that_fails(tiny: Qwen3Encoder) -> None:
    """A model whose server is gone is a 502 without that server's address."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    far = ServedModel("far", "embedding", lambda: RemoteEncoder(url, model="tiny", retry_s=0.1))
    near = ServedModel.embedding(EncoderConfig(model="tiny", dtype="float32"))
    with serving([far, near]) as running:
        status, body = asking(running, "far")
        assert status == 502
        assert url not in body["error"]["message"]
        assert asking(running, "tiny")[0] == 200


def test_metrics(server: Running) -> None:
    """/metrics parses, and what was asked is counted: requests, tokens, forwards, fill."""
    server.vectors(["warm"])
    before = server.metric("qwen3_tokens_total", model="tiny", role="documents")
    server.vectors(["one two three"] * 3)
    after = server.metric("qwen3_tokens_total", model="tiny", role="documents")
    answer = server.post("/v1/embeddings", {"model": "tiny", "input": "one two three"})
    assert after - before == 3 * answer.body["usage"]["prompt_tokens"]
    text = server.client.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {
        "qwen3_requests", "qwen3_request_seconds", "qwen3_texts", "qwen3_tokens",
        "qwen3_queue_calls", "qwen3_queue_tokens", "qwen3_forwards", "qwen3_batch_fill",
        "qwen3_forward_out_of_memory", "qwen3_model_loaded", "qwen3_requests_under_way",
    } <= set(families)  # fmt: skip
    fills = [
        sample.value
        for sample in families["qwen3_batch_fill"].samples
        if sample.name.endswith("_bucket") and sample.labels["model"] == "tiny"
    ]
    assert fills == sorted(fills)
    assert fills[-1] == server.metric("qwen3_forwards_total", model="tiny")
    assert server.metric("qwen3_queue_tokens", model="tiny") == 0


@contextmanager
def command(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run `serve` on a free port, as a user would; yield the process and the port."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    line = [sys.executable, "-m", package.__name__, "serve", "--port", str(port), *arguments]
    process = subprocess.Popen(
        line,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
    )
    try:
        yield process, port
    finally:
        process.kill()
        process.communicate()


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def is_busy(port: int, headers: dict[str, str]) -> bool:
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", headers=headers).text
    return "qwen3_requests_under_way 2.0" in text  # this one, and another


def is_refused(port: int) -> bool:
    try:
        httpx.get(f"http://127.0.0.1:{port}/healthz")
    except httpx.TransportError:
        return True
    return False


def test_sigterm_drains(tmp_path: Path, tiny: Qwen3Encoder) -> None:
    """At SIGTERM what was asked before is answered, new connections are refused, the exit is 0."""
    keys = tmp_path / "keys"
    keys.write_text("from-file\n")
    texts = [f"{number} bottles of beer. " * 60 for number in range(50)]
    arguments = ["--model", "tiny", "--dtype", "float32", "--api-key-file", str(keys)]
    with command(*arguments, QWEN3_EMBEDDING_API_KEYS="from-env, other") as (process, port):
        wait_until(lambda: is_ready(port))
        url = f"http://127.0.0.1:{port}/v1/embeddings"
        body = {"model": "tiny", "input": "a"}
        assert httpx.post(url, json=body).status_code == 401
        for key in ("from-file", "from-env", "other"):
            headers = {"authorization": f"Bearer {key}"}
            assert httpx.post(url, json=body, headers=headers).status_code == 200
        with ThreadPoolExecutor(1) as pool:
            bulk = {"model": "tiny", "input": texts}
            answer = pool.submit(httpx.post, url, json=bulk, headers=headers, timeout=60)
            wait_until(lambda: is_busy(port, headers))
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: is_refused(port))
            rows = [one["embedding"] for one in answer.result().json()["data"]]
        assert_close(np.array(rows, np.float32), tiny.encode_documents(texts))
        _, log = process.communicate(timeout=60)
        assert process.returncode == 0, log
    lines = [json.loads(line) for line in log.splitlines()]
    requests = [line for line in lines if line["message"] == "request"]
    assert [line["status"] for line in requests if line["path"] == "/v1/embeddings"] == [
        401, 200, 200, 200, 200,
    ]  # fmt: skip
    assert "bottles" not in log


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "./nowhere"], "no folder './nowhere'"),
        (["--model", "tiny", "--model", "tiny"], "two models are called 'tiny'"),
    ],
)
def test_a_server_that_cannot_start_says_so(arguments: list[str], says: str) -> None:
    """Models that cannot be served end the process with status 2 and a line that says why."""
    with command(*arguments) as (process, _):
        _, log = process.communicate(timeout=60)
    assert process.returncode == 2, log
    assert says in " ".join(log.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "tiny", "--dtype", "int3"], "'int3'"),
        (["--model", "tiny", "--alias", "x"], "write ALIAS=NAME"),
        (["--model", "tiny", "--alias", "a=b"], "no model is called b (served: tiny)"),
        (["--model", "tiny", "--api-key-file", "nowhere"], "cannot be read"),
        (["--model", "tiny", "--max-texts", "0"], "max_texts is 0"),
    ],
)
def test_a_mistake_on_the_command_line_says_what_to_do(arguments: list[str], says: str) -> None:
    """A mistake on the command line ends with status 2 and a line that says what to do."""
    done = run_here("serve", *arguments)
    assert done.returncode == 2, done.stderr
    assert says in " ".join(done.stderr.split())


def test_names_of_served_models(tmp_path: Path) -> None:
    """NAME=folder names a model; without a name a folder is called by its last part."""
    served = served_models(["mine=tiny", str(TINY)], [f"r={tmp_path}"], ["gpt=mine"], {})
    assert [(one.name, one.kind, one.aliases) for one in served] == [
        ("mine", "embedding", ("gpt",)),
        ("tiny", "embedding", ()),
        ("r", "reranking", ()),
    ]


def test_wrong_options_are_refused() -> None:
    """Impossible limits, and an application without a model, are a ConfigError."""
    for options in (
        {"max_texts": 0},
        {"keep_alive_s": 0},
        {"keep_alive_s": float("nan")},
        {"body_timeout_s": -1},
        {"api_keys": ("",)},
        {"api_keys": ("two words",)},
    ):
        with pytest.raises(ConfigError):
            ServerConfig(**options)
    with pytest.raises(ConfigError, match="no model is given"):
        create_app([])
    assert "first-key" not in repr(ServerConfig(api_keys=("first-key",)))


def test_what_is_not_done_in_time_is_a_503() -> None:
    """A request that outlasts the server's patience at its end is told so."""
    with spied_encoder() as spied:
        model = ServedModel("tiny", "embedding", lambda: spied.encoder)
        with ThreadPoolExecutor(1) as pool, serving([model], drain_s=1) as running:
            spied.spy.gate.clear()
            answer = pool.submit(asking, running, "tiny")
            assert spied.spy.wait_for(spied.ids("a"))
            running.server.should_exit = True
            status, body = answer.result(60)
            assert (status, body["error"]["code"]) == (503, "unavailable")
            spied.spy.gate.set()
