"""The Qdrant door: in memory, in a folder across clients, and over gRPC to a server in process."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from qwen3_embedding_integrations import (
    ConfigError,
    ContractMismatchError,
    EncoderConfig,
    IndexingError,
    InputError,
    Qwen3Encoder,
)
from qwen3_embedding_integrations.core.streaming import WINDOW
from qwen3_embedding_integrations.qdrant import (
    Qwen3Collection,
    Storage,
    stored_config,
    stored_contract,
    stored_storage,
)
from tests.adapters.fake_qdrant import Fault, fake_qdrant
from tests.adapters.spy import spied_encoder

QUERY = "How do I reset my password?"
DOCUMENTS = [
    "If you forgot your password, reset it by phone.",
    "Refunds are paid within 14 days.",
    "民法调整平等主体的自然人、法人和非法人组织之间的人身关系和财产关系。",
]


@pytest.fixture
def client() -> Iterator[QdrantClient]:
    client = QdrantClient(":memory:")
    yield client
    client.close()


def collection(client: QdrantClient | str, name: str = "texts", **options: Any) -> Qwen3Collection:
    """Return a collection whose encoder is the `tiny` fixture's, unless told otherwise."""
    return Qwen3Collection(client, name, **{"model": "tiny", "dtype": "float32", **options})


def stored(opened: Qwen3Collection) -> dict[int | str, tuple[list[float], dict[str, Any]]]:
    """Return every point: id to vector and payload."""
    points, _ = opened.client.scroll(opened.name, limit=10_000, with_vectors=True)
    return {point.id: (point.vector, point.payload) for point in points}


def fields(error: pytest.ExceptionInfo[ContractMismatchError]) -> list[str]:
    return [field for field, _, _ in error.value.differences]


# --- opening -------------------------------------------------------------------------------------


def test_a_new_collection_fits_the_model(client: QdrantClient, tiny: Qwen3Encoder) -> None:
    """It has the encoder's width, cosine distance, the contract and the options in its metadata."""
    for dimensions in (None, 64):
        opened = collection(client, f"texts {dimensions}", dimensions=dimensions)
        vectors = client.get_collection(opened.name).config.params.vectors
        assert isinstance(vectors, models.VectorParams)
        assert vectors.size == opened.encoder.dimensions == (dimensions or tiny.dimensions)
        assert vectors.distance == models.Distance.COSINE
        assert stored_contract(client, opened.name) == opened.encoder.contract
        assert stored_config(client, opened.name) == EncoderConfig(
            model="tiny", dtype="float32", dimensions=dimensions
        )


def test_a_second_client_reopens_the_folder(tmp_path: Path) -> None:
    """What one client wrote, another finds: points, contract and order."""
    with collection(str(tmp_path)) as first:
        ids = first.upsert(DOCUMENTS)
        found = [point.id for point in first.query(QUERY, limit=3)]
    with collection(str(tmp_path)) as second:
        assert len(second) == len(DOCUMENTS)
        assert [point.id for point in second.query(QUERY, limit=3)] == found
        assert found[0] == ids[0]


def test_a_client_that_was_given_stays_open(client: QdrantClient, tmp_path: Path) -> None:
    """Closing a collection closes only the client it made: the folder's lock is free then."""
    with collection(client) as opened:
        opened.upsert(DOCUMENTS)
    assert client.count("texts").count == len(DOCUMENTS)
    with pytest.raises(ConfigError):
        collection(str(tmp_path), dimensions=31)
    collection(str(tmp_path), dimensions=64).close()
    with pytest.raises(ContractMismatchError):
        collection(str(tmp_path))
    collection(str(tmp_path), dimensions=64).close()


def test_other_dimensions_are_refused_whatever_is_allowed(client: QdrantClient) -> None:
    """Vectors of another width cannot stand in the collection: no override can make them fit."""
    collection(client, dimensions=64)
    for allow_mismatch in (False, True):
        with pytest.raises(
            ContractMismatchError, match="dimensions: stored 64, yours 256"
        ) as error:
            collection(client, allow_mismatch=allow_mismatch)
        assert fields(error) == ["dimensions"]


def test_other_weights_are_refused(client: QdrantClient, small: Qwen3Encoder) -> None:
    """Two models of one width are told apart by their contracts; the override opens it."""
    made = collection(client)
    assert made.encoder.dimensions == small.dimensions
    with pytest.raises(ContractMismatchError, match="stored: tiny, yours: checkpoint") as error:
        Qwen3Collection(client, "texts", encoder=small)
    assert fields(error) == ["revision"]
    assert "allow_mismatch=True" in str(error.value)
    Qwen3Collection(client, "texts", encoder=small, allow_mismatch=True).upsert(DOCUMENTS)
    assert len(made) == len(DOCUMENTS)


def test_a_soft_difference_only_warns(
    client: QdrantClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Made in bfloat16 on a GPU, opened in float32 on a CPU: noted, never refused."""
    name = f"soft {uuid.uuid4()}"
    collection(client, name, dtype="bfloat16", instruction="Find the law")
    assert caplog.messages == []
    collection(client, name)
    assert len(caplog.messages) == 1
    assert all(word in caplog.text for word in (name, "dtype", "bfloat16", "Find the law"))


def test_a_collection_without_a_contract_is_refused(client: QdrantClient) -> None:
    """Nobody knows whose vectors it holds: the caller may say so, then it opens."""
    config = models.VectorParams(size=256, distance=models.Distance.COSINE)
    client.create_collection("texts", vectors_config=config)
    with pytest.raises(ContractMismatchError, match="holds no contract") as error:
        collection(client)
    assert fields(error) == ["contract"]
    opened = collection(client, allow_mismatch=True)
    opened.upsert(DOCUMENTS)
    assert opened.query(QUERY)[0].payload == {"document": DOCUMENTS[0]}


def test_a_collection_of_another_shape_is_refused(client: QdrantClient) -> None:
    """Another distance, or named vectors: an error that says so, never a wrong score."""
    config = models.VectorParams(size=256, distance=models.Distance.EUCLID)
    client.create_collection("euclid", vectors_config=config)
    client.create_collection("named", vectors_config={"body": config})
    with pytest.raises(ContractMismatchError, match="Euclid") as error:
        collection(client, "euclid", allow_mismatch=True)
    assert fields(error) == ["distance"]
    with pytest.raises(ContractMismatchError, match=r"named vectors .*body"):
        collection(client, "named", allow_mismatch=True)


def test_options_are_checked_before_anything_is_made(
    client: QdrantClient, tiny: Qwen3Encoder
) -> None:
    """Unknown and contradicting options fail and leave no collection behind."""
    with pytest.raises(ConfigError, match="either encoder or options"):
        Qwen3Collection(client, "texts", encoder=tiny, dimensions=64)
    with pytest.raises(ConfigError, match="either encoder or options"):
        Qwen3Collection(client, "texts", encoder=tiny, model="tiny")
    with pytest.raises(ConfigError, match="did you mean 'dimensions'"):
        collection(client, dimension=64)
    assert Qwen3Collection(client, "texts", encoder=tiny).encoder is tiny
    assert collection(client, "others").encoder is tiny
    assert {one.name for one in client.get_collections().collections} == {"texts", "others"}


# --- writing -------------------------------------------------------------------------------------


def test_writing_again_changes_nothing(client: QdrantClient) -> None:
    """Without ids a document has always the same one: a repeated call leaves every point as is."""
    opened = collection(client)
    ids = opened.upsert(DOCUMENTS)
    before = stored(opened)
    assert opened.upsert(DOCUMENTS) == ids
    after = stored(opened)
    assert {one: after[one][1] for one in after} == {one: before[one][1] for one in before}
    # Not 0: qdrant's local mode makes unit vectors again when it overwrites a point.
    error = max(np.abs(np.subtract(after[one][0], before[one][0])).max() for one in ids)
    assert error < 1e-7, f"vectors differ by {error}"
    assert opened.upsert(DOCUMENTS[::-1]) == ids[::-1]
    assert stored(opened).keys() == before.keys()
    assert collection(client, "elsewhere").upsert(DOCUMENTS) == ids


def test_equal_documents_of_one_call_stay_apart(client: QdrantClient) -> None:
    """Two payloads of one text are two points, the same two in every call."""
    opened = collection(client)
    documents, payloads = [DOCUMENTS[0]] * 2 + DOCUMENTS, [{"n": n} for n in range(5)]
    ids = opened.upsert(documents, payloads=payloads)
    assert len(set(ids)) == len(opened) == 5
    assert opened.upsert(documents, payloads=payloads) == ids
    assert len(opened) == 5
    kept = stored(opened)
    assert [kept[one][1]["n"] for one in ids] == [0, 1, 2, 3, 4]


def test_ids_of_every_kind(client: QdrantClient) -> None:
    """Ints and UUIDs stay what they are; any other string becomes a UUID, always the same one."""
    opened = collection(client)
    given = uuid.uuid4()
    first = opened.upsert([*DOCUMENTS, "four", "five"], ids=[7, given, "my id", np.int64(8), 0])
    assert first[0] == 7
    assert first[1] == str(given)
    assert uuid.UUID(str(first[2]))
    assert first[3:] == [8, 0]
    assert {type(one) for one in first} == {int, str}
    again = opened.upsert(["other", "texts", "here"], ids=["my id", given.hex.upper(), 7])
    assert again == [first[2], first[1], 7]
    assert len(opened) == 5
    assert stored(opened)[first[2]][1] == {"document": "other"}


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([1, 2, 1], "more than once"),
        (["a", "b", "a"], "more than once"),
        ([1, 2], "2 ids for 3 documents"),
        ([1, 2, 3, 4], "4 ids for 3 documents"),
        ([1, -2, 3], r"ids\[1\] is -2"),
        ([1, 2, True], r"ids\[2\] is True"),
        ([1.0, 2, 3], r"ids\[0\] is 1.0"),
        ([1, "", 3], r"ids\[1\] is ''"),
        ([1, None, 3], r"ids\[1\] is None"),
        ([1, 2**64, 3], r"ids\[1\] is 18446744073709551616"),
        ("abc", "ids"),
    ],
)
def test_ids_that_do_not_fit_are_refused_before_anything_is_written(
    client: QdrantClient, ids: Any, says: str
) -> None:
    """The error names the id; nothing is encoded and nothing is in the collection."""
    opened = collection(client)
    num_texts = opened.encoder.stats().texts
    with pytest.raises((InputError, TypeError), match=says):
        opened.upsert(DOCUMENTS, ids=ids)
    assert len(opened) == 0
    assert opened.encoder.stats().texts == num_texts


def test_one_id_in_two_spellings_is_a_repeated_id(client: QdrantClient) -> None:
    """A UUID and its text, a number and numpy's: the second would overwrite the first."""
    opened, given = collection(client), uuid.uuid4()
    for ids in ([given, str(given)], [str(given), given.hex], [5, np.int64(5)]):
        with pytest.raises(InputError, match="more than once"):
            opened.upsert(DOCUMENTS[:2], ids=ids)
    assert len(opened) == 0


def test_payloads_keep_the_document_and_what_was_given(client: QdrantClient) -> None:
    """The text stands under "document" beside the caller's fields; no dict given is changed."""
    opened = collection(client)
    payloads = [{"n": 1, "tags": ["a"]}, {"n": 2}, {"document": DOCUMENTS[2]}]
    ids = opened.upsert(DOCUMENTS, payloads=payloads)
    kept = stored(opened)
    assert [kept[one][1] for one in ids] == [
        {"n": 1, "tags": ["a"], "document": DOCUMENTS[0]},
        {"n": 2, "document": DOCUMENTS[1]},
        {"document": DOCUMENTS[2]},
    ]
    assert payloads == [{"n": 1, "tags": ["a"]}, {"n": 2}, {"document": DOCUMENTS[2]}]


def test_payloads_that_do_not_fit_are_refused_before_anything_is_written(
    client: QdrantClient,
) -> None:
    """Another text under "document", or too few payloads: an error, and an empty collection."""
    opened = collection(client)
    with pytest.raises(InputError, match=r"payloads\[1\]") as error:
        opened.upsert(DOCUMENTS, payloads=[{}, {"document": "another"}, {}])
    assert error.value.index == 1
    with pytest.raises(InputError, match="2 payloads for 3 documents"):
        opened.upsert(DOCUMENTS, payloads=[{}, {}])
    assert len(opened) == 0


def test_bad_documents_are_refused_before_anything_is_written(client: QdrantClient) -> None:
    """Each gets the encoder's own error; no document at all is no error."""
    opened = collection(client)
    for bad in ("", " \n", None, 7, "\ud800"):
        with pytest.raises(InputError):
            opened.upsert([*DOCUMENTS, bad])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="is a str"):
        opened.upsert("a text")
    assert len(opened) == 0
    assert opened.upsert([]) == []
    assert opened.upsert([], ids=[], payloads=[]) == []
    assert opened.upsert(DOCUMENTS)
    assert len(opened) == len(DOCUMENTS)


def test_a_bad_document_of_a_later_window_leaves_only_whole_windows(client: QdrantClient) -> None:
    """Its index is that of the whole list, and a second call without it adds what is missing."""
    opened = collection(client, dimensions=32)
    documents = [f"text {i}" for i in range(WINDOW + 3)]
    with pytest.raises(InputError) as error:
        opened.upsert([*documents, ""])
    assert error.value.index == len(documents)
    assert len(opened) == WINDOW
    opened.upsert(documents)
    assert len(opened) == len(documents)


def test_vectors_stand_in_the_order_of_the_documents(
    client: QdrantClient, tiny: Qwen3Encoder
) -> None:
    """Every point holds the row of its own document, over several windows of mixed lengths."""
    opened = collection(client)
    documents = [f"number {i} " + "and so on " * (i * 7 % 13) for i in range(WINDOW * 2 + 5)]
    opened.upsert(documents, ids=range(len(documents)))
    kept = stored(opened)
    assert [kept[i][1]["document"] for i in range(len(documents))] == documents
    rows = np.array([kept[i][0] for i in range(len(documents))])
    errors = np.abs(rows - tiny.encode_documents(documents)).max(axis=1)
    assert errors.max() < 1e-5, f"row {errors.argmax()} differs by {errors.max()}"


# --- searching -----------------------------------------------------------------------------------


def test_query_finds_by_the_encoders_cosines(client: QdrantClient, tiny: Qwen3Encoder) -> None:
    """Best first, `limit` of them, each score the cosine of query and document."""
    opened = collection(client)
    opened.upsert(DOCUMENTS, ids=[0, 1, 2])
    scores = tiny.encode_documents(DOCUMENTS) @ tiny.encode_queries([QUERY])[0]
    found = opened.query(QUERY, limit=3)
    assert [point.id for point in found] == np.argsort(-scores).tolist()
    error = max(abs(point.score - scores[point.id]) for point in found)
    assert error < 1e-6, f"scores differ by {error}"
    assert [point.id for point in opened.query(QUERY, limit=1)] == [found[0].id]
    assert found[0].payload == {"document": DOCUMENTS[int(found[0].id)]}
    assert [point.score for point in opened.nearest(tiny.encode_queries([QUERY])[0])] == [
        point.score for point in found
    ]


def test_queries_are_not_embedded_as_documents(client: QdrantClient) -> None:
    """A text asked for itself scores below 1, as it is read behind the instruction."""
    opened = collection(client)
    opened.upsert([QUERY])
    score = opened.query(QUERY)[0].score
    assert score < 1 - 1e-3, f"score {score}"
    other = opened.query(QUERY, instruction="Find a law that this sentence breaks")[0].score
    assert abs(other - score) > 1e-4, f"scores {score} and {other} under two instructions"


async def test_aquery_finds_what_query_finds(client: QdrantClient) -> None:
    """Awaiting gives the same points with the same scores, under filter and instruction too."""
    opened = collection(client)
    opened.upsert(DOCUMENTS, payloads=[{"n": 0}, {"n": 1}, {"n": 2}])
    condition = models.FieldCondition(key="n", range=models.Range(gte=1))
    cases: list[dict[str, Any]] = [
        {},
        {"limit": 2},
        {"instruction": "Find a law"},
        {"query_filter": models.Filter(must=[condition])},
    ]
    for options in cases:
        assert await opened.aquery(QUERY, **options) == opened.query(QUERY, **options)


def test_a_filter_leaves_out_what_it_excludes(client: QdrantClient) -> None:
    """Only points that meet the filter are found, though others are nearer."""
    opened = collection(client)
    opened.upsert(DOCUMENTS, payloads=[{"language": "en"}, {"language": "en"}, {"language": "zh"}])
    condition = models.FieldCondition(key="language", match=models.MatchValue(value="zh"))
    found = opened.query(QUERY, query_filter=models.Filter(must=[condition]))
    assert [point.payload for point in found] == [{"language": "zh", "document": DOCUMENTS[2]}]


async def test_the_event_loop_runs_while_the_device_works(client: QdrantClient) -> None:
    """A coroutine of the same loop opens the device's gate: it could not if `aquery` blocked."""
    with spied_encoder() as spied:
        opened = Qwen3Collection(client, "texts", encoder=spied.encoder)
        opened.upsert(DOCUMENTS)
        spied.spy.gate.clear()
        query = asyncio.create_task(opened.aquery(QUERY))
        prompt = f"Instruct: {spied.encoder.config.instruction}\nQuery:"
        assert await asyncio.to_thread(spied.spy.wait_for, spied.ids(prompt + QUERY))
        assert not query.done()
        spied.spy.gate.set()
        assert len(await query) == len(DOCUMENTS)


# --- over gRPC -----------------------------------------------------------------------------------


def test_grpc_carries_exactly_the_rows(tiny: Qwen3Encoder) -> None:
    """What arrives is what the encoder gave, bit for bit and in order; uploads are waited for."""
    with fake_qdrant() as (client, fake):
        opened = Qwen3Collection(client, "texts", encoder=tiny)
        ids = opened.upsert(DOCUMENTS, payloads=[{"n": n} for n in range(3)])
        assert fake.ids == ids
        assert (fake.vectors == tiny.encode_documents(DOCUMENTS)).all()
        assert fake.waits == [True]
        payloads = [dict(point.payload) for point in fake.points]
        assert [one["document"].string_value for one in payloads] == DOCUMENTS
        assert [one["n"].integer_value for one in payloads] == [0, 1, 2]


def test_writing_again_sends_the_same_points(tiny: Qwen3Encoder) -> None:
    """Ids, payloads and vectors of a repeated call are the same, to the last bit."""
    with fake_qdrant() as (client, fake):
        opened = Qwen3Collection(client, "texts", encoder=tiny)
        opened.upsert(DOCUMENTS)
        opened.upsert(DOCUMENTS)
        assert fake.points[:3] == fake.points[3:]


def test_grpc_keeps_the_contract(tiny: Qwen3Encoder) -> None:
    """The contract goes to the server and is judged when the collection is opened again."""
    with fake_qdrant() as (client, _):
        collection(client)
        assert stored_contract(client, "texts") == tiny.contract
        assert stored_config(client, "texts") == tiny.config
        collection(client)
        with pytest.raises(ContractMismatchError, match="dimensions"):
            collection(client, dimensions=64)


def test_many_documents_arrive_in_requests_of_bounded_size(tiny: Qwen3Encoder) -> None:
    """Each document arrives once, in order, in requests far below Qdrant's limit of 32 MB."""
    documents = [f"text {i}" for i in range(WINDOW + 100)]
    with fake_qdrant() as (client, fake):
        opened = Qwen3Collection(client, "texts", encoder=tiny)
        ids = opened.upsert(documents)
        assert fake.ids == ids
        assert max(fake.request_sizes) <= 256
        error = np.abs(fake.vectors - tiny.encode_documents(documents)).max()
        assert error < 1e-5, f"vectors differ by {error}"


def test_the_next_window_is_encoded_while_one_is_uploaded() -> None:
    """The server answers an upload only when the model has begun to read the window after it."""
    windows = [[f"window {w} text {i}" for i in range(WINDOW)] for w in range(3)]
    overlapped: list[bool] = []
    with spied_encoder() as spied, fake_qdrant() as (client, fake):
        opened = Qwen3Collection(client, "texts", encoder=spied.encoder)

        def answer_when_the_next_window_runs() -> None:
            uploaded = (len(fake.points) - 1) // WINDOW
            if uploaded + 1 < len(windows):
                ids = [spied.ids(text) for text in windows[uploaded + 1]]
                overlapped.append(spied.spy.wait_for(*ids))

        fake.before_answer = answer_when_the_next_window_runs
        opened.upsert([text for window in windows for text in window])
        assert len(fake.points) == len(windows) * WINDOW
        assert len(overlapped) >= 2, f"{len(overlapped)} uploads had a window after them"
        assert all(overlapped), f"the next window began during these uploads: {overlapped}"


def test_no_more_than_two_windows_are_held() -> None:
    """While the first window is uploaded the second is encoded, and the third is not begun."""
    windows = [[f"window {w} text {i}" for i in range(WINDOW)] for w in range(4)]
    with spied_encoder() as spied, fake_qdrant() as (client, fake):
        opened = Qwen3Collection(client, "texts", encoder=spied.encoder)
        num_texts: list[int] = []
        fake.before_answer = lambda: num_texts.append(spied.encoder.stats().texts)
        opened.upsert([text for window in windows for text in window])
        ahead = max(
            texts - points
            for texts, points in zip(num_texts, arrivals(fake.request_sizes), strict=True)
        )
        assert ahead <= 2 * WINDOW, f"{ahead} documents were taken in ahead of their upload"


def arrivals(sizes: list[int]) -> list[int]:
    """Return how many points were there before each request."""
    return (np.cumsum(sizes) - sizes).tolist()


def test_a_failed_upload_is_the_callers_error(tiny: Qwen3Encoder) -> None:
    """An upload that the server refuses raises, asked once; the encoder serves the next call."""
    with fake_qdrant() as (client, fake):
        opened = Qwen3Collection(client, "texts", encoder=tiny)

        def refuse() -> None:
            raise RuntimeError("disk full")

        fake.before_answer = refuse
        with pytest.raises(IndexingError, match=r"'texts' failed \(upsert: .*disk full"):
            opened.upsert(DOCUMENTS)
        assert len(fake.request_sizes) == 1
        fake.before_answer = lambda: None
        assert len(opened.upsert(DOCUMENTS)) == len(DOCUMENTS)


@pytest.mark.parametrize("retry_after_s", [None, 1])
def test_a_server_at_its_limits_is_outlasted(tiny: Qwen3Encoder, retry_after_s: int | None) -> None:
    """A busy server gets the points once it takes them: each once, without a warning."""
    with fake_qdrant() as (client, fake):
        opened = Qwen3Collection(client, "texts", encoder=tiny)
        fake.faults = [Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_s)] * 2
        assert fake.ids == [] != opened.upsert(DOCUMENTS)
        assert (len(fake.ids), fake.faults) == (len(DOCUMENTS), [])


@pytest.mark.parametrize("retry_s", [0, 2])
def test_a_server_at_its_limits_for_good(tiny: Qwen3Encoder, retry_s: int) -> None:
    """A server that says "come back in a second" for ever is asked for `retry_s`, then named."""
    with fake_qdrant() as (client, fake):
        opened = Qwen3Collection(client, "texts", encoder=tiny, retry_s=retry_s)
        fake.faults = [Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, 1)] * 1000
        match = rf"'texts' did not recover in {retry_s} s \(upsert: ResourceExhausted"
        with pytest.raises(IndexingError, match=match):
            opened.upsert(DOCUMENTS)
        assert (len(fake.faults) < 999) == bool(retry_s)
        with pytest.raises(ConfigError, match="retry_s is -1"):
            Qwen3Collection(client, "texts", encoder=tiny, retry_s=-1)


def test_a_generator_of_documents_is_refused() -> None:
    """What can be read only once would be used up by its ids: nothing is written, an error is."""
    with Qwen3Collection(":memory:", "texts", model="tiny") as texts:
        with pytest.raises(TypeError, match="documents is a generator; pass a list of str"):
            texts.upsert(document for document in ["one", "two"])  # pyright: ignore
        assert len(texts) == 0


class TestStorage:
    """How vectors are kept: on a server as asked, in a folder as they are."""

    @pytest.mark.parametrize("storage", ["float16", "int8", "binary"])
    def test_a_server_is_told(self, storage: Storage, tiny: Qwen3Encoder) -> None:
        """The request that makes the collection carries the storage, and it is read back."""
        with fake_qdrant() as (client, _):
            Qwen3Collection(client, "notes", encoder=tiny, storage=storage)
            assert stored_storage(client, "notes") == storage
            vectors = client.get_collection("notes").config.params.vectors
            assert isinstance(vectors, models.VectorParams)
            assert bool(vectors.on_disk) == (storage != "float16"), "whole vectors, for rescoring"

    def test_a_folder_would_ignore_it(self, tmp_path: Path, tiny: Qwen3Encoder) -> None:
        """A local collection keeps float32: asking for less is an error that says so."""
        with pytest.raises(ConfigError, match="local Qdrant collection ignores"):
            Qwen3Collection(str(tmp_path / "q"), "notes", encoder=tiny, storage="int8")
        with pytest.raises(ConfigError, match="'float32', 'float16', 'int8', 'binary'"):
            Qwen3Collection(":memory:", "notes", encoder=tiny, storage="int4")  # type: ignore[arg-type]

    def test_recall_of_a_whole_comparison_is_one(self, tiny: Qwen3Encoder) -> None:
        """Local search compares every vector, so it loses nothing."""
        collection = Qwen3Collection(":memory:", "notes", encoder=tiny)
        collection.upsert([f"note {i}" for i in range(50)])
        assert collection.store.recall(limit=5, num_samples=20) == 1.0
