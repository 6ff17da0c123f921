"""Backends for the doctor: real HTTP servers over real models, right or with one fault built in."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModel

import qwen3_embedding_integrations
from qwen3_embedding_integrations import Diagnosis, diagnose
from tests.checkpoints import random_tensors
from tests.oracle import transformers_tokenizer

TINY = Path(qwen3_embedding_integrations.__file__).parent / "tiny"
END, IM_END = 23997, 23999
Texts = list[Any]  # str, or lists of token ids
MAX_TOKENS = 620  # of long texts: above the cut of the server that cuts
Embed = Callable[[Texts, dict[str, Any]], tuple[np.ndarray, int | None]]


class Refused(Exception):
    """The server answers 400, or another status, with these words."""

    def __init__(self, words: str, status: int = 400) -> None:
        super().__init__(words)
        self.status = status


@dataclass
class TransformersBackend:
    """`tiny` by transformers, texts padded to a batch, with a fault at any of its stages."""

    dtype: torch.dtype = torch.float32
    rewrite: Callable[[str], str] = lambda text: text
    query: str | None = None  # a template for input_type="query"
    change_ids: Callable[[list[int]], list[int]] = lambda ids: ids
    max_length: int = 2048
    refuses_long: bool = False
    padding_side: str = "right"
    pool: str = "last"  # last, mean, first, or end: at position -1 whatever stands there
    is_normalized: bool = True
    cuts: str = "renormalised"  # or "raw", "last", "ignored", "refused"
    width: int | None = None  # cut to always, without another normalisation
    takes_ids: bool = True
    scramble: bool = False
    blow_up: float = 1.0  # up_proj times, down_proj divided by this: the same function
    is_causal: bool = True
    levels: int | None = None  # each row of each weight is rounded to so many on either side of 0
    folder: Path = TINY
    _model: Any = field(init=False)
    _tokenizer: Any = field(init=False)
    _known: dict[Any, np.ndarray] = field(init=False, default_factory=dict)  # a test asks often

    def __post_init__(self) -> None:
        self._tokenizer = transformers_tokenizer(self.folder)
        model = AutoModel.from_pretrained(self.folder, dtype=torch.float32)
        for layer in model.layers if self.blow_up != 1 else ():
            layer.mlp.up_proj.weight.data *= self.blow_up
            layer.mlp.down_proj.weight.data /= self.blow_up
        for weight in model.parameters() if self.levels else ():
            scale = weight.data.abs().amax(-1, keepdim=True) / self.levels
            weight.data = (weight.data / scale).round() * scale
        self._model = model.to(self.dtype).eval()

    def __call__(self, texts: Texts, fields: dict[str, Any]) -> tuple[np.ndarray, int]:
        rows = [self._ids(text, fields) for text in texts]
        vectors = self._vectors(rows)
        if self.scramble and len(vectors) > 2:
            vectors = np.roll(vectors, 1, axis=0)
        return self._cut(vectors, fields), sum(map(len, rows))

    def _ids(self, text: Any, fields: dict[str, Any]) -> list[int]:
        if isinstance(text, list):
            if not self.takes_ids:
                raise Refused("input must be a string")
            return text
        if self.query is not None and fields.get("input_type") == "query":
            text = self.query.format(instruction=fields["instruction"], text=text)
        ids = self.change_ids(self._tokenizer(self.rewrite(text))["input_ids"])
        if len(ids) > self.max_length:
            if self.refuses_long:
                raise Refused(f"maximum context length is {self.max_length} tokens")
            end = [ids[-1]] if ids[-1] in {END, IM_END} else []  # kept, as tokenizers do
            ids = [*ids[: self.max_length - len(end)], *end]
        return ids

    def _vectors(self, rows: list[list[int]]) -> np.ndarray:
        key = tuple(map(tuple, rows))
        if key not in self._known:
            self._known[key] = self._computed(rows)
        return self._known[key]

    @torch.inference_mode()
    def _computed(self, rows: list[list[int]]) -> np.ndarray:
        longest = max(map(len, rows))
        input_ids = torch.full((len(rows), longest), END)
        mask = torch.zeros_like(input_ids)
        for i, row in enumerate(rows):
            own = (
                slice(longest - len(row), longest)
                if self.padding_side == "left"
                else slice(len(row))
            )
            input_ids[i, own], mask[i, own] = torch.tensor(row), 1
        # Counted from the left edge, as transformers does unless it is told.
        positions = torch.arange(longest).expand(len(rows), -1)
        if self.padding_side == "left":
            positions = (mask.cumsum(1) - 1).clamp(min=0)
        seen: torch.Tensor = mask
        if not self.is_causal:  # a mask of its own, (B, 1, L, L): every token sees all of its text
            seen = (mask[:, None, :, None] * mask[:, None, None, :]).bool()
        hidden = self._model(
            input_ids=input_ids, attention_mask=seen, position_ids=positions, use_cache=False
        ).last_hidden_state.float()
        if self.pool == "mean":
            vectors = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        elif self.pool == "first":
            vectors = hidden[:, 0]
        elif self.pool == "end":
            vectors = hidden[:, -1]
        else:
            # Right where the padding is: by counting, as who pads on the right does.
            vectors = hidden[torch.arange(len(rows)), mask.sum(1) - 1]
        if self.is_normalized:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        return vectors.numpy()

    def _cut(self, vectors: np.ndarray, fields: dict[str, Any]) -> np.ndarray:
        if self.width is not None:
            vectors = vectors[:, : self.width]
        width = fields.get("dimensions")
        if width is None or self.cuts == "ignored":
            return vectors
        if self.cuts == "refused":
            raise Refused("Model does not support matryoshka representation")
        vectors = vectors[:, -width:] if self.cuts == "last" else vectors[:, :width]
        if self.cuts == "raw":
            return vectors
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def of_encoder(encode: Callable[[Sequence[str]], np.ndarray]) -> Embed:
    """Return a backend that knows texts alone: no dimensions, no roles, no token ids, no counts."""

    def embed(texts: Texts, fields: dict[str, Any]) -> tuple[np.ndarray, None]:
        if any(isinstance(text, list) for text in texts):
            raise Refused("input must be a string", 422)
        if "dimensions" in fields:
            raise Refused("dimensions is not supported")
        return np.asarray(encode(texts)), None

    return embed


def says_nan_by_an_error(embed: Embed) -> Embed:
    """Return a backend whose JSON has no NaN, as Ollama's: it answers 500 and says so."""

    def checked(texts: Texts, fields: dict[str, Any]) -> tuple[np.ndarray, int | None]:
        vectors, num_tokens = embed(texts, fields)
        if not np.isfinite(vectors).all():
            raise Refused("failed to encode response: json: unsupported value: NaN", 500)
        return vectors, num_tokens

    return checked


@contextmanager
def serving(embed: Embed, *, takes_base64: bool = True) -> Iterator[str]:
    """Yield the base URL of a server that answers /v1/embeddings by `embed`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60
        # Else an answer waits 40 ms for the client to acknowledge its headers.
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                vectors, num_tokens = embed(body["input"], body)
            except Refused as error:
                self._answer(error.status, {"error": {"message": str(error)}})
                return
            as_bytes = takes_base64 and body.get("encoding_format") == "base64"
            rows = [
                base64.b64encode(row.astype("<f4").tobytes()).decode() if as_bytes else row.tolist()
                for row in vectors
            ]
            data = [{"index": i, "embedding": row} for i, row in enumerate(rows)]
            usage = None if num_tokens is None else {"prompt_tokens": num_tokens}
            self._answer(200, {"object": "list", "data": data, "usage": usage})

        def _answer(self, status: int, payload: dict[str, Any]) -> None:
            content = json.dumps(payload).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def three_ways(url: str) -> tuple[Diagnosis, Diagnosis, Diagnosis]:
    """Return what is found with the weights at hand, with values alone, and with nothing known."""
    return (
        diagnose(url, model="tiny", max_tokens=MAX_TOKENS),
        diagnose(url, model="tiny", reference=None, max_tokens=MAX_TOKENS),
        diagnose(url, model="a-fine-tune", max_tokens=MAX_TOKENS),
    )


def problems(diagnosis: Diagnosis) -> list[str]:
    return [f"{c.name}: {c.detail}" for c in diagnosis.checks if c.verdict == "wrong"]


def write_like_tiny(folder: Path, shape: dict[str, Any]) -> Path:
    """Write random weights with tiny's tokenizer."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((TINY / name).read_bytes())
    (folder / "config.json").write_text(json.dumps(shape))
    save_file(random_tensors(shape), folder / "model.safetensors", {"format": "pt"})
    return folder
