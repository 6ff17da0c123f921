"""A vector as the bytes that a store keeps, checked when they are read.

  magic  4 bytes   "Q3V1"
  code   1 byte    "f" float32, "e" float16, little-endian; then 3 bytes of zeros
  width  4 bytes   number of components
  check  8 bytes   of the key and all other bytes: an entry under another key is damaged
  vector width × 4 or 2 bytes

An entry answers whoever asks for no more than it holds: fewer dimensions (cut, then made a unit
vector again: the model was trained so), or float16 of float32.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ..contract import Vectors

Storage = Literal["float32", "float16"]
STORAGES = ("float32", "float16")

MAGIC = b"Q3V1"
HEAD = struct.Struct("<4sc3xI")
NUM_CHECK_BYTES = 8
NUM_HEAD_BYTES = HEAD.size + NUM_CHECK_BYTES
CODES: dict[str, bytes] = {"float32": b"f", "float16": b"e"}
TYPES = {b"f": np.dtype("<f4"), b"e": np.dtype("<f2")}
# float16 rounds a component by 2**-11 of itself at most, so the length too.
LENGTH_TOLERANCE = 1e-3


class Wanted(NamedTuple):
    """What an entry must be able to give."""

    dimensions: int
    storage: Storage


def write_entry(key: bytes, vector: npt.NDArray[np.float32], storage: Storage) -> bytes:
    """Return the bytes of a unit vector, (W,) float32."""
    code = CODES[storage]
    head = HEAD.pack(MAGIC, code, len(vector))
    body = vector.astype(TYPES[code]).tobytes()
    return head + _check(key, head, body) + body


def read_entry(key: bytes, entry: bytes, wanted: Wanted) -> Vectors | None:
    """Return the unit vector, (dimensions,) float32, or None where the entry holds too little.

    Raises ValueError for an entry that is damaged: its length, its check, or a vector that is not
    finite or not of unit length.
    """
    if len(entry) < NUM_HEAD_BYTES:
        raise ValueError(f"{len(entry)} bytes are no entry")
    magic, code, width = HEAD.unpack_from(entry)
    head, body = entry[: HEAD.size], entry[NUM_HEAD_BYTES:]
    if magic != MAGIC or code not in TYPES or len(body) != width * TYPES[code].itemsize:
        raise ValueError(f"an entry of {len(entry)} bytes has the head {head!r}")
    if entry[HEAD.size : NUM_HEAD_BYTES] != _check(key, head, body):
        raise ValueError("the check does not fit the entry")
    vector = np.frombuffer(body, TYPES[code]).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        length = float(np.sqrt(vector @ vector))
    if not abs(length - 1) <= LENGTH_TOLERANCE:  # NaN and inf as well
        raise ValueError(f"the vector has length {length}")
    if width < wanted.dimensions or (code == b"e" and wanted.storage == "float32"):
        return None
    if width == wanted.dimensions and code == b"f":
        return vector  # bit for bit what the encoder gave
    cut = vector[: wanted.dimensions]
    length = float(np.linalg.norm(cut))
    if length == 0:
        raise ValueError(f"the first {wanted.dimensions} components are zero")
    return (cut / np.float32(length)).astype(np.float32)


def _check(key: bytes, head: bytes, body: bytes) -> bytes:
    check = hashlib.blake2b(key, digest_size=NUM_CHECK_BYTES)
    check.update(head)
    check.update(body)
    return check.digest()
