"""A collection rebuilt beside the old one and swapped, over real Chroma and Qdrant collections."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from typer.testing import CliRunner

from qwen3_embedding_integrations import (
    ConfigError,
    ContractMismatchError,
    EncoderConfig,
    IndexingError,
    InputError,
    Qwen3Encoder,
    index_documents,
    shared_encoder,
)
from qwen3_embedding_integrations.cli import app
from qwen3_embedding_integrations.indexing import rebuild
from qwen3_embedding_integrations.qdrant import QdrantStore, Qwen3Collection, current_name
from qwen3_embedding_integrations.stores import make_current, open_store, reindex
from tests.stores import Counting, held_by, make_documents

Rows = dict[str, tuple[str, dict[str, Any], np.ndarray]]


@pytest.fixture(params=["chroma", "qdrant"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str, str]:
    """Return store, location and name of a collection of 120 rows."""
    where = (request.param, str(tmp_path / "store"), "notes")
    store, encoder = open_store(*where, {"model": "tiny", "dtype": "float32"}, create=True)
    index_documents(make_documents(120), encoder, store)
    store.close()
    return where


def rows_in(place: tuple[str, str, str]) -> Rows:
    store, _ = open_store(*place, {}, create=False)
    try:
        return held_by(store)
    finally:
        store.close()


def test_stored_vectors_are_cut_without_a_model(place: tuple[str, str, str]) -> None:
    """Fewer dimensions: every row is kept, its vector cut and made a unit vector; no torch."""
    before = rows_in(place)
    code = (
        "import sys\n"
        "from qwen3_embedding_integrations.stores import reindex\n"
        f"report = reindex(*{place!r}, dimensions=64)\n"
        "assert 'torch' not in sys.modules\n"
        "print(report.rows, report.encoded, report.old, report.new, report.agreement > 0.5)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "120 0 notes notes-v2 True\n", done.stderr
    after = rows_in(place)
    assert after.keys() == before.keys()
    for row_id, (text, facts, vector) in after.items():
        cut = before[row_id][2][:64]
        assert (text, facts) == before[row_id][:2]
        assert np.abs(vector - cut / np.linalg.norm(cut)).max() < 1e-6


def test_another_model_and_back(place: tuple[str, str, str], small: Qwen3Encoder) -> None:
    """The texts are encoded by the other model; the old version is kept and can come back."""
    before = rows_in(place)
    report = reindex(*place, model=small.config.model, dtype="float32")
    assert (report.rows, report.encoded, report.new) == (120, 120, "notes-v2")
    after = rows_in(place)
    ids = list(after)
    expected = small.encode_documents([before[one][0] for one in ids])
    assert np.abs(np.stack([after[one][2] for one in ids]) - expected).max() < 1e-5
    with pytest.raises(ContractMismatchError):
        open_store(*place, {"model": "tiny"}, create=False)

    make_current(*place, "notes")
    assert np.abs(rows_in(place)[ids[0]][2] - before[ids[0]][2]).max() == 0
    again = reindex(*place, model=small.config.model)
    assert (again.encoded, again.new) == (0, "notes-v2"), "what was built is not built again"
    third = reindex(*place, model="tiny", dimensions=32)
    assert third.new == "notes-v3"
    assert len(rows_in(place)) == 120


def test_nothing_to_change_is_an_error(place: tuple[str, str, str]) -> None:
    """The same options, or another instruction alone, need no new index."""
    for options in ({"dimensions": 256}, {"model": "tiny"}, {"instruction": "Find a law"}):
        with pytest.raises(InputError, match="made under these options already"):
            reindex(*place, **options)


def test_a_rebuild_that_died_goes_on(
    place: tuple[str, str, str], tmp_path: Path, tiny: Qwen3Encoder
) -> None:
    """Rows that were written before are not encoded again, and the old collection is untouched."""
    source, _ = open_store(*place, {}, create=False)
    target, encoder = open_store(
        place[0], str(tmp_path / "new"), "notes", {"model": "tiny", "dimensions": 128}, create=True
    )

    index_documents(make_documents(70), encoder, target)
    counting = Counting(encoder)
    report = rebuild(source, target, encoder.contract, counting)
    assert (report.rows, report.encoded) == (120, 50)
    assert len(counting.encoded) == 50 + 100, "fifty rows and a hundred probes"
    source.close()
    target.close()


def test_rows_that_come_and_go_meanwhile(place: tuple[str, str, str], tmp_path: Path) -> None:
    """What is written to the old collection during a rebuild is in the new one at its end."""
    source, old_encoder = open_store(*place, {}, create=False)
    target, encoder = open_store(
        place[0], str(tmp_path / "new"), "notes", {"model": "tiny", "dimensions": 128}, create=True
    )
    index_documents(make_documents(8, word="stale"), encoder, target)  # of an earlier attempt

    class Meanwhile(Counting):
        def encode_documents(self, documents: Any) -> Any:
            if not self.encoded:
                index_documents(make_documents(130)[116:], old_encoder, source)
                source.delete([*held_by(source)][:3])
            return super().encode_documents(documents)

    rebuild(source, target, encoder.contract, Meanwhile(encoder))
    held = held_by(target)
    assert held.keys() == held_by(source).keys()
    assert len(held) == 127
    assert not any(text.startswith("stale") for text, _, _ in held.values())
    source.close()
    target.close()


def test_wrong_vectors_are_found_before_the_swap(
    place: tuple[str, str, str], tmp_path: Path
) -> None:
    """An encoder that gives other vectors at each call does not pass the check."""
    source, _ = open_store(*place, {}, create=False)
    target, encoder = open_store(
        place[0], str(tmp_path / "new"), "notes", {"model": "tiny", "dimensions": 128}, create=True
    )
    rng = np.random.default_rng(0)

    class Random(Counting):
        def encode_documents(self, documents: Any) -> Any:
            vectors = rng.normal(size=(len(documents), 128)).astype(np.float32)
            return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    with pytest.raises(IndexingError, match="the old collection stays current"):
        rebuild(source, target, encoder.contract, Random(encoder))
    source.close()
    target.close()


def test_an_alias_is_switched(tmp_path: Path, tiny: Qwen3Encoder) -> None:
    """Where the name is a Qdrant alias, the alias is switched; what is open stays where it was."""
    location = str(tmp_path / "store")
    with Qwen3Collection(location, "notes-2025", encoder=tiny) as made:
        index_documents(make_documents(20), tiny, made.store)
        create = models.CreateAlias(collection_name="notes-2025", alias_name="notes")
        made.client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])
    report = reindex("qdrant", location, "notes", dimensions=32)
    assert (report.old, report.new) == ("notes-2025", "notes-v2")
    client = QdrantClient(path=location)
    assert current_name(client, "notes") == "notes-v2"
    assert client.get_collection("notes").config.params.vectors.size == 32
    assert len(QdrantStore(client, "notes-2025")) == 20
    client.close()


class InMemory:
    """A collection of one process, opened as often as one likes."""

    def __init__(self, kind: str) -> None:
        self.module: Any = import_module(f"qwen3_embedding_integrations.{kind}")
        self.is_chroma = kind == "chroma"
        self.client: Any = self.module.connect(":memory:")
        self.name = uuid.uuid4().hex

    def open(self, dimensions: int | None) -> tuple[Any, Any]:
        options: Any = {"model": "tiny", "dtype": "float32", "dimensions": dimensions}
        if self.is_chroma:
            collection = self.module.open_collection(self.client, self.name, **options)
            encoder = self.module.Qwen3EmbeddingFunction(**options).encoder
            return self.module.ChromaStore(self.client, collection), encoder
        made = Qwen3Collection(self.client, self.name, **options)
        return made.store, made.encoder

    def open_current(self) -> tuple[Any, Any]:
        """Open as the command line does: with the options of the version that is current."""
        if self.is_chroma:
            found = self.module.find_collection(self.client, self.name)
            return self.open(self.module.stored_config(found).dimensions)
        current = current_name(self.client, self.name)
        return self.open(self.module.stored_config(self.client, current).dimensions)

    def swap(self, source: Any, dimensions: int) -> None:
        config = EncoderConfig(model="tiny", dtype="float32", dimensions=dimensions)
        encoder = shared_encoder(config)
        made = self.module.make_version(self.client, self.name, encoder.contract, config)
        if self.is_chroma:
            target, version = self.module.ChromaStore(self.client, made), made.name
        else:
            target, version = QdrantStore(self.client, made), made
        rebuild(source, target, encoder.contract, encoder)
        self.module.make_current(self.client, self.name, version)


@pytest.mark.parametrize("kind", ["chroma", "qdrant"])
def test_eight_threads_search_through_a_swap(kind: str) -> None:
    """No search fails, and none compares a query of one version with rows of the other."""
    place, documents = InMemory(kind), make_documents(60)
    source, encoder = place.open(None)
    index_documents(documents, encoder, source)
    stop, errors, widths = threading.Event(), list[str](), set[int]()

    def search(number: int) -> None:
        text = documents[number * 7].text
        held = place.open_current()
        try:
            while not stop.is_set():
                # Some keep what they opened, some open anew each time.
                store, own = held if number % 2 else place.open_current()
                hit = store.nearest(own.encode_documents([text])[0], limit=1)[0]
                assert (hit.text, hit.score > 0.999) == (text, True)
                widths.add(own.dimensions)
        except Exception as error:
            errors.append(repr(error))

    threads = [threading.Thread(target=search, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    place.swap(source, 64)
    for _ in range(200):
        if {256, 64} <= widths or errors:
            break
        stop.wait(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert widths == {256, 64}, "both versions were searched"


def test_the_verb(place: tuple[str, str, str]) -> None:
    """`reindex` says what it did; `--back-to` undoes it; nothing to do is an error."""
    store, location, _ = place
    where = ["--store", store, "--location", location, "--collection", "notes"]
    done = CliRunner().invoke(app, ["reindex", *where, "--dimensions", "32"])
    assert done.exit_code == 0, done.output
    assert "notes-v2 is current: 120 rows, stored vectors cut" in done.output
    found = CliRunner().invoke(app, ["search", "note 7", *where])
    assert found.exit_code == 0, found.output
    shown = CliRunner().invoke(app, ["contract", "show", *where])
    assert '"dimensions": 32' in shown.output
    assert CliRunner().invoke(app, ["reindex", *where, "--back-to", "notes"]).exit_code == 0
    shown = CliRunner().invoke(app, ["contract", "show", *where])
    assert '"dimensions": 256' in shown.output
    assert CliRunner().invoke(app, ["reindex", *where]).exit_code != 0


def test_storage_that_would_be_ignored_is_refused(place: tuple[str, str, str]) -> None:
    """Neither Chroma nor a local Qdrant keeps less than float32; nothing is made then."""
    with pytest.raises(ConfigError, match="float32"):
        reindex(*place, storage="int8")
    assert len(rows_in(place)) == 120
    with pytest.raises(InputError, match="already"):
        reindex(*place, storage="float32")
