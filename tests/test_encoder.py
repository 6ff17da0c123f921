"""Qwen3Encoder: what every caller may rely on, with the small trained model."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import pickle
import random
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import qwen3_embedding_integrations
from qwen3_embedding_integrations import (
    ConfigError,
    EncoderConfig,
    EngineClosedError,
    InputError,
    ModelLoadError,
    Qwen3Encoder,
    TextTooLongError,
    shared_encoder,
)
from qwen3_embedding_integrations.core.prompts import WEB_SEARCH, format_queries, query_prompt
from qwen3_embedding_integrations.core.tokenizer import Tokenizer
from tests.checkpoints import SHAPE_SMALL, write_checkpoint
from tests.oracle import largest_difference, reference_vectors, vectors_of_ids
from tests.texts import mixed_text

ATOL = 2e-5
TINY = Path(qwen3_embedding_integrations.__file__).parent / "tiny"
LOGGER = "qwen3_embedding_integrations"


def tiny_with(**options) -> Qwen3Encoder:
    """Return the shared small model with other options; it shares the weights of `tiny`."""
    return shared_encoder(EncoderConfig(model="tiny", dtype="float32", **options))


def assert_close(ours, expected, what: str, atol: float = ATOL) -> None:
    difference = largest_difference(ours, expected)
    assert difference <= atol, f"{what}: max difference {difference:.2e}, allowed {atol:.0e}"


def cut(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    shorter = vectors[:, :dimensions]
    return shorter / np.linalg.norm(shorter, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = random.Random(21)
    return [mixed_text(rng, rng.randint(1, 300)) for _ in range(40)]


# What comes out


def test_vectors_are_unit_and_float32(tiny, texts):
    """Both methods return (N, dimensions) float32 rows of length one."""
    for vectors in (tiny.encode_documents(texts), tiny.encode_queries(texts)):
        assert vectors.shape == (len(texts), tiny.dimensions) == (40, 256)
        assert vectors.dtype == np.float32
        assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6


def test_both_roles_equal_transformers(tiny, texts):
    """The small model's vectors are those of Qwen3Model with the official way of pooling."""
    expected = reference_vectors(TINY, texts + format_queries(texts, WEB_SEARCH))
    assert_close(tiny.encode_documents(texts), expected[: len(texts)], "documents")
    assert_close(tiny.encode_queries(texts), expected[len(texts) :], "queries")


def test_equals_sentence_transformers(tiny, texts):
    """sentence-transformers, given the same folder, makes the same vectors for both roles."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(TINY), device="cpu", model_kwargs={"dtype": torch.float32})
    assert_close(tiny.encode_documents(texts), model.encode(texts), "documents")
    queries = model.encode(texts, prompt_name="query")
    assert_close(tiny.encode_queries(texts), queries, "queries")


def test_identical_calls_are_identical_bit_for_bit(tiny, texts):
    """The same call on an idle engine returns the same bits."""
    for encode in (tiny.encode_documents, tiny.encode_queries):
        first, second = encode(texts), encode(texts)
        assert (first == second).all(), f"{(first != second).sum()} numbers differ"


def test_equal_texts_get_equal_vectors(tiny):
    """The same text several times in one call gets one and the same vector."""
    vectors = tiny.encode_documents(["one", "other", "one", "另一个", "one"])
    assert_close(vectors[[2, 4]], vectors[[0, 0]], "repeated text", 1e-6)
    assert np.abs(vectors[1] - vectors[0]).max() > 1e-3


def test_queries_and_documents_differ(tiny):
    """A query carries the instruction, a document does not: the same text has two vectors."""
    text = ["capital of France"]
    assert np.abs(tiny.encode_queries(text) - tiny.encode_documents(text)).max() > 1e-2


@pytest.mark.parametrize("dimensions", [32, 33, 64, 128, 256])
def test_fewer_dimensions_are_a_cut_made_unit_again(tiny, texts, dimensions):
    """dimensions=W is the first W of the full vector, at unit length, for both roles."""
    encoder = tiny_with(dimensions=dimensions)
    assert encoder.dimensions == dimensions
    for ours, full in (
        (encoder.encode_documents(texts), tiny.encode_documents(texts)),
        (encoder.encode_queries(texts), tiny.encode_queries(texts)),
    ):
        assert_close(ours, cut(full, dimensions), f"{dimensions} dimensions", 1e-6)
        assert np.abs(np.linalg.norm(ours, axis=1) - 1).max() < 1e-6


def test_an_instruction_per_call(tiny, texts):
    """instruction= replaces the config's for one call, and is what stands before the query."""
    instruction = "Retrieve semantically similar text"
    vectors = tiny.encode_queries(texts, instruction=instruction)
    assert_close(vectors, tiny.encode_documents(format_queries(texts, instruction)), "instruction")
    assert np.abs(vectors - tiny.encode_queries(texts)).max() > 1e-2
    assert_close(vectors, tiny_with(instruction=instruction).encode_queries(texts), "the config's")


@pytest.mark.parametrize("instruction", ["", "  ", 7])
def test_a_blank_instruction_is_refused(tiny, instruction):
    """An instruction that is no sentence is an error in both twins."""
    with pytest.raises(ConfigError, match="instruction is"):
        tiny.encode_queries(["a"], instruction=instruction)
    with pytest.raises(ConfigError, match="instruction is"):
        asyncio.run(tiny.aencode_queries(["a"], instruction=instruction))


def test_any_sequence_of_str_is_a_list(tiny):
    """Tuples, and numpy's own strings, are read like a list of str."""
    expected = tiny.encode_documents(["a", "b"])
    for texts in (("a", "b"), list(np.array(["a", "b"]))):
        assert_close(tiny.encode_documents(texts), expected, type(texts[0]).__name__)


def test_progress_is_shown_when_asked_and_never_changes_a_vector(tiny, texts, capsys):
    """show_progress draws on stderr; off a terminal nothing is drawn unless asked."""
    quiet = tiny.encode_documents(texts)
    assert capsys.readouterr() == ("", "")
    shown = tiny.encode_documents(texts * 4, show_progress=True)[: len(texts)]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert_close(shown, quiet, "with a progress bar")


# Bad input


@pytest.mark.parametrize("role", ["queries", "documents"])
class TestBadInput:
    """Each bad input, in both roles, has an error of its own that says where and what to do."""

    @pytest.fixture
    def encode(self, tiny, role):
        return getattr(tiny, f"encode_{role}")

    def test_an_empty_list_is_no_rows(self, encode, role):
        """[] gives (0, dimensions)."""
        for empty in ([], ()):
            assert encode(empty).shape == (0, 256)
            assert encode(empty).dtype == np.float32
        narrow = getattr(tiny_with(dimensions=64), f"encode_{role}")
        assert narrow([]).shape == (0, 64)

    @pytest.mark.parametrize(
        ("text", "kind"), [("", "empty"), (" ", "blank"), ("\n\t\u3000", "blank")]
    )
    def test_a_blank_text_is_named(self, encode, role, text, kind):
        """An empty or blank text is refused with its index and the option that allows it."""
        with pytest.raises(InputError) as caught:
            encode(["fine", text])
        assert caught.value.index == 1
        assert f"{role}[1] is {kind}" in str(caught.value)
        assert 'on_empty="embed"' in str(caught.value)

    @pytest.mark.parametrize("value", [None, 3, 2.5, b"bytes", ["nested"], float("nan")], ids=repr)
    def test_what_is_no_text_is_named(self, encode, role, value):
        """None, numbers, bytes and lists among the texts are refused with index and type."""
        with pytest.raises(InputError) as caught:
            encode(["fine", "fine", value])
        assert caught.value.index == 2
        assert f"{role}[2]" in str(caught.value)
        assert type(value).__name__ in str(caught.value)

    def test_a_str_for_a_list_is_refused(self, encode, role):
        """A str would be read letter by letter: refused with the call that was meant."""
        singular = {"queries": "query", "documents": "document"}[role]
        with pytest.raises(TypeError, match=rf"{role} is a str; pass a list: \[{singular}\]"):
            encode("capital of France")

    @pytest.mark.parametrize(
        "value",
        [None, 7, b"bytes", {"a": 1}, {"a"}, iter(["a"]), np.array(["a"])],
        ids=lambda value: type(value).__name__,
    )
    def test_what_is_no_list_is_refused(self, encode, role, value):
        """Anything that is no sequence is a TypeError that says what to pass."""
        with pytest.raises(TypeError, match=f"{role} is a .*pass a list of str"):
            encode(value)

    @pytest.mark.parametrize("text", ["a\ud800b", "\udfff", "中\udc80"])
    def test_a_lone_surrogate_is_named(self, encode, role, text):
        """Half a surrogate pair is refused with its code and place."""
        with pytest.raises(InputError, match=rf"{role}\[1\] holds a lone surrogate") as caught:
            encode(["fine", text])
        place = next(i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff")
        assert f"U+{ord(text[place]):04X} at character {place}" in str(caught.value)
        assert caught.value.index == 1

    def test_nul_bytes_are_text(self, encode, role):
        """NUL is a character like any other: read, and not an end of the string."""
        vectors = encode(["a\x00b", "a", "\x00"])
        whole = ["a\x00b", "a", "\x00"]
        whole = format_queries(whole, WEB_SEARCH) if role == "queries" else whole
        assert_close(vectors, reference_vectors(TINY, whole), "NUL")
        assert np.abs(vectors[0] - vectors[1]).max() > 1e-3

    def test_a_megabyte_is_cut(self, encode, role, caplog):
        """1 MB of text is encoded as its beginning, with a warning, and finite."""
        text = "The quick brown fox, 敏捷的棕色狐狸。" * 30_000
        assert len(text.encode()) > 1_000_000
        with caplog.at_level(logging.WARNING, LOGGER):
            vectors = encode([text, "short"])
        assert len(caplog.records) == 1
        assert_close(vectors[:1], encode([text[:50_000]]), "the first 50,000 characters")
        assert_close(vectors[1:], encode(["short"]), "its neighbour")


def test_bad_calls_harm_no_other(tiny, texts):
    """While bad calls of every kind fail, the good calls of other threads get their vectors."""
    expected = tiny.encode_documents(texts)
    bad = [[""], [None], ["\ud800"], "str", 7, ["fine", 3], [" "]]
    errors, wrong = [], []

    def good_caller(seed: int) -> None:
        rows = random.Random(seed).sample(range(len(texts)), 10)
        vectors = tiny.encode_documents([texts[row] for row in rows])
        wrong.append(largest_difference(vectors, expected[rows]))

    def bad_caller(seed: int) -> None:
        try:
            tiny.encode_documents(bad[seed % len(bad)])
        except (InputError, TypeError) as error:
            errors.append(error)

    with ThreadPoolExecutor(16) as pool:
        for seed in range(28):
            pool.submit(good_caller, seed)
            pool.submit(bad_caller, seed)
    assert len(errors) == 28
    assert len(wrong) == 28
    assert max(wrong) <= 1e-5


def test_more_dimensions_than_the_model_has_are_refused():
    """dimensions=4097 of a model that makes 256 is an error that says how many there are."""
    with pytest.raises(ConfigError, match=r"dimensions is 4097, tiny makes 256.*from 32 to 256"):
        tiny_with(dimensions=4097)
    with pytest.raises(ConfigError, match="dimensions is 4097"):
        Qwen3Encoder(EncoderConfig(model="tiny", dimensions=4097))


def test_a_refused_encoder_leaves_no_thread_behind():
    """When the options turn out impossible after loading, the engine does not stay."""
    before = engine_threads()
    with pytest.raises(ConfigError):
        Qwen3Encoder(EncoderConfig(model="tiny", dimensions=4097))
    gc.collect()
    assert_ended(engine_threads() - before)


def test_a_max_length_beyond_the_model_is_refused():
    """max_length beyond what the model can read is an error; only the default is lowered."""
    with pytest.raises(ConfigError, match="max_length is 4096, tiny reads 2048 tokens"):
        tiny_with(max_length=4096)
    assert tiny_with().max_length == 2048


def test_an_instruction_longer_than_max_length_is_refused():
    """When the instruction leaves no room for the query, the error says so with both numbers."""
    encoder = tiny_with(max_length=12)
    with pytest.raises(ConfigError, match=r"instruction takes .* max_length is 12"):
        encoder.encode_queries(["query"])
    assert encoder.encode_documents(["a document is read all the same"]).shape == (1, 256)


def test_a_missing_folder_is_named():
    """A path that does not exist is a ModelLoadError with the path."""
    with pytest.raises(ModelLoadError, match="/no/such/model"):
        Qwen3Encoder("/no/such/model")


def test_a_truncated_file_is_refused_by_the_encoder(tmp_path):
    """A safetensors file cut short is a ModelLoadError when the encoder is made."""
    shape = SHAPE_SMALL | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    path = write_checkpoint(tmp_path / "cut", shape) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match="damaged or cut short"):
        Qwen3Encoder(str(path.parent))


# Too long, and empty


def test_truncation_warns_once_per_call(caplog):
    """Cut texts are counted and named in one warning a call, and counted in stats()."""
    encoder = tiny_with(max_length=32)
    texts = ["short", "long " * 100, "also short", "更长的文本。" * 60, "x"]
    before = encoder.stats()
    with caplog.at_level(logging.WARNING, LOGGER):
        encoder.encode_documents(texts)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1, messages
    for part in ("2 of 5 documents", "max_length=32", "indices 1, 3"):
        assert part in messages[0]
    assert encoder.stats().truncated - before.truncated == 2
    caplog.clear()
    encoder.encode_documents(texts[:1])
    assert caplog.records == []


def test_the_warning_names_no_more_indices_than_one_can_read(caplog):
    """Of thirty cut texts twenty are named and the rest counted."""
    with caplog.at_level(logging.WARNING, LOGGER):
        tiny_with(max_length=8).encode_documents(["long " * 20] * 30)
    [record] = caplog.records
    assert "30 of 30" in record.getMessage()
    assert record.getMessage().endswith("18, 19 and 10 more")


def test_truncation_keeps_the_end_token():
    """A cut text is read as the official tokenizer cuts it: its beginning, then <|endoftext|>."""
    encoder = tiny_with(max_length=24)
    tokenizer = Tokenizer(TINY)
    texts = ["word " * 60, "字" * 60]
    sequences = [[*ids[:23], tokenizer.end_id] for ids in tokenizer.encode(texts)]
    assert_close(encoder.encode_documents(texts), vectors_of_ids(TINY, sequences), "documents")
    encoder = tiny_with(max_length=40)
    wholes = tokenizer.encode(format_queries(texts, WEB_SEARCH))
    sequences = [[*ids[:39], tokenizer.end_id] for ids in wholes]
    assert_close(encoder.encode_queries(texts), vectors_of_ids(TINY, sequences), "queries")


def test_too_long_can_be_an_error():
    """on_too_long="error" names index, tokens and limit, and encodes nothing."""
    encoder = tiny_with(max_length=32, on_too_long="error")
    text = "word " * 50
    num_tokens = len(Tokenizer(TINY).encode([text])[0])
    with pytest.raises(TextTooLongError, match=r"max_length is 32.*chunk_mean") as caught:
        encoder.encode_documents(["short", "short", text, text])
    assert (caught.value.index, caught.value.num_tokens) == (2, num_tokens)
    assert encoder.encode_documents(["short"]).shape == (1, 256)


def test_a_text_of_exactly_max_length_is_not_too_long():
    """The limit itself is allowed, one token more is not."""
    tokenizer = Tokenizer(TINY)
    text = "word"
    while len(tokenizer.encode([text])[0]) < 32:
        text += " word"
    encoder = tiny_with(max_length=32, on_too_long="error")
    assert len(tokenizer.encode([text])[0]) == 32
    encoder.encode_documents([text])
    with pytest.raises(TextTooLongError, match="33 tokens"):
        encoder.encode_documents([text + " word"])


def hand_computed_mean(pieces, prefix_ids=()) -> np.ndarray:
    """Return the mean of the pieces' vectors, weighted by their tokens, not normalised."""
    vectors = vectors_of_ids(TINY, [[*prefix_ids, *ids.tolist()] for ids in pieces])
    weights = np.array([len(ids) - 1 for ids in pieces])  # <|endoftext|> is no token of the text
    return (vectors * weights[:, None]).sum(0) / weights.sum()


def test_chunk_mean_is_the_mean_of_the_pieces_by_tokens(tiny, texts):
    """A long document's vector is the token-weighted mean of its pieces', at unit length."""
    encoder = tiny_with(max_length=64, on_too_long="chunk_mean")
    rng = random.Random(22)
    long_texts = [mixed_text(rng, n) for n in (300, 800, 2500)]
    tokenizer = Tokenizer(TINY)
    means = np.stack([hand_computed_mean(tokenizer.chunk(one, 64)) for one in long_texts])
    expected = cut(means, 256)
    short = ["short", "短"]
    ours = encoder.encode_documents([short[0], *long_texts, short[1]])
    assert_close(ours[1:4], expected, "long texts")
    assert_close(ours[[0, 4]], tiny.encode_documents(short), "short texts in the same call")
    assert np.abs(np.linalg.norm(ours, axis=1) - 1).max() < 1e-6
    assert encoder.stats().truncated == 0


@pytest.mark.parametrize("dimensions", [32, 128])
def test_chunk_mean_at_fewer_dimensions_is_the_cut_mean(dimensions):
    """Cutting a mean of pieces is the mean at fewer dimensions, as for any other text."""
    options = {"max_length": 64, "on_too_long": "chunk_mean"}
    rng = random.Random(23)
    texts = [mixed_text(rng, n) for n in (10, 700, 1500)]
    full = tiny_with(**options).encode_documents(texts)
    narrow = tiny_with(**options, dimensions=dimensions).encode_documents(texts)
    assert_close(narrow, cut(full, dimensions), f"{dimensions} dimensions", 1e-6)


def test_chunk_mean_of_a_query_repeats_the_instruction():
    """Every piece of a long query is read behind the whole instruction."""
    encoder = tiny_with(max_length=64, on_too_long="chunk_mean")
    query = mixed_text(random.Random(24), 600)
    tokenizer = Tokenizer(TINY)
    head = tokenizer.prompt(query_prompt(WEB_SEARCH))
    pieces = tokenizer.chunk(query, 64 - len(head.prefix_ids), head=head.tail)
    assert len(pieces) > 3
    expected = cut(hand_computed_mean(pieces, head.prefix_ids)[None], 256)
    assert_close(encoder.encode_queries([query]), expected, "a long query")


def test_blank_texts_can_be_encoded():
    """on_empty="embed" encodes a blank text as it is: the end token alone, or its blanks."""
    encoder = tiny_with(on_empty="embed")
    texts = ["", " ", "\n\n", "word"]
    assert_close(encoder.encode_documents(texts), reference_vectors(TINY, texts), "documents")
    whole = format_queries(texts, WEB_SEARCH)
    assert_close(encoder.encode_queries(texts), reference_vectors(TINY, whole), "queries")


def test_stats_count_what_was_read():
    """texts, tokens and forwards grow by what each call read, the instruction included."""
    with Qwen3Encoder(EncoderConfig(model="tiny", dtype="float32", max_batch_tokens=64)) as encoder:
        assert encoder.stats() == (0, 0, 0, 0, 0)
        texts = ["one two three"] * 20
        encoder.encode_documents(texts)
        tokenizer = Tokenizer(TINY)
        num_tokens = sum(len(ids) for ids in tokenizer.encode(texts))
        stats = encoder.stats()
        assert (stats.texts, stats.tokens, stats.truncated, stats.retries) == (20, num_tokens, 0, 0)
        assert stats.forwards == -(-20 // (64 // (num_tokens // 20)))
        encoder.encode_queries(["one"])
        num_tokens += len(tokenizer.encode(format_queries(["one"], WEB_SEARCH))[0])
        assert encoder.stats()[:2] == (21, num_tokens)


# Many callers


def test_async_twins_equal_sync(tiny, texts):
    """aencode_… returns what encode_… returns, for both roles and with an instruction."""

    async def run():
        return await asyncio.gather(
            tiny.aencode_documents(texts),
            tiny.aencode_queries(texts),
            tiny.aencode_queries(texts, instruction="Find the same sentence"),
            tiny.aencode_documents([]),
        )

    documents, queries, instructed, empty = asyncio.run(run())
    assert_close(documents, tiny.encode_documents(texts), "documents", 1e-5)
    assert_close(queries, tiny.encode_queries(texts), "queries", 1e-5)
    expected = tiny.encode_queries(texts, instruction="Find the same sentence")
    assert_close(instructed, expected, "instruction", 1e-5)
    assert empty.shape == (0, 256)


def test_async_errors_are_the_sync_ones(tiny):
    """Bad input raises the same errors through the async twins."""
    for bad, error in (([None], InputError), ([""], InputError), ("str", TypeError)):
        with pytest.raises(error):
            asyncio.run(tiny.aencode_documents(bad))
        with pytest.raises(error):
            asyncio.run(tiny.aencode_queries(bad))


def test_the_event_loop_is_never_blocked(tiny):
    """While a large call runs, other coroutines of the same loop keep their turns."""
    rng = random.Random(25)
    documents = [mixed_text(rng, 400) for _ in range(80)]

    async def run() -> int:
        num_ticks, call = 0, asyncio.ensure_future(tiny.aencode_documents(documents))
        while not call.done():
            await asyncio.sleep(0.001)
            num_ticks += 1
        await call
        return num_ticks

    num_ticks = asyncio.run(run())
    assert num_ticks >= 10, f"the loop turned {num_ticks} times during the call"


def test_a_cancelled_coroutine_drops_its_call(tiny, texts):
    """Cancelling an awaited bulk call stops it early and leaves the encoder usable."""
    config = EncoderConfig(model="tiny", dtype="float32", max_batch_tokens=64)
    documents = [mixed_text(random.Random(i), 300) for i in range(300)]
    with Qwen3Encoder(config) as encoder:

        async def run() -> None:
            task = asyncio.ensure_future(encoder.aencode_documents(documents))
            while encoder.stats().forwards < 2:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(run())
        assert_close(encoder.encode_documents(texts[:5]), tiny.encode_documents(texts[:5]), "after")
        assert encoder.stats().forwards < 200, "the cancelled call ran to its end"


class Callers:
    """128 callers of one encoder, each with its own texts in both roles; remembers what differs."""

    def __init__(self, encoder: Qwen3Encoder) -> None:
        rng = random.Random(26)
        self.encoder = encoder
        self.texts = [f"{i}: {mixed_text(rng, rng.randint(5, 60))}" for i in range(200)]
        self.expected = {
            "documents": encoder.encode_documents(self.texts),
            "queries": encoder.encode_queries(self.texts),
        }
        self.failures: list[str] = []
        self.num_checked = itertools.count()

    def plan(self, seed: int):
        """Yield three calls: role, rows and their texts."""
        rng = random.Random(seed)
        for _ in range(3):
            rows = rng.sample(range(len(self.texts)), rng.choice([1, 2, 10]))
            yield rng.choice(["documents", "queries"]), rows, [self.texts[row] for row in rows]

    def check(self, role: str, rows: list[int], vectors: np.ndarray) -> None:
        difference = largest_difference(vectors, self.expected[role][rows])
        nearest = (vectors @ self.expected[role].T).argmax(axis=1).tolist()
        if difference > 1e-5 or nearest != rows:
            self.failures.append(f"{role}: {difference:.2e}, rows {rows} got those of {nearest}")
        next(self.num_checked)

    def thread(self, seed: int) -> None:
        for role, rows, texts in self.plan(seed):
            self.check(role, rows, getattr(self.encoder, f"encode_{role}")(texts))

    async def coroutine(self, seed: int) -> None:
        for role, rows, texts in self.plan(seed):
            self.check(role, rows, await getattr(self.encoder, f"aencode_{role}")(texts))

    async def coroutines(self, seeds: range) -> None:
        await asyncio.gather(*(self.coroutine(seed) for seed in seeds))


def test_64_threads_and_64_coroutines_get_their_own_rows(tiny):
    """128 callers mixing roles and sizes: every row is the caller's own text's."""
    callers = Callers(tiny)
    with ThreadPoolExecutor(65) as pool:
        waiting = [pool.submit(callers.thread, seed) for seed in range(64)]
        waiting.append(pool.submit(asyncio.run, callers.coroutines(range(64, 128))))
        for one in waiting:
            one.result(120)
    failures = callers.failures
    assert not failures, f"{len(failures)} of 384 calls, first {failures[0]}"
    assert next(callers.num_checked) == 384


# Streams


def test_a_stream_is_the_list(tiny, texts):
    """stream_documents yields, window by window, what encode_documents returns at once."""
    expected = tiny.encode_documents(texts)
    for window in (1, 7, 40, 1000):
        parts = list(tiny.stream_documents(iter(texts), window=window))
        assert [len(part) for part in parts[:-1]] == [window] * (len(parts) - 1)
        assert_close(np.concatenate(parts), expected, f"window={window}", 1e-5)
    assert list(tiny.stream_documents([])) == []


def test_an_endless_stream_is_read_lazily(tiny):
    """Of an endless iterable no more than the windows in hand are read."""
    num_read = 0

    def endless():
        nonlocal num_read
        while True:
            num_read += 1
            yield f"document {num_read}"

    stream = tiny.stream_documents(endless(), window=4)
    assert num_read == 0
    for i in range(1, 6):
        part = next(stream)
        assert part.shape == (4, 256)
        assert num_read <= 4 * (i + 1), f"{num_read} documents read for {i} windows"
    stream.close()


def test_a_window_of_long_texts_is_shorter():
    """A window holds about a million characters at most, however many texts it might."""
    texts = ["word " * 80_000] * 4
    parts = list(tiny_with(max_length=8).stream_documents(texts, window=512))
    assert [len(part) for part in parts] == [3, 1]


def test_a_bad_text_in_a_stream_is_named_by_its_place_in_the_stream(tiny):
    """The windows before a bad text are yielded, then the error carries the stream-wide index."""

    def texts():
        for i in range(100):
            yield "" if i == 53 else f"document {i}"

    received: list[np.ndarray] = []
    with pytest.raises(InputError) as caught:
        received.extend(tiny.stream_documents(texts(), window=10))
    assert caught.value.index == 53
    assert "documents[53] is empty" in str(caught.value)
    expected = tiny.encode_documents([f"document {i}" for i in range(50)])
    assert_close(np.concatenate(received), expected, "the windows before it", 1e-5)


def test_a_failing_source_raises_its_own_error(tiny):
    """An error of the iterable itself reaches the caller, after the windows before it."""

    def texts():
        yield from (f"document {i}" for i in range(25))
        raise OSError("the disk is gone")

    received: list[np.ndarray] = []
    with pytest.raises(OSError, match="the disk is gone"):
        received.extend(tiny.stream_documents(texts(), window=10))
    assert [len(part) for part in received] == [10, 10]


def test_a_truncated_text_in_a_stream_is_named_by_its_place_in_the_stream(caplog):
    """The warning about cut texts counts from the stream's beginning."""
    texts = ["short"] * 25 + ["long " * 100] + ["short"] * 4
    with caplog.at_level(logging.WARNING, LOGGER):
        list(tiny_with(max_length=32).stream_documents(texts, window=10))
    assert "indices 25" in caplog.text


@pytest.mark.parametrize(("documents", "match"), [("a str", "pass an iterable"), (7, "int")])
def test_a_stream_of_no_iterable_is_refused(tiny, documents, match):
    """A str or a number for an iterable is a TypeError."""
    with pytest.raises(TypeError, match=match):
        list(tiny.stream_documents(documents))


def test_a_stream_window_is_checked(tiny):
    """A window of no texts is a ConfigError, at the call and not at the first text."""
    with pytest.raises(ConfigError, match="window is 0"):
        tiny.stream_documents(["a"], window=0)


# Life and death


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "qwen3-engine"}


def assert_ended(threads) -> None:
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive(), "the engine's thread still runs"


def tensors_of_shape(*shape: int) -> int:
    """Return how many tensors of this shape live in the process."""
    gc.collect()
    return sum(type(one) is torch.Tensor and one.shape == shape for one in gc.get_objects())


def test_a_closed_encoder_refuses_calls():
    """After close, or the with block, every method is EngineClosedError; closing again is not."""
    with Qwen3Encoder("tiny") as encoder:
        assert not encoder.is_closed
    assert encoder.is_closed
    encoder.close()
    with pytest.raises(EngineClosedError, match="closed"):
        encoder.encode_documents(["a"])
    with pytest.raises(EngineClosedError):
        encoder.encode_queries(["a"])
    with pytest.raises(EngineClosedError):
        asyncio.run(encoder.aencode_documents(["a"]))
    with pytest.raises(EngineClosedError):
        list(encoder.stream_documents(["a"]))


def test_an_encoder_nobody_holds_ends_its_thread(tmp_path):
    """Dropping the last reference ends the engine's thread and frees the weights."""
    shape = SHAPE_SMALL | {"hidden_size": 72, "intermediate_size": 96, "num_hidden_layers": 1}
    folder = write_checkpoint(tmp_path / "dropped", shape)
    before = engine_threads()
    encoder = Qwen3Encoder(str(folder))
    encoder.encode_queries(["a"])
    threads = engine_threads() - before
    assert len(threads) == 1
    assert tensors_of_shape(151669, 72) == 1
    del encoder
    gc.collect()
    assert_ended(threads)
    assert tensors_of_shape(151669, 72) == 0


def test_closing_frees_the_weights(tmp_path):
    """close() gives the memory back, also while someone still holds the closed encoder."""
    shape = SHAPE_SMALL | {"hidden_size": 88, "intermediate_size": 96, "num_hidden_layers": 1}
    encoder = Qwen3Encoder(str(write_checkpoint(tmp_path / "closed", shape)))
    encoder.encode_queries(["a"])
    assert tensors_of_shape(151669, 88) == 1
    encoder.close()
    assert tensors_of_shape(151669, 88) == 0


def test_a_dropped_tokenizer_needs_no_collector():
    """A closed encoder's 30 MB of vocabulary go with its last reference, not some time later."""
    gc.disable()
    try:
        encoder = Qwen3Encoder("tiny")
        encoder.encode_queries(["a"])
        tokenizer = weakref.ref(encoder._loaded.tokenizer)
        encoder.close()
        del encoder
        assert tokenizer() is None
    finally:
        gc.enable()


def test_a_pickled_encoder_is_the_shared_one(tiny):
    """Weights do not travel: unpickling gives the process's shared encoder of that config."""
    assert pickle.loads(pickle.dumps(tiny)) is tiny
    with Qwen3Encoder(tiny.config) as own:
        assert own is not tiny
        data = pickle.dumps(own)
        assert len(data) < 2000, f"{len(data)} bytes: do the weights travel?"
        assert pickle.loads(data) is tiny


def test_the_contract_says_what_made_the_vectors(tiny):
    """The contract carries the resolved facts; equal encoders have equal ones."""
    contract = tiny.contract
    assert (contract.model, contract.dimensions, contract.dtype) == ("tiny", 256, "float32")
    assert (contract.max_length, contract.on_too_long) == (2048, "truncate")
    assert contract.instruction == WEB_SEARCH
    assert contract.end_token == "<|endoftext|>"
    assert len(contract.revision) >= 12
    assert tiny_with(on_empty="embed").contract == contract
    narrow = tiny_with(dimensions=64).contract
    assert narrow.fingerprint != contract.fingerprint
    assert [one.field for one in narrow.difference(contract)] == ["dimensions"]
    assert json.loads(json.dumps(contract.to_dict())) == contract.to_dict()


def test_a_copied_folder_has_the_same_fingerprint(tmp_path, tiny):
    """The same files under another name are the same model."""
    copy = tmp_path / "my-model"
    shutil.copytree(TINY, copy)
    with Qwen3Encoder(EncoderConfig(model=str(copy), dtype="float32")) as encoder:
        assert encoder.contract.fingerprint == tiny.contract.fingerprint
        assert encoder.contract.difference(tiny.contract) == []


async def test_a_caller_that_leaves_while_tokenising_takes_the_call_back() -> None:
    """A task cancelled before its texts reach the queue leaves nothing to compute."""
    with Qwen3Encoder(EncoderConfig(model="tiny", max_batch_tokens=64)) as encoder:
        task = asyncio.create_task(encoder.aencode_documents(["a text of some words " * 8] * 4000))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while encoder.stats().texts == 0:  # its thread is still tokenising
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        forwards = encoder.stats().forwards
        encoder.encode_documents(["one"])
        assert encoder.stats().forwards - forwards <= 2, "4,000 texts were encoded for nobody"
