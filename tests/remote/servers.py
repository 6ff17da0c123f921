"""Servers of the tests' own: real HTTP, the manners of SGLang, vLLM, TEI, Infinity, our vectors.

Each has the fields, limits and error bodies of the published source it names. What they compute is
what `tiny` makes of the very strings they are sent.
"""

from __future__ import annotations

import base64
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import numpy as np

from qwen3_embedding_integrations import EncoderConfig, Qwen3Encoder, shared_encoder

MODEL = "tiny-served"
PATIENCE_S = 60


class Reply(NamedTuple):
    status: int
    body: Any  # JSON, or text as it is
    headers: dict[str, str] = {}  # noqa: RUF012


HANG_UP = Reply(0, "")  # the connection is closed without an answer


class Request(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def input(self) -> list[str]:
        return json.loads(self.body)["input"]


class Server:
    """Answers /v1/embeddings as OpenAI documents it."""

    def __init__(self, encoder: Qwen3Encoder | None = None, *, key: str | None = None) -> None:
        self.encoder = encoder or shared_encoder(
            EncoderConfig(model="tiny", dtype="float32", on_empty="embed")
        )
        self.requests: list[Request] = []
        self.next: deque[Reply] = deque()  # answers given before it answers truly
        self.tamper: Callable[[dict[str, Any]], dict[str, Any]] = lambda answer: answer
        self.hold: Callable[[list[str]], bool] = lambda texts: False
        self.gate = threading.Event()
        self.most_at_once = self._at_once = 0
        self._key = key
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def close(self) -> None:
        self.gate.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def take(self) -> list[Request]:
        """Return the requests since the last call."""
        with self._lock:
            taken, self.requests = self.requests, []
            return taken

    def handle(self, request: Request) -> Reply:
        with self._lock:
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            scripted = self.next.popleft() if self.next else None
        try:
            return scripted or self._judge(request)
        finally:
            with self._lock:
                self._at_once -= 1

    def _judge(self, request: Request) -> Reply:
        if self._key and request.headers.get("Authorization") != f"Bearer {self._key}":
            return self.unauthorized()
        if request.path != "/v1/embeddings":
            return Reply(404, {"detail": "Not Found"})
        if refusal := self.refusal(request):
            return refusal
        texts = request.input
        if self.hold(texts) and not self.gate.wait(PATIENCE_S):
            return Reply(500, "nobody opened the gate")
        body = json.loads(request.body)
        return Reply(200, self.tamper(self.answer(texts, body)))

    # --- what the dialects change -------------------------------------------------------------

    def refusal(self, request: Request) -> Reply | None:
        return None

    def unauthorized(self) -> Reply:
        return Reply(401, {"error": "Unauthorized"})

    def answer(self, texts: list[str], body: dict[str, Any]) -> dict[str, Any]:
        vectors = self.encoder.encode_documents(texts)
        data = [
            {"object": "embedding", "index": i, "embedding": self.embedding(vector, body)}
            for i, vector in enumerate(vectors)
        ]
        num_tokens = sum(self.num_tokens(text) for text in texts)
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        return {"object": "list", "data": data, "model": MODEL, "usage": usage}

    def embedding(self, vector: np.ndarray, body: dict[str, Any]) -> list[float] | str:
        if body.get("encoding_format") == "base64":
            return base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return vector.tolist()

    def num_tokens(self, text: str) -> int:
        return min(self.encoder.count_tokens(text), self.encoder.max_length)

    def too_long(self, texts: list[str], limit: int) -> int | None:
        """Return the tokens of the first text beyond a limit."""
        lengths = [self.encoder.count_tokens(text) for text in texts]
        return next((length for length in lengths if length > limit), None)


class SGLang(Server):
    """SGLang 0.5: numbers whatever the format, one flat error, no blank text.

    python/sglang/srt/entrypoints/openai/serving_embedding.py and serving_base.py; the length is
    refused by managers/tokenizer_manager.py.
    """

    context_length = 8192

    def refusal(self, request: Request) -> Reply | None:
        texts = request.input
        for i, text in enumerate(texts):
            if not text.strip():
                return self._bad(f"Input at index {i} cannot be empty or whitespace only")
        if length := self.too_long(texts, self.context_length):
            return self._bad(
                f"The input ({length} tokens) is longer than the model's context length "
                f"({self.context_length} tokens)."
            )
        return None

    def embedding(self, vector: np.ndarray, body: dict[str, Any]) -> list[float]:
        return vector.tolist()

    def _bad(self, message: str) -> Reply:
        body = {"object": "error", "message": message, "type": "BadRequestError"}
        return Reply(400, {**body, "param": None, "code": 400})


class VLLM(Server):
    """vLLM 0.11: base64, `dimensions` refused, an error within "error", its own id.

    vllm/entrypoints/openai/serving_engine.py, protocol.py; vllm-project/vllm docs, pooling models.
    """

    max_model_len = 8192

    def refusal(self, request: Request) -> Reply | None:
        body = json.loads(request.body)
        if body["model"] != MODEL:
            return self._bad(404, f"The model `{body['model']}` does not exist.", "NotFoundError")
        if body.get("dimensions") is not None:
            return self._bad(
                400,
                f'Model "{MODEL}" does not support matryoshka representation, changing output '
                "dimensions will lead to poor results.",
            )
        if length := self.too_long(body["input"], self.max_model_len):
            return self._bad(
                400,
                f"This model's maximum context length is {self.max_model_len} tokens. However, you "
                f"requested {length} tokens in the input for embedding generation. Please reduce "
                "the length of the input.",
            )
        return None

    def answer(self, texts: list[str], body: dict[str, Any]) -> dict[str, Any]:
        answer = super().answer(texts, body)
        return {"id": "embd-1", "created": 1763740000, **answer}

    def _bad(self, status: int, message: str, kind: str = "BadRequestError") -> Reply:
        error = {"message": message, "type": kind, "param": None, "code": status}
        return Reply(status, {"error": error})


class TEI(Server):
    """text-embeddings-inference 1.9.3: so many texts, so many bytes, cut in silence unless told.

    router/src/http/server.rs, types.rs; router/src/main.rs: 32 texts, 2,000,000 bytes,
    --auto-truncate true.
    """

    max_client_batch_size = 32
    payload_limit = 2_000_000
    max_input_length = 8192
    auto_truncate = True

    def refusal(self, request: Request) -> Reply | None:
        if len(request.body) > self.payload_limit:
            return Reply(413, "Failed to buffer the request body: length limit exceeded")
        texts, most = request.input, self.max_client_batch_size
        if len(texts) > most:
            return self._invalid(f"batch size {len(texts)} > maximum allowed batch size {most}")
        length = self.too_long(texts, self.max_input_length)
        if length and not self.auto_truncate:
            return self._invalid(
                f"`inputs` must have less than {self.max_input_length} tokens. Given: {length}"
            )
        return None

    def unauthorized(self) -> Reply:
        return Reply(401, "")

    def num_tokens(self, text: str) -> int:
        return min(super().num_tokens(text), self.max_input_length)

    def _invalid(self, message: str) -> Reply:
        return Reply(422, {"message": message, "code": 422, "type": "Validation"})


class Infinity(Server):
    """Infinity 0.0.78: pydantic's refusals, whitespace stripped, other lengths than 1 after a cut.

    libs/infinity_emb/infinity_emb/fastapi_schemas/pymodels.py, pydantic_v2.py.
    """

    max_client_batch_size = 2048

    def refusal(self, request: Request) -> Reply | None:
        texts, most = request.input, self.max_client_batch_size
        if len(texts) <= most:
            return None
        message = f"List should have at most {most} items after validation, not {len(texts)}"
        detail = {"type": "too_long", "loc": ["body", "text", "input"], "msg": message}
        return Reply(422, {"detail": [{**detail, "input": texts, "ctx": {"max_length": most}}]})

    def answer(self, texts: list[str], body: dict[str, Any]) -> dict[str, Any]:
        return super().answer([text.strip() for text in texts], body)


class Ours(Server):
    """`qwen3-embedding serve`: so many texts and tokens in a request."""

    max_client_batch_size = 2048
    max_tokens = 300_000

    def refusal(self, request: Request) -> Reply | None:
        texts, most = request.input, self.max_client_batch_size
        if len(texts) > most:
            return self._bad(f"input holds {len(texts)} texts; give 1 to {most} in a request")
        num_tokens = sum(map(self.encoder.count_tokens, texts))
        if num_tokens > self.max_tokens:
            return self._bad(
                f"documents have {num_tokens} tokens, {self.max_tokens} are allowed in one call; "
                "divide them among several"
            )
        return None

    def _bad(self, message: str) -> Reply:
        error = {"message": message, "type": "invalid_request_error", "param": "input"}
        return Reply(400, {"error": {**error, "code": None}})


DIALECTS = (SGLang, VLLM, TEI, Infinity, Ours)


@contextmanager
def serving(kind: type[Server] = Server, **options: Any) -> Iterator[Any]:
    """Yield a server of a kind; options that are no arguments are its attributes."""
    server = kind(**{k: v for k, v in options.items() if k in {"encoder", "key"}})
    for name, value in options.items():
        if name not in {"encoder", "key"}:
            assert hasattr(server, name), name
            setattr(server, name, value)
    try:
        yield server
    finally:
        server.close()


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one write an answer: two wait for each other's acknowledgement

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            reply = server.handle(Request(self.path, dict(self.headers), body))
            if reply == HANG_UP:
                self.close_connection = True
                return
            is_text = isinstance(reply.body, str)
            content = (reply.body if is_text else json.dumps(reply.body)).encode()
            self.send_response(reply.status)
            kind = "text/plain" if is_text else "application/json"
            headers = {"Content-Type": kind, "Content-Length": str(len(content)), **reply.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
