"""CachedEncoder: the encoder's vectors and errors, roles and options never mixed, nothing twice."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qwen3_embedding_integrations import (
    CachedEncoder,
    ConfigError,
    DiskStore,
    EncoderConfig,
    EngineClosedError,
    MemoryStore,
    Qwen3Encoder,
    TextTooLongError,
    shared_encoder,
)
from tests.cache.encoders import CONTRACT, HashEncoder, true_vectors

TEXTS = ["如何重置密码？", "How do I reset my password?", "x", "x ", "e\u0301", "é", "🚀"]
FIND = "Find the help article"


async def test_it_is_the_encoder(tiny: Qwen3Encoder) -> None:
    """Cold and warm, sync, async and streamed: bit for bit what the encoder gave at first."""
    cached = CachedEncoder(tiny)
    for _ in range(2):
        documents = cached.encode_documents(TEXTS)
        assert np.abs(documents - tiny.encode_documents(TEXTS)).max() < 2e-5
        assert (await cached.aencode_documents(TEXTS) == documents).all()
        assert (np.concatenate(list(cached.stream_documents(TEXTS, window=3))) == documents).all()
        queries = cached.encode_queries(TEXTS)
        assert np.abs(queries - tiny.encode_queries(TEXTS)).max() < 2e-5
        assert (await cached.aencode_queries(TEXTS) == queries).all()
        assert np.abs(queries - documents).max(axis=1).min() > 1e-3
    assert cached.stats().encoded == 2 * len(TEXTS)
    assert documents.dtype == np.float32
    assert documents.flags.writeable
    assert cached.encode_documents([]).shape == (0, tiny.dimensions)
    assert (cached.contract, cached.dimensions) == (tiny.contract, tiny.dimensions)
    assert (cached.config, cached.max_length) == (tiny.config, tiny.max_length)
    assert cached.count_tokens("x") == tiny.count_tokens("x")
    with pytest.raises(AttributeError, match="decode"):
        cached.decode()


def test_a_caller_may_change_what_it_got(tiny: Qwen3Encoder) -> None:
    """Vectors are the caller's own: what is kept does not change with them."""
    cached = CachedEncoder(tiny)
    first = cached.encode_documents(["x", "x"])
    kept = first.copy()
    first[:] = 7
    assert (cached.encode_documents(["x", "x"]) == kept).all()


def test_roles_and_instructions_never_mix(tiny: Qwen3Encoder) -> None:
    """The same text as a document, a query, and a query for something else: three vectors."""
    cached = CachedEncoder(tiny)
    for _ in range(2):
        got = [
            cached.encode_documents(["x"]),
            cached.encode_queries(["x"]),
            cached.encode_queries(["x"], instruction=FIND),
            # What a query is to the model, as a document: the same tokens, another entry.
            cached.encode_documents([f"Instruct: {FIND}\nQuery:x"]),
        ]
        expected = [
            tiny.encode_documents(["x"]),
            tiny.encode_queries(["x"]),
            tiny.encode_queries(["x"], instruction=FIND),
            tiny.encode_documents([f"Instruct: {FIND}\nQuery:x"]),
        ]
        assert np.abs(np.subtract(got, expected)).max() < 2e-5
    assert cached.stats().encoded == 4
    default = tiny.config.instruction
    cached.encode_queries(["x"], instruction=default)
    assert cached.stats().encoded == 4, "the default instruction by name is the same query"


@pytest.mark.parametrize(
    "facts",
    [
        {"revision": "2"},
        {"model": "other"},
        {"lora": "a"},
        {"dtype": "bfloat16"},
        {"quantization": "int8"},
        {"max_length": 128},
        {"on_too_long": "error"},
    ],
    ids=str,
)
def test_another_encoder_never_hits(facts: dict[str, object]) -> None:
    """In one store, an encoder that differs in any fact of its vectors finds nothing."""
    store = MemoryStore()
    CachedEncoder(HashEncoder(), store).encode_documents(TEXTS)
    other = HashEncoder(**facts)
    CachedEncoder(other, store).encode_documents(TEXTS)
    assert other.counts.total() == len(TEXTS)
    again = HashEncoder(**facts, instruction="another default", package_version="9")
    CachedEncoder(again, store).encode_documents(TEXTS)
    assert again.counts.total() == 0


def test_fewer_dimensions_are_served_from_more(tiny: Qwen3Encoder) -> None:
    """A wide vector answers narrower encoders with theirs; a narrow one never a wider encoder."""
    store = MemoryStore()
    widths = [tiny.model_dimensions, 128, 64]
    encoders = [shared_encoder(replace(tiny.config, dimensions=width)) for width in widths]
    for encoder in encoders:
        cached = CachedEncoder(encoder, store)
        for encode, true in [
            (cached.encode_documents, encoder.encode_documents),
            (cached.encode_queries, encoder.encode_queries),
        ]:
            vectors = encode(TEXTS)
            assert vectors.shape == (len(TEXTS), encoder.dimensions)
            assert np.abs(vectors - true(TEXTS)).max() < 2e-5
        num_encoded = 2 * len(TEXTS) if encoder.dimensions == widths[0] else 0
        assert cached.stats().encoded == num_encoded, encoder.dimensions

    store = MemoryStore()
    for encoder in reversed(encoders):  # each is too narrow for the next, and is replaced by it
        cached = CachedEncoder(encoder, store)
        assert np.abs(cached.encode_documents(TEXTS) - encoder.encode_documents(TEXTS)).max() < 2e-5
        assert cached.stats().encoded == len(TEXTS)
    assert CachedEncoder(encoders[2], store).encode_documents(TEXTS).shape == (len(TEXTS), 64)


def test_a_mean_of_parts_is_cut_like_any_vector() -> None:
    """on_too_long="chunk_mean": a wide entry gives a narrower encoder its own mean."""
    store = MemoryStore()
    config = EncoderConfig(model="tiny", dtype="float32", max_length=32, on_too_long="chunk_mean")
    long = ["Refunds are paid within 14 days to the card you paid with. " * 10]
    CachedEncoder(shared_encoder(config), store).encode_documents(long)
    narrow = shared_encoder(replace(config, dimensions=64))
    cached = CachedEncoder(narrow, store)
    assert np.abs(cached.encode_documents(long) - narrow.encode_documents(long)).max() < 2e-5
    assert cached.stats().hits == 1


def test_float16_halves_the_entries(tiny: Qwen3Encoder) -> None:
    """`storage="float16"`: vectors within 2**-10 of each component; never served for float32."""
    wide, narrow = MemoryStore(), MemoryStore()
    CachedEncoder(tiny, wide).encode_documents(TEXTS)
    half = CachedEncoder(tiny, narrow, storage="float16")
    vectors = half.encode_documents(TEXTS)
    assert wide.stored_bytes - narrow.stored_bytes == len(TEXTS) * tiny.dimensions * 2
    again = half.encode_documents(TEXTS)
    assert half.stats().hits == len(TEXTS)
    assert (np.abs(again - vectors) <= np.abs(vectors) * 2**-10 + 2**-24).all()
    assert np.abs(np.linalg.norm(again, axis=1) - 1).max() < 1e-6
    whole = CachedEncoder(tiny, narrow)
    assert np.abs(whole.encode_documents(TEXTS) - vectors).max() < 2e-5
    assert whole.stats().encoded == len(TEXTS), "a rounded vector passed for a whole one"
    half.encode_documents(TEXTS)
    assert half.stats().encoded == len(TEXTS), "a whole vector serves who asked for a rounded one"


def test_equal_texts_of_a_call_are_encoded_once() -> None:
    """The encoder sees each text once; every place gets its vector."""
    encoder = HashEncoder()
    cached = CachedEncoder(encoder)
    texts = ["a", "b", "a", "c", "b", "a"]
    assert (cached.encode_documents(texts) == true_vectors(texts)).all()
    assert encoder.counts == {"a": 1, "b": 1, "c": 1}
    stats = cached.stats()
    assert (stats.texts, stats.encoded, stats.joined, stats.hits) == (6, 3, 3, 0)


def test_a_lower_hit_is_put_into_the_upper_stores(tmp_path: Path) -> None:
    """What a later store has is answered by the first from then on."""
    upper, lower = MemoryStore(), DiskStore(tmp_path / "cache")
    CachedEncoder(HashEncoder(), lower).encode_documents(TEXTS)
    encoder = HashEncoder()
    cached = CachedEncoder(encoder, upper, lower)
    for _ in range(2):
        assert (cached.encode_documents(TEXTS) == true_vectors(TEXTS)).all()
    memory, disk = cached.stats().stores
    assert (memory.hits, memory.misses) == (len(TEXTS), len(TEXTS))
    assert (disk.hits, disk.misses) == (len(TEXTS), 0)
    assert (memory.stored_bytes, disk.stored_bytes) == (upper.stored_bytes, lower.stored_bytes)
    assert cached.stats().hits == 2 * len(TEXTS)
    assert encoder.num_calls == 0
    cached.encode_documents(["new"])
    for store in (upper, lower):  # what is encoded is put into both
        again = CachedEncoder(HashEncoder(), store)
        again.encode_documents([*TEXTS, "new"])
        assert again.stats().hits == len(TEXTS) + 1
    lower.close()


@pytest.mark.parametrize(
    "texts",
    [["a", ""], ["a", "b", " \n"], ["a", "b", 5], ["a", "\ud800"], "text", b"text", None, [None]],
    ids=repr,
)
async def test_errors_are_the_encoders_own(tiny: Qwen3Encoder, texts: object) -> None:
    """A bad text, or no list at all: the encoder's error, message and index, warm or cold."""
    cached = CachedEncoder(tiny)
    for warm in (["z"], ["a", "b"]):
        cached.encode_documents(warm)
        cached.encode_queries(warm)
        for ours, theirs in [
            (cached.encode_documents, tiny.encode_documents),
            (cached.encode_queries, tiny.encode_queries),
        ]:
            with pytest.raises((ValueError, TypeError)) as true:
                theirs(texts)
            with pytest.raises(type(true.value)) as got:
                ours(texts)
            assert str(got.value) == str(true.value)
            assert getattr(got.value, "index", "none") == getattr(true.value, "index", "none")
        with pytest.raises((ValueError, TypeError)):
            await cached.aencode_documents(texts)


def test_a_text_that_is_too_long_is_named_by_its_place() -> None:
    """Behind texts that are cached, equal or both, the index is still the caller's."""
    config = EncoderConfig(model="tiny", dtype="float32", max_length=16, on_too_long="error")
    cached = CachedEncoder(shared_encoder(config))
    cached.encode_documents(["a", "b"])
    with pytest.raises(TextTooLongError) as caught:
        cached.encode_documents(["a", "new", "b", "new", "long " * 50, "c"])
    assert caught.value.index == 4
    assert caught.value.num_tokens > 16
    assert cached.encode_documents(["new", "c"]).shape[0] == 2


@pytest.mark.parametrize("bad", ["", "long " * 50])
def test_a_stream_counts_from_its_beginning(bad: str) -> None:
    """A bad text of a later window: the windows before it, then the encoder's own error."""
    config = EncoderConfig(model="tiny", dtype="float32", max_length=16, on_too_long="error")
    encoder = shared_encoder(config)
    texts = [*(f"text {i % 4}" for i in range(10)), bad, "x"]
    outcomes = []
    for streaming in (encoder, CachedEncoder(encoder)):
        stream, windows = streaming.stream_documents(iter(texts), window=4), []
        with pytest.raises(ValueError, match=r".") as caught:
            windows.extend(stream)
        outcomes.append((len(windows), type(caught.value), str(caught.value), caught.value.index))
    assert outcomes[0] == outcomes[1]
    assert outcomes[1][0] == 2
    assert outcomes[1][3] == 10


def test_a_failing_iterable_fails_after_its_windows() -> None:
    """What the caller's own iterable raises comes when all before it was yielded."""

    def documents() -> object:
        yield from ["a", "b"]
        raise OSError("the disk is gone")

    windows = []
    with pytest.raises(OSError, match="the disk is gone"):
        windows.extend(CachedEncoder(HashEncoder()).stream_documents(documents(), window=1))
    assert len(windows) == 2


def test_blank_texts_follow_the_encoders_rule() -> None:
    """Where blank texts are encoded they are cached; an encoder that refuses them still does."""
    store = MemoryStore()
    config = EncoderConfig(model="tiny", dtype="float32", on_empty="embed")
    cached = CachedEncoder(shared_encoder(config), store)
    first = cached.encode_documents(["", " ", "a"])
    assert (cached.encode_documents(["", " ", "a"]) == first).all()
    assert cached.stats().hits == 3
    strict = CachedEncoder(shared_encoder(replace(config, on_empty="error")), store)
    with pytest.raises(ValueError, match=r"documents\[1\] is empty"):
        strict.encode_documents(["a", ""])


def test_a_bad_instruction_is_the_encoders_error(tiny: Qwen3Encoder) -> None:
    """A blank instruction is refused, hit or miss."""
    cached = CachedEncoder(tiny)
    with pytest.raises(ConfigError, match="instruction is blank"):
        cached.encode_queries(["a"], instruction=" ")


def test_what_is_no_store_is_refused(tiny: Qwen3Encoder) -> None:
    """A path or a URL in place of a store, a cache in a cache, an unknown storage: ConfigError."""
    with pytest.raises(ConfigError, match="is no store"):
        CachedEncoder(tiny, "redis://localhost")
    with pytest.raises(ConfigError, match="CachedEncoder"):
        CachedEncoder(CachedEncoder(tiny))
    with pytest.raises(ConfigError, match="storage is 'int8'"):
        CachedEncoder(tiny, storage="int8")


def test_closing_closes_the_encoder_and_the_stores(tmp_path: Path) -> None:
    """After close every call is an EngineClosedError, hits as well."""
    encoder = Qwen3Encoder(EncoderConfig(model="tiny", dtype="float32"))
    with CachedEncoder(encoder, DiskStore(tmp_path / "cache")) as cached:
        cached.encode_documents(["a"])
    assert encoder.is_closed
    assert cached.is_closed
    with pytest.raises(EngineClosedError):
        cached.encode_documents(["a"])


def test_a_pickled_cache_goes_on_with_its_file(tiny: Qwen3Encoder, tmp_path: Path) -> None:
    """Pickling carries the options and the places, not the entries of memory."""
    cached = CachedEncoder(tiny, MemoryStore(10_000), DiskStore(tmp_path / "c"), storage="float16")
    cached.encode_documents(["a"])
    again = pickle.loads(pickle.dumps(cached))
    again.encode_documents(["a"])
    memory, disk = again.stats().stores
    assert (memory.hits, disk.hits, again.stats().encoded) == (0, 1, 0)
    assert again.encoder is tiny


def test_the_contract_of_a_hash_encoder_is_its_own() -> None:
    """The encoder of these tests says what it is made of."""
    assert HashEncoder().contract == CONTRACT
