"""The hub path: the real client against a small server, pinned revisions, and offline."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from qwen3_embedding_integrations.core.checkpoint import content_hash, read_architecture
from tests.checkpoints import SHAPE_SMALL, write_checkpoint
from tests.oracle import reference_vectors

ROOT = Path(__file__).parent.parent
SHAPE = SHAPE_SMALL | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
MODEL = "owner/qwen3-small"
TEXTS = ["The capital of China is Beijing.", "中国的首都是北京。"]
NEWEST, PINNED = "a" * 40, "b" * 40
REFS = {"main": NEWEST, "v1": PINNED, NEWEST: NEWEST, PINNED: PINNED}


class Hub:
    """Serves folders as commits of one model, with the hub's own routes and headers."""

    def __init__(self, commits: dict[str, Path]) -> None:
        self.commits = commits
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self, with_body=True)

            def do_HEAD(self):
                hub.answer(self, with_body=False)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        path = unquote(urlsplit(handler.path).path)
        self.requests.append(f"{handler.command} {path}")
        status, headers, body = self.route(path)
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if with_body:
            handler.wfile.write(body)

    def route(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of a path."""
        api, files = f"/api/models/{MODEL}/", f"/{MODEL}/resolve/"
        if path.startswith(api):
            kind, ref = path.removeprefix(api).split("/", 1)
            if ref not in REFS:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            folder = self.commits[REFS[ref]]
            if kind == "tree":
                return as_json([entry(folder, one) for one in sorted(folder.rglob("*.*"))])
            names = [{"rfilename": one.name} for one in folder.iterdir()]
            return as_json({"id": MODEL, "modelId": MODEL, "sha": REFS[ref], "siblings": names})
        if path.startswith(files):
            ref, name = path.removeprefix(files).split("/", 1)
            file = self.commits[REFS[ref]] / name
            if not file.is_file():
                return 404, {"X-Error-Code": "EntryNotFound"}, b""
            data = file.read_bytes()
            headers = {"X-Repo-Commit": REFS[ref], "ETag": f'"{blob_name(file)}"'}
            return 200, headers, data
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"


def as_json(data) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(data).encode()


def is_large(file: Path) -> bool:
    return file.name in {"model.safetensors", "tokenizer.json"}  # Git LFS, as in the real ones


def blob_name(file: Path) -> str:
    data = file.read_bytes()
    if is_large(file):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def entry(folder: Path, file: Path) -> dict:
    size, name = file.stat().st_size, blob_name(file)
    lfs = {"lfs": {"oid": name, "size": size, "pointerSize": 134}} if is_large(file) else {}
    path = file.relative_to(folder).as_posix()
    return {"type": "file", "oid": name[:40], "size": size, "path": path, **lfs}


SCRIPT = """
import json, sys
from qwen3_embedding_integrations import EncoderConfig, ModelLoadError, Qwen3Encoder

answers = []
for options in json.loads(sys.argv[1]):
    try:
        with Qwen3Encoder(EncoderConfig(**options, dtype="float32")) as encoder:
            vectors = encoder.encode_documents(json.loads(sys.argv[2])).tolist()
            answers.append({"vectors": vectors, "contract": encoder.contract.to_dict()})
    except ModelLoadError as error:
        answers.append({"error": str(error)})
json.dump(answers, sys.stdout)
"""


def in_a_process(*options: dict, endpoint: str, home: Path, **environment: str) -> list[dict]:
    """Return what a fresh process makes of each config: vectors and contract, or the error."""
    kept = {name: v for name, v in os.environ.items() if not name.startswith("HF_")}
    hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(options), json.dumps(TEXTS)],
        cwd=ROOT,
        env=kept | hub | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def commits(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("commits")
    folders = {
        NEWEST: write_checkpoint(root / "newest", SHAPE, seed=0),
        PINNED: write_checkpoint(root / "pinned", SHAPE, seed=1),
    }
    for folder in folders.values():  # what the hub has and nobody needs
        (folder / "pytorch_model.bin").write_bytes(b"pickled")
        (folder / "README.md").write_text("card")
    return folders


@pytest.fixture(scope="module")
def expected(commits) -> dict[str, dict]:
    """Return what the plain folders give: vectors by transformers, the content hash by us."""
    return {
        commit: {
            "vectors": reference_vectors(folder, TEXTS),
            "revision": content_hash(folder, read_architecture(folder)),
        }
        for commit, folder in commits.items()
    }


@pytest.fixture(scope="module")
def hub(commits):
    hub = Hub(commits)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hf_home")


@pytest.fixture(scope="module")
def online(hub, home) -> list[dict]:
    """Return what a process with network and an empty cache gets."""
    return in_a_process(
        {"model": MODEL},
        {"model": MODEL, "revision": "v1"},
        {"model": MODEL, "revision": PINNED},
        {"model": MODEL, "revision": "no-such-tag"},
        {"model": "owner/absent"},
        endpoint=hub.url,
        home=home,
    )


def assert_is(answer: dict, expected: dict) -> None:
    """Assert that an answer was made with the files of a commit's folder."""
    assert "vectors" in answer, answer
    difference = np.abs(np.array(answer["vectors"]) - expected["vectors"]).max()
    assert difference <= 2e-5, f"max difference {difference:.2e}"
    assert answer["contract"]["model"] == MODEL
    assert answer["contract"]["revision"] == expected["revision"]


def test_a_hub_model_is_downloaded_and_used(online, expected):
    """A hub id loads the newest revision; its contract is that of the same files in a folder."""
    assert_is(online[0], expected[NEWEST])


def test_a_pinned_revision_is_honoured(online, expected):
    """A tag and a commit load that revision's weights, which are another model."""
    assert_is(online[1], expected[PINNED])
    assert_is(online[2], expected[PINNED])
    fingerprints = [answer["contract"]["fingerprint"] for answer in online[:3]]
    assert fingerprints[0] != fingerprints[1] == fingerprints[2]


def test_an_unknown_revision_or_model_is_named(online, hub):
    """What the hub does not have is refused with name, revision and the hub that was asked."""
    for answer, part in ((online[3], "no-such-tag"), (online[4], "owner/absent")):
        assert part in answer["error"]
        assert hub.url in answer["error"]
        assert "HF_TOKEN" in answer["error"]


def test_only_what_is_needed_is_downloaded(online, hub):
    """Neither pickled weights nor the card are fetched."""
    assert online
    fetched = {request.rsplit("/", 1)[-1] for request in hub.requests if "/resolve/" in request}
    assert {"config.json", "tokenizer.json", "model.safetensors", "modules.json"} <= fetched
    assert not fetched & {"pytorch_model.bin", "README.md"}


def test_offline_with_the_cache_filled_works(online, expected, hub, home):
    """HF_HUB_OFFLINE, local_files_only and a dead network all use the cache, asking nobody."""
    assert online
    num_requests = len(hub.requests)
    newest, pinned = in_a_process(
        {"model": MODEL},
        {"model": MODEL, "revision": "v1"},
        endpoint=hub.url,
        home=home,
        HF_HUB_OFFLINE="1",
    )
    assert_is(newest, expected[NEWEST])
    assert_is(pinned, expected[PINNED])
    [local] = in_a_process({"model": MODEL, "local_files_only": True}, endpoint=hub.url, home=home)
    assert_is(local, expected[NEWEST])
    assert len(hub.requests) == num_requests, hub.requests[num_requests:]
    [dead] = in_a_process({"model": MODEL}, endpoint="http://127.0.0.1:9", home=home)
    assert_is(dead, expected[NEWEST])


def assert_names_three_ways_out(answer: dict, home: Path) -> None:
    error = answer["error"]
    assert MODEL in error
    assert str(home) in error
    for part in ("HF_HUB_OFFLINE", "HF_ENDPOINT", 'model="/path/to/folder"', 'model="tiny"'):
        assert part in error
    assert all(f"({number})" in error for number in (1, 2, 3))


def test_offline_without_the_files_names_three_ways_out(tmp_path):
    """Offline with an empty cache: the error says where it looked and the three ways out."""
    offline = in_a_process(
        {"model": MODEL},
        {"model": MODEL, "revision": PINNED},
        endpoint="http://127.0.0.1:9",
        home=tmp_path,
        HF_HUB_OFFLINE="1",
    )
    unreachable = in_a_process(
        {"model": MODEL},
        {"model": MODEL, "local_files_only": True},
        endpoint="http://127.0.0.1:9",
        home=tmp_path,
    )
    for answer in offline + unreachable:
        assert_names_three_ways_out(answer, tmp_path)
    assert "switched off" in offline[0]["error"]
    assert "http://127.0.0.1:9" in unreachable[0]["error"]


def test_offline_with_half_a_download_is_an_error(online, home, tmp_path):
    """A cache that lacks the weights is not mistaken for the model."""
    assert online
    half = tmp_path / "half"
    shutil.copytree(home, half, symlinks=True)
    for weights in half.rglob("model.safetensors"):
        weights.unlink()
    [answer] = in_a_process(
        {"model": MODEL}, endpoint="http://127.0.0.1:9", home=half, HF_HUB_OFFLINE="1"
    )
    assert "error" in answer
    assert "model.safetensors" in answer["error"] or "Three ways out" in answer["error"]
