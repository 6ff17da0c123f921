"""What a forward needs of a card's memory; which failure is for want of it; giving memory back."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

from ..errors import ConfigError, EngineError
from .checkpoint import Architecture

GRAPH_TOKENS = 2048  # of the largest CUDA graph, whose memory stays taken
KEPT_PREFIX_TOKENS = 2048  # of all instructions together whose keys and values a model keeps
WORKSPACE_BYTES = 256 * 2**20  # cuBLAS, compiled kernels, small tensors
USABLE = 0.9  # the allocator's blocks never fill memory to the last byte
# What torch's CPU, Metal and ONNX Runtime say when memory runs out.
NO_ROOM = (
    "can't allocate memory",
    "MPS backend out of mem",
    "Failed to allocate memory",
    "bad_alloc",
)


@dataclass(frozen=True, slots=True)
class Room:
    """What one device has room for, weights loaded."""

    device: str
    free_bytes: int
    bytes_per_token: int
    reserved_bytes: int  # for what stays: workspaces, graphs, prefixes
    max_tokens: int  # of one forward, and so of one text

    def check_length(self, max_length: int) -> None:
        """Raise ConfigError unless a text of `max_length` tokens fits."""
        if max_length > self.max_tokens:
            remedy = f"lower max_length to {self.max_tokens}, " if self.max_tokens >= 4 else ""
            needed = int((max_length * self.bytes_per_token + self.reserved_bytes) / USABLE)
            raise ConfigError(
                f"max_length is {max_length}: a text of so many tokens takes "
                f"{_gb(needed)} on {self.device}, where {_gb(self.free_bytes)} are free beside the "
                f"weights; {remedy}use a smaller model or dtype, or free memory there"
            )


def find_room(architecture: Architecture, itemsize: int, *, device: str, free_bytes: int) -> Room:
    """Return how many tokens a forward may have in `free_bytes`, the weights not counted.

    `itemsize` is the activations' bytes a value.
    """
    per_token = bytes_per_token(architecture, itemsize)
    # By the model, and where graphs read them: as many at most, but only of lengths that occur.
    prefix = KEPT_PREFIX_TOKENS * prefix_bytes_per_token(architecture, itemsize)
    reserved = WORKSPACE_BYTES + GRAPH_TOKENS * per_token + prefix
    usable = int(USABLE * free_bytes) - reserved
    return Room(device, free_bytes, per_token, reserved, max(0, usable // per_token))


def check_weights(
    architecture: Architecture, itemsize: int, *, device: str, free_bytes: int
) -> None:
    """Raise ConfigError where even the weights, of `itemsize` bytes a value, do not fit.

    Before they are read, which takes minutes for the large models.
    """
    needed = weight_bytes(architecture, itemsize)
    if needed > free_bytes:
        raise ConfigError(
            f"the model's weights take {_gb(needed)}, {device} has {_gb(free_bytes)} free; use a "
            "smaller model or dtype, another device, or free memory there"
        )


def weight_bytes(architecture: Architecture, itemsize: int) -> int:
    """Return the bytes of all weights; the embedding is at most two bytes a value, as published."""
    a = architecture
    heads = (2 * a.num_heads + 2 * a.num_kv_heads) * a.head_dim  # q and o, k and v
    layer = a.hidden_size * (heads + 3 * a.intermediate_size + 2) + 2 * a.head_dim
    embedding = a.vocab_size * a.hidden_size
    return itemsize * (a.num_layers * layer + a.hidden_size) + min(itemsize, 2) * embedding


def bytes_per_token(architecture: Architecture, itemsize: int) -> int:
    """Return the bytes a forward holds for each token at its peak, on a card.

    The largest of three moments of a layer: while queries are normed and turned, in float32 for a
    while; while attention reads keys and values behind a prefix; while the MLP holds its product.
    """
    a = architecture
    hidden, queries, keys = a.hidden_size, a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    projected = (queries + 2 * keys) + (queries + keys)  # fused, and turned
    turning = 3 * hidden + projected + queries + 6 * queries // itemsize
    attending = hidden + projected + 3 * keys + 2 * queries
    feeding = 4 * hidden + queries + 3 * a.intermediate_size  # gate, up, their product in a row
    angles = 4 * a.head_dim  # cos and sin, float32
    indices = 8 * 4
    softmax = 4 * a.num_heads
    return itemsize * max(turning, attending, feeding) + angles + indices + softmax


def prefix_bytes_per_token(architecture: Architecture, itemsize: int) -> int:
    """Return the bytes of one token's keys and values in all layers."""
    a = architecture
    return a.num_layers * 2 * a.num_kv_heads * a.head_dim * itemsize


def return_freed() -> None:
    """Give the operating system back what this process has freed and its C library keeps.

    glibc keeps it for each thread's next need, and each model is loaded on a thread of its own:
    0.1 GB more with every load, and after closing a large part of the weights. Linux with glibc;
    elsewhere it does nothing. It takes milliseconds.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a forward failed for want of room."""
    # By name: torch is not loaded where an exported model runs.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    # Only CUDA has an error class of its own; any other failure is not a matter of room.
    return not isinstance(error, EngineError) and any(text in str(error) for text in NO_ROOM)
