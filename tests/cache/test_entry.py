"""Entries: what is read is what was written, cut and rounded as asked, or it is refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_embedding_integrations.cache.entry import read_entry, write_entry
from tests.cache.encoders import true_vector

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
VECTOR = true_vector("a text")
FULL = (len(VECTOR), "float32")
HALF = (len(VECTOR), "float16")


def test_float32_is_kept_bit_for_bit() -> None:
    """A float32 entry gives back the very vector."""
    again = read_entry(KEY, write_entry(KEY, VECTOR, "float32"), *FULL)
    assert again is not None
    assert (again == VECTOR).all()
    assert again.dtype == np.float32


@given(st.integers(0, 10_000), st.sampled_from([32, 256, 1024, 4096]))
def test_float16_is_within_its_bound(seed: int, width: int) -> None:
    """Each component moves by at most 2**-10 of itself and 2**-24; the length is one again."""
    vector = np.random.default_rng(seed).standard_normal(width).astype(np.float32)
    vector /= np.linalg.norm(vector)
    again = read_entry(KEY, write_entry(KEY, vector, "float16"), width, "float16")
    assert again is not None
    error = np.abs(again - vector) - (np.abs(vector) * 2**-10 + 2**-24)
    assert (error <= 0).all(), f"beyond the bound by {error.max()}"
    assert abs(np.linalg.norm(again.astype(np.float64)) - 1) < 1e-6
    assert float(again.astype(np.float64) @ vector) > 1 - 2**-20


@given(st.integers(1, 255))
def test_fewer_dimensions_are_cut_and_made_a_unit_vector(dimensions: int) -> None:
    """A wide entry answers for every narrower width as the model would."""
    cut = read_entry(KEY, write_entry(KEY, VECTOR, "float32"), dimensions, "float32")
    assert cut is not None
    expected = VECTOR[:dimensions].astype(np.float64)
    expected /= np.linalg.norm(expected)
    assert np.abs(cut - expected).max() < 1e-6


def test_an_entry_that_holds_too_little_does_not_answer() -> None:
    """More dimensions, or float32 of float16, are not there to be given: no error, no answer."""
    narrow = write_entry(KEY, true_vector("a text", dimensions=64), "float32")
    assert read_entry(KEY, narrow, *FULL) is None
    half = write_entry(KEY, VECTOR, "float16")
    assert read_entry(KEY, half, *FULL) is None
    assert read_entry(KEY, half, *HALF) is not None
    assert read_entry(KEY, write_entry(KEY, VECTOR, "float32"), *HALF) is not None


def test_every_changed_bit_is_found() -> None:
    """Any one bit of an entry turned over is damage."""
    entry = write_entry(KEY, true_vector("a text", dimensions=32), "float32")
    for position in range(len(entry) * 8):
        damaged = bytearray(entry)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(ValueError, match=r"."):
            read_entry(KEY, bytes(damaged), 32, "float32")


@given(st.binary(max_size=200))
def test_any_other_bytes_are_damage(found: bytes) -> None:
    """Whatever else stands under a key is refused as damage, never as another error."""
    with pytest.raises(ValueError, match=r"."):
        read_entry(KEY, found, *FULL)


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_every_length_but_its_own_is_damage(storage: str) -> None:
    """An entry cut short, or with bytes behind it, is damage."""
    entry = write_entry(KEY, true_vector("a text", dimensions=32), storage)
    for end in range(len(entry)):
        with pytest.raises(ValueError, match=r"."):
            read_entry(KEY, entry[:end], 32, "float16")
    with pytest.raises(ValueError, match=r"."):
        read_entry(KEY, entry + b"\0", 32, "float16")


@pytest.mark.parametrize(
    "vector",
    [VECTOR * 1.01, VECTOR * 0, np.full(256, np.nan), np.where(VECTOR > 0, np.inf, VECTOR)],
    ids=["long", "zero", "nan", "inf"],
)
def test_a_vector_that_is_no_unit_vector_is_damage(vector: np.ndarray) -> None:
    """A well-written entry of a vector that cannot be right is refused."""
    entry = write_entry(KEY, vector.astype(np.float32), "float32")
    with pytest.raises(ValueError, match="length"):
        read_entry(KEY, entry, *FULL)


def test_an_entry_under_another_key_is_damage() -> None:
    """A whole entry that a store gives for another text is refused."""
    with pytest.raises(ValueError, match="check"):
        read_entry(OTHER_KEY, write_entry(KEY, VECTOR, "float32"), *FULL)


def test_the_layout_is_the_documented_one() -> None:
    """Magic, code, width, check, little-endian components: other versions must read it."""
    entry = write_entry(KEY, VECTOR, "float32")
    assert struct.unpack_from("<4sc3sI", entry) == (b"Q3V1", b"f", b"\0\0\0", 256)
    assert entry[20:] == VECTOR.astype("<f4").tobytes()
