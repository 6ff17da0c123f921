"""What a store keeps of a text: a key that no other vector has, and the vector as checked bytes.

The promise of a hit is the vector that this encoder would compute, to the rounding in which two of
its own batches differ. So the key holds every fact of the contract that moves a vector further,
also those an index forgives: dtype and quantization (else who filled the cache first would decide
what everyone gets), max_length and on_too_long (a text that is an error must stay one). A fact that
the contract gains later is in the key by itself. What stays out:

  dimensions       an entry answers for every width up to its own: cut, then made a unit vector
                   again, as the model was trained for
  instruction      stands in the prompt of queries; documents never see it
  package_version  an upgrade does not empty a cache; KEY_VERSION does, when the numbers change

An entry:

  magic  4 bytes   "Q3V1"
  code   1 byte    "f" float32, "e" float16, little-endian; then 3 bytes of zeros
  width  4 bytes   number of components
  check  8 bytes   of the key and all other bytes: an entry under another key is damaged
  vector width × 4 or 2 bytes
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..contract import EmbeddingContract, Vectors

Storage = Literal["float32", "float16"]
STORAGES = ("float32", "float16")

KEY_VERSION = 1
NOT_IN_KEY = ("dimensions", "instruction", "package_version")

MAGIC = b"Q3V1"
HEAD = struct.Struct("<4sc3xI")
NUM_CHECK_BYTES = 8
NUM_HEAD_BYTES = HEAD.size + NUM_CHECK_BYTES
CODES: dict[str, bytes] = {"float32": b"f", "float16": b"e"}
TYPES = {b"f": np.dtype("<f4"), b"e": np.dtype("<f2")}
# float16 rounds a component by 2**-11 of itself at most, so the length too.
LENGTH_TOLERANCE = 1e-3


@lru_cache(maxsize=256)
def key_space(contract: EmbeddingContract, prompt: str | None) -> bytes:
    """Return what all keys of a contract and a prompt share, 32 bytes; no prompt: documents."""
    facts = {name: fact for name, fact in asdict(contract).items() if name not in NOT_IN_KEY}
    role = "document" if prompt is None else "query"
    space = json.dumps([KEY_VERSION, facts, role, prompt], sort_keys=True)
    return hashlib.sha256(space.encode()).digest()


def text_key(space: bytes, text: str) -> bytes:
    """Return the key of a text, 32 bytes: different for different texts, spaces or both."""
    # The space has a fixed length: no two pairs run together to the same bytes.
    return hashlib.sha256(space + text.encode()).digest()


def write_entry(key: bytes, vector: npt.NDArray[np.float32], storage: Storage) -> bytes:
    """Return the bytes of a unit vector, (W,) float32."""
    code = CODES[storage]
    head = HEAD.pack(MAGIC, code, len(vector))
    body = vector.astype(TYPES[code]).tobytes()
    return head + _check(key, head, body) + body


def read_entry(key: bytes, entry: bytes, dimensions: int, storage: Storage) -> Vectors | None:
    """Return the unit vector, (dimensions,) float32, or None where the entry holds too little.

    Raises ValueError for an entry that is damaged: its check, or a vector that is not finite or not
    of unit length.
    """
    head, body = entry[: HEAD.size], entry[NUM_HEAD_BYTES:]
    if entry[HEAD.size : NUM_HEAD_BYTES] != _check(key, head, body):
        raise ValueError(f"the check does not fit the entry, of {len(entry)} bytes")
    magic, code, width = HEAD.unpack(head)
    if magic != MAGIC or code not in TYPES:
        raise ValueError(f"the entry is of another version: {head!r}")
    vector = np.frombuffer(body, TYPES[code]).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        length = float(np.sqrt(vector @ vector))
    if not abs(length - 1) <= LENGTH_TOLERANCE:  # NaN and inf as well
        raise ValueError(f"the vector has length {length}")
    if width < dimensions or (code == b"e" and storage == "float32"):
        return None
    if width == dimensions and code == b"f":
        return vector  # bit for bit what the encoder gave
    cut = vector[:dimensions]
    length = float(np.linalg.norm(cut))
    if length == 0:
        raise ValueError(f"the first {dimensions} components are zero")
    return (cut / np.float32(length)).astype(np.float32)


def _check(key: bytes, head: bytes, body: bytes) -> bytes:
    check = hashlib.blake2b(key, digest_size=NUM_CHECK_BYTES)
    check.update(head)
    check.update(body)
    return check.digest()
