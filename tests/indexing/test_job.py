"""index_documents over real Chroma and Qdrant collections."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import chromadb
import numpy as np
import pytest

from qwen3_embedding_integrations import (
    ContractMismatchError,
    EncoderConfig,
    IndexingError,
    Qwen3Encoder,
    index_documents,
    shared_encoder,
)
from qwen3_embedding_integrations.chroma import ChromaStore, open_collection
from qwen3_embedding_integrations.documents import Document, Gone, Known, Unreadable
from qwen3_embedding_integrations.rows import Sink
from tests.stores import Counting, held_by, make_documents

# As in the README: the ids that users may rely on.
NAMESPACE = uuid.UUID("d0a1f5a4-6c1b-5d7e-9f43-0a8f2a6b7c55")


def test_rows_are_what_a_loop_would_write(sink: Sink, tiny: Qwen3Encoder) -> None:
    """Every document has one row: id by source and position, text, facts, the encoder's vector."""
    documents = [
        Document("Paris is in France.", "geo.txt", 0, "Europe", {"page": 3, "source": "mine"}),
        Document("Rome is in Italy.", "geo.txt", 1),
        Document("水在一百摄氏度沸腾。", "物理.md", 0, metadata={"ok": True, "x": 1.5}),
    ]
    report = index_documents(documents, tiny, sink)
    assert (report.added, report.written, report.failed) == (3, 3, 0)
    held = held_by(sink)
    expected = tiny.encode_documents([one.text for one in documents])
    for document, vector in zip(documents, expected, strict=True):
        row_id = str(uuid.uuid5(NAMESPACE, f"{document.source}\n{document.position}"))
        text, facts, stored = held.pop(row_id)
        assert text == document.text
        assert (facts["source"], facts["position"]) == (document.source, document.position)
        assert facts.get("title") == document.title
        assert len(facts["content_hash"]) == 32
        assert np.abs(stored - vector).max() < 1e-6
        if document.title:
            assert (facts["page"], facts["source_"]) == (3, "mine")
    assert not held


@pytest.mark.parametrize("has_journal", [False, True])
def test_a_second_run_encodes_and_writes_nothing(
    sink: Sink, encoder: Counting, tmp_path: Path, has_journal: bool
) -> None:
    """Unchanged documents are neither encoded nor written, with a journal or without."""
    journal = tmp_path / "journal" if has_journal else None
    documents = make_documents(1500)
    first = index_documents(documents, encoder, sink, journal=journal)
    assert (first.added, len(encoder.encoded), len(sink)) == (1500, 1500, 1500)
    second = index_documents(documents, encoder, sink, journal=journal)
    assert (second.unchanged, second.written, second.removed) == (1500, 0, 0)
    assert len(encoder.encoded) == 1500


def test_what_changed_is_replaced_and_what_is_gone_is_deleted(
    sink: Sink, encoder: Counting, tiny: Qwen3Encoder
) -> None:
    """Only changed rows are encoded; a shorter source loses its last rows; others stay."""
    index_documents(make_documents(40), encoder, sink)
    encoder.encoded.clear()
    documents = make_documents(40)
    documents[5] = Document("changed", documents[5].source, documents[5].position)
    documents[9] = Document(documents[9].text, "2.txt", 1, metadata={"page": 2})
    del documents[14:16]  # 3.txt: two pieces instead of four
    documents = [one for one in documents if one.source != "7.txt"]  # not in this run at all
    report = index_documents(documents, encoder, sink)
    assert sorted(encoder.encoded) == ["changed", "note 9 第9条"]
    assert (report.changed, report.removed, report.unchanged) == (2, 2, 32)
    held = {(f["source"], f["position"]): (t, f, v) for t, f, v in held_by(sink).values()}
    assert len(held) == 38
    assert held["1.txt", 1][0] == "changed"
    assert np.abs(held["1.txt", 1][2] - tiny.encode_documents(["changed"])[0]).max() < 1e-6
    assert held["2.txt", 1][1]["page"] == 2
    assert {("3.txt", 2), ("3.txt", 3)}.isdisjoint(held)
    assert ("7.txt", 0) in held, "a source that did not come stays, unless prune is asked for"

    pruned = index_documents(documents, encoder, sink, prune=True)
    assert (pruned.removed, pruned.written, len(sink)) == (4, 0, 34)
    assert len(encoder.encoded) == 2


def test_a_gap_does_not_hide_what_is_stale(sink: Sink, tiny: Qwen3Encoder) -> None:
    """Where a piece could not be encoded, those behind it go with a source that gets shorter."""
    documents = make_documents(10, per_source=10)
    documents[5] = Document(" ", "0.txt", 5)
    assert index_documents(documents, tiny, sink).failed == 1
    report = index_documents(documents[:5], tiny, sink)
    assert (report.unchanged, report.removed, len(sink)) == (5, 4, 5)


def test_rows_of_others_are_left_alone(sink: Sink, tiny: Qwen3Encoder) -> None:
    """Neither a run nor prune touches a row without a source."""
    vectors = tiny.encode_documents(["mine"])
    if isinstance(sink, ChromaStore):
        sink.collection.add(ids=["mine"], embeddings=vectors, documents=["mine"])
    else:
        sink.upload(vectors, ids=[7], payloads=[{"document": "mine"}])
    index_documents(make_documents(4), tiny, sink)
    report = index_documents([Known("other.txt", 0)], tiny, sink, prune=True)
    assert (report.removed, len(sink)) == (4, 1)
    assert [text for text, _, _ in held_by(sink).values()] == ["mine"]


def test_documents_that_come_twice(sink: Sink, encoder: Counting) -> None:
    """The same document again is joined; another text in its place is reported, the first kept."""
    documents = make_documents(600)
    twice = [*documents, *documents[:10], Document("other", "0.txt", 0)]
    report = index_documents(twice, encoder, sink)
    assert (report.added, report.repeated, report.failed) == (600, 10, 1)
    assert report.failures[0].name == "0.txt #0"
    assert "another text came before" in report.failures[0].reason
    assert len(encoder.encoded) == 600


def test_a_bad_document_harms_no_other(sink: Sink, tiny: Qwen3Encoder) -> None:
    """Blank, damaged and too long documents are named in the report; all others are written."""
    strict = shared_encoder(
        EncoderConfig(model="tiny", dtype="float32", max_length=32, on_too_long="error")
    )
    documents = make_documents(50)
    documents[3] = Document("  ", "bad.txt", 0)
    documents[20] = Document("half a pair \ud800", "bad.txt", 1)
    documents[49] = Document("long " * 100, "bad.txt", 2)
    report = index_documents(documents, strict, sink)
    assert (report.added, report.failed, len(sink)) == (47, 3, 47)
    reasons = {failure.name: failure.reason for failure in report.failures}
    assert set(reasons) == {"bad.txt #0", "bad.txt #1", "bad.txt #2"}
    assert "blank" in reasons["bad.txt #0"]
    assert "surrogate" in reasons["bad.txt #1"]
    assert reasons["bad.txt #2"].startswith("it has 102 tokens, max_length is 32")
    assert np.isfinite([v for _, _, v in held_by(sink).values()]).all()


def test_sources_that_cannot_be_read_keep_their_rows(sink: Sink, tiny: Qwen3Encoder) -> None:
    """Of an unreadable source nothing is deleted, of one that is gone everything."""
    index_documents(make_documents(12), tiny, sink)
    items = [
        make_documents(1)[0],  # 0.txt was read as far as its first piece
        Unreadable("0.txt", "damaged"),
        Known("1.txt", 4),
        Gone("2.txt"),
    ]
    report = index_documents(items, tiny, sink, prune=True)
    assert (report.unchanged, report.removed, report.failed) == (5, 4, 1)
    assert {f["source"] for _, f, _ in held_by(sink).values()} == {"0.txt", "1.txt"}
    assert len(sink) == 8


def test_an_endless_iterable_is_read_as_it_is_written(sink: Sink, tiny: Qwen3Encoder) -> None:
    """Only a few windows are read ahead of what is written."""
    num_read, most_ahead = 0, 0

    class Enough(Exception):
        pass

    def endless() -> Iterator[Document]:
        nonlocal num_read, most_ahead
        while True:
            yield Document(f"text {num_read}", f"{num_read}.txt", 0)
            num_read += 1
            most_ahead = max(most_ahead, num_read - len(sink))
            if num_read == 6000:
                raise Enough

    with pytest.raises(Enough):
        index_documents(endless(), tiny, sink)
    assert most_ahead <= 512 * 7, f"{most_ahead} documents were read ahead"
    assert len(sink) >= 6000 - 512 * 7


def test_a_collection_of_another_contract_is_refused(sink: Sink, tiny: Qwen3Encoder) -> None:
    """Vectors of another width are not written into a collection."""
    narrow = shared_encoder(EncoderConfig(model="tiny", dtype="float32", dimensions=64))
    with pytest.raises(ContractMismatchError, match="dimensions: stored 256, yours 64"):
        index_documents(make_documents(1), narrow, sink)
    assert len(sink) == 0


def test_more_rows_than_chroma_takes_at_once(tiny: Qwen3Encoder) -> None:
    """A job is split at the host's limit before anything is encoded."""
    client = chromadb.EphemeralClient()
    collection = open_collection(client, uuid.uuid4().hex, model="tiny", dtype="float32")
    store = ChromaStore(client, collection)
    assert index_documents(make_documents(6000), tiny, store).added == 6000
    assert len(store) == 6000 > store.max_rows


def test_other_threads_search_meanwhile(sink: Sink, tiny: Qwen3Encoder) -> None:
    """Searches go on while a job writes."""
    index_documents(make_documents(100), tiny, sink)
    vector = tiny.encode_documents(["note 7 第7条"])[0]
    stop, errors, num_searches = threading.Event(), [], 0

    def search() -> None:
        nonlocal num_searches
        while not stop.is_set():
            try:
                assert sink.nearest(vector, limit=1)[0].text == "note 7 第7条"  # type: ignore[attr-defined]
                num_searches += 1
            except Exception as error:
                errors.append(error)
                return

    thread = threading.Thread(target=search)
    thread.start()
    try:
        index_documents(make_documents(1000)[100:], tiny, sink)
    finally:
        stop.set()
        thread.join()
    assert not errors, errors
    assert num_searches > 0


class TestJournal:
    """The journal beside a collection."""

    def test_it_is_not_trusted_for_another_collection(
        self, tmp_path: Path, encoder: Counting
    ) -> None:
        """A collection deleted and made again under its name is filled again."""
        client = chromadb.PersistentClient(tmp_path / "store")
        journal = tmp_path / "journal"
        for _ in range(2):
            collection = open_collection(client, "notes", model="tiny", dtype="float32")
            store = ChromaStore(client, collection)
            report = index_documents(make_documents(50), encoder, store, journal=journal)
            assert (report.added, len(store)) == (50, 50)
            client.delete_collection("notes")

    def test_rows_the_store_lost_are_written_again(
        self, sink: Sink, encoder: Counting, tmp_path: Path
    ) -> None:
        """A store with fewer rows than the journal says is asked itself."""
        journal = tmp_path / "journal"
        index_documents(make_documents(50), encoder, sink, journal=journal)
        sink.delete([*held_by(sink)][:7])
        report = index_documents(make_documents(50), encoder, sink, journal=journal)
        assert (report.added, report.unchanged, len(sink)) == (7, 43, 50)

    @pytest.mark.parametrize("content", [b"not a database at all" * 100, b""])
    def test_a_damaged_one(
        self, tmp_path: Path, sink: Sink, tiny: Qwen3Encoder, content: bytes
    ) -> None:
        """A file that is no database is refused with what to do; an empty one is a new journal."""
        journal = tmp_path / "journal"
        journal.write_bytes(content)
        if content:
            with pytest.raises(IndexingError, match="delete it"):
                index_documents(make_documents(1), tiny, sink, journal=journal)
            assert journal.read_bytes() == content
        else:
            assert index_documents(make_documents(1), tiny, sink, journal=journal).added == 1

    def test_another_programs_database(
        self, tmp_path: Path, sink: Sink, tiny: Qwen3Encoder
    ) -> None:
        """A database of another program is not written to."""
        import sqlite3

        journal = tmp_path / "theirs.db"
        with sqlite3.connect(journal) as theirs:
            theirs.execute("CREATE TABLE facts (theirs)")
        theirs.close()
        before = hashlib.sha256(journal.read_bytes()).hexdigest()
        with pytest.raises(IndexingError, match="no journal"):
            index_documents(make_documents(1), tiny, sink, journal=journal)
        assert hashlib.sha256(journal.read_bytes()).hexdigest() == before

    def test_two_jobs_at_once(self, tmp_path: Path, sink: Sink, tiny: Qwen3Encoder) -> None:
        """A second job with the same journal is refused while the first one runs."""
        journal = tmp_path / "journal"

        def documents() -> Iterator[Document]:
            with pytest.raises(IndexingError, match="wait for the other job"):
                index_documents(make_documents(1), tiny, sink, journal=journal)
            yield from make_documents(3)

        assert index_documents(documents(), tiny, sink, journal=journal).added == 3
