"""Hosts in processes and threads of their own, which tests stop, start and let misbehave."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient, models


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class ChromaServer:
    """A real `chroma run` over a folder, which may be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; return when it answers."""
        chroma = shutil.which("chroma", path=str(Path(sys.executable).parent))
        assert chroma is not None, "the command `chroma` is not beside this Python"
        self._process = subprocess.Popen(
            [chroma, "run", "--path", str(self._folder / "data"), "--port", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("`chroma run` did not come up")

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> ChromaServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class _Quiet(BaseHTTPRequestHandler):
    """What all our servers share: kept connections, and nothing printed."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the body's acknowledgement

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a port, and fails every n-th write in a way of its own.

    `fault` is a status to answer, "cut" (the write does not arrive and the connection is closed),
    "cut after" (it arrives, but its answer is lost) or "hang" (it does not arrive, nor an answer
    until `released`). A status may have `headers` and a `body`. With `every` 0 nothing fails;
    `fails_reads` counts all requests as writes.
    """

    daemon_threads = True

    def __init__(
        self,
        backend: int,
        fault: int | str,
        *,
        every: int,
        headers: dict[str, str] | None = None,
        body: bytes = b"busy",
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.backend = backend
        self.fault = fault
        self.every = every
        self.fault_headers = headers
        self.fault_body = body
        self.fails_reads = False
        self.released = threading.Event()
        self.num_writes = 0
        self.num_faults = 0
        self.lock = threading.Lock()

    def is_fault(self, method: str, path: str) -> bool:
        """Count a write; whether this one is to fail."""
        path = path.partition("?")[0]
        is_write = path.endswith(("/add", "/upsert")) or (
            method == "PUT" and path.endswith("/points")
        )
        if not (is_write or self.fails_reads):
            return False
        with self.lock:
            self.num_writes += 1
            is_fault = bool(self.every) and self.num_writes % self.every == 0
            self.num_faults += is_fault
        return is_fault


class _Passing(_Quiet):
    server: Proxy

    def pass_on(self) -> None:
        body = self.body()
        is_fault = self.server.is_fault(self.command, self.path)
        fault = self.server.fault
        if is_fault and isinstance(fault, int):
            return self.answer(fault, self.server.fault_body, self.server.fault_headers)
        if is_fault and fault == "hang":
            self.server.released.wait(60)
        if not (is_fault and fault in {"cut", "hang"}):
            status, answer = self.ask_backend(body)
            if not is_fault:
                return self.answer(status, answer)
        self.close_connection = True
        return None

    do_GET = do_POST = do_PUT = do_DELETE = pass_on

    def ask_backend(self, body: bytes) -> tuple[int, bytes]:
        backend = http.client.HTTPConnection("127.0.0.1", self.server.backend, timeout=60)
        try:
            headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
            backend.request(self.command, self.path, body, headers)
            answer = backend.getresponse()
            return answer.status, answer.read()
        finally:
            backend.close()


class QdrantServer(ThreadingHTTPServer):
    """Qdrant's REST interface, as far as an indexing job asks it, over a local collection.

    There is no Qdrant server on PyPI; qdrant-client's own local mode does the work here.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Qdrant)
        self.client = QdrantClient(":memory:")
        self.lock = threading.Lock()


class _Qdrant(_Quiet):
    server: QdrantServer

    def serve(self) -> None:
        body = json.loads(self.body() or "{}")
        path = self.path.partition("?")[0]
        with self.server.lock:
            if path == "/aliases":
                result = {"aliases": []}
            else:
                _, _, name, *verb = path.split("/")
                result = _ask(self.server.client, name, (self.command, *verb), body)
        self.answer(200, json.dumps({"result": result, "status": "ok", "time": 0.0}).encode())

    do_GET = do_POST = do_PUT = serve


def _ask(  # noqa: PLR0911  (one return a request)
    client: QdrantClient, name: str, request: tuple[str, ...], body: dict[str, Any]
) -> Any:
    match request:
        case ("GET", "exists"):
            return {"exists": client.collection_exists(name)}
        case ("GET",):
            return client.get_collection(name).model_dump(mode="json")
        case ("PUT",):
            made = models.CreateCollection(**body)
            return client.create_collection(
                name, vectors_config=made.vectors, metadata=made.metadata
            )
        case ("PUT", "points"):
            client.upsert(name, models.PointsList(**body).points)
            return {"operation_id": 0, "status": "completed"}
        case ("POST", "points"):
            asked = models.PointRequest(**body)
            found = client.retrieve(name, asked.ids, with_payload=asked.with_payload)
            return [one.model_dump(mode="json") for one in found]
        case ("POST", "points", "count"):
            return client.count(name).model_dump()
        case ("POST", "points", "scroll"):
            asked = models.ScrollRequest(**body)
            page, offset = client.scroll(
                name, asked.filter, asked.limit or 10, offset=asked.offset,
                with_payload=asked.with_payload, with_vectors=asked.with_vector or False,
            )  # fmt: skip
            points = [one.model_dump(mode="json") for one in page]
            return {"points": points, "next_page_offset": offset}
    raise AssertionError(f"nothing of this server's: {request}")


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[int]:
    """Yield the port of a server that answers on threads of this process."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
