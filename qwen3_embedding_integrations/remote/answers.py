"""What servers answer: vectors as bytes or numbers, put in order; errors of several shapes."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, NamedTuple

import numpy as np

from ..contract import Vectors
from ..errors import RemoteError

MAX_SAID = 500  # characters of a server's own words in a message

# A text beyond what the model reads: vLLM 0.11 and SGLang 0.5 ("context length"), TEI 1.9 ("must
# have less than 512 tokens"), llama.cpp ("input is too large"), Infinity's pydantic ("characters"),
# our own ("has 9000 tokens, max_length is 8192").
TOO_LONG = re.compile(
    r"context length|context size|must have less than \d+|too large to process|"
    r"longer than the maximum|at most \d+ characters|max(imum)? context|too many tokens|"
    r"\d+ tokens, (max_length is )?\d+",
    re.IGNORECASE,
)
BLANK = re.compile(r"cannot be empty")  # SGLang 0.5, of a text that is blank
NOT_FINITE = re.compile(r"\bNaN\b|\bInf\b")  # Ollama (server/routes.go), of a vector that has them


class Answer(NamedTuple):
    """What a server said of some inputs."""

    vectors: Vectors  # (N, W), in the order of the inputs, each number as it was sent
    num_tokens: int | None  # by its own count; None if it does not tell


def parse_answer(content: bytes, num_inputs: int, url: str) -> Answer:
    """Return the vectors of an answer in the order of the inputs. Raises RemoteError."""
    try:
        payload = json.loads(content)
        rows = payload["data"]
        vectors = [_vector(row["embedding"]) for row in rows]
        given = [row.get("index") for row in rows]
        order = [place if index is None else index for place, index in enumerate(given)]
        if sorted(order, key=str) != sorted(range(num_inputs), key=str):
            raise ValueError(
                f"it answered {num_inputs} inputs with {len(rows)} vectors of index "
                f"{str(order)[:80]}; every input must have one"
            )
        widths = sorted({len(vector) for vector in vectors})
        if len(widths) != 1:
            raise ValueError(f"vectors of several widths: {widths}")
        num_tokens = (payload.get("usage") or {}).get("prompt_tokens")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RemoteError(
            f"{url} answered what is no list of embeddings ({type(error).__name__}: {error}): "
            f"{content[:200]!r}; is this an OpenAI-compatible /embeddings?",
            url=url,
            status=200,
        ) from error
    in_order = np.stack(vectors)[np.argsort(order)]
    return Answer(in_order, num_tokens if isinstance(num_tokens, int) else None)


def server_message(text: str) -> str:
    """Return what a server said went wrong, whichever shape it has.

    {"error": {"message"}} (OpenAI; vLLM 0.11 and later, Infinity, Ollama), {"error": "…"} (Ollama's
    own routes), {"message"} (TEI 1.9, SGLang 0.5), {"detail": …} (FastAPI's validation).
    """
    try:
        said: Any = json.loads(text)
    except ValueError:
        said = text
    while isinstance(said, dict):
        said = next((said[k] for k in ("error", "message", "detail", "msg") if said.get(k)), text)
    if isinstance(said, list):
        said = "; ".join(
            f"{'.'.join(map(str, one.get('loc', [])))}: {one.get('msg')}"
            if isinstance(one, dict)
            else str(one)
            for one in said
        )
    return " ".join(str(said).split())[:MAX_SAID] or "nothing"


def _vector(embedding: Any) -> Vectors:
    """Return an embedding as it was sent, (W,) float32; servers that know no base64 send lists."""
    if isinstance(embedding, str):
        try:
            return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
        except binascii.Error as error:
            raise ValueError(f"an embedding is not base64: {error}") from error
    with np.errstate(over="ignore"):  # beyond float32 is inf, and judged by the caller
        vector = np.array(embedding, np.float32)  # None, which servers send for NaN, becomes NaN
    if vector.ndim != 1:
        raise ValueError(f"an embedding has {vector.ndim} axes")
    return vector
