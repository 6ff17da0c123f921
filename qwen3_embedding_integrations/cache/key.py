"""When two texts have the same vector: the key of an entry.

The promise of a hit is the vector that this encoder would compute, to the rounding in which two of
its own batches differ. So the key holds every fact of the contract that moves a vector further than
that, also those an index forgives: dtype and quantization (an int8 vector is no float32 one, and
who filled the cache first would decide what everyone gets), max_length and on_too_long (a text that
is cut has another vector, and one that is an error must stay an error). A fact that the contract
gains later is in the key by itself. What stays out:

  dimensions       an entry answers for every width up to its own; see `entry`
  instruction      stands in the prompt of queries; documents never see it
  package_version  an upgrade does not empty a cache; KEY_VERSION does, when the numbers change

Device, attention backend and batch are in no contract: they round differently, and no more.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import lru_cache

from ..contract import EmbeddingContract

KEY_VERSION = 1
NOT_IN_KEY = ("dimensions", "instruction", "package_version")


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
