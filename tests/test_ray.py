"""A Ray cluster of two nodes on this machine: the rows are those of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from qwen3_embedding_integrations import (
    ConfigError,
    ContractMismatchError,
    EncoderConfig,
    IndexingError,
    InputError,
    KeywordIndex,
    Qwen3Encoder,
    index_documents,
    ray_data,
    shared_encoder,
)
from qwen3_embedding_integrations.chroma import ChromaStore, connect, find_collection
from qwen3_embedding_integrations.cli import app
from qwen3_embedding_integrations.documents import Gone, find_files, read_documents
from qwen3_embedding_integrations.indexing import IndexReport, ReadOptions, index_folders
from qwen3_embedding_integrations.parquet import (
    UNFINISHED,
    WHOLE,
    Embedded,
    EmbeddedWriter,
    embedded_schema,
    read_table,
    rows_of,
    table_of,
    vector_column,
    without_known,
    write_rows,
)
from qwen3_embedding_integrations.rows import row_of
from qwen3_embedding_integrations.stores import OpenStore, keywords_path
from tests.servers import ChromaServer, Proxy, QdrantServer, serving
from tests.stores import folder_in_memory, held_by, make_documents, open_sink

ray = pytest.importorskip("ray")
pytestmark = [
    # Ray 2.60's own DataContext sets its own deprecated fields when it is made.
    pytest.mark.filterwarnings("ignore:.use_[a-z_0-9]+. is deprecated:DeprecationWarning"),
    # A pool of two actors may have one batch: that is what a small dataset is.
    pytest.mark.filterwarnings("ignore:The minimum number of concurrent actors:UserWarning"),
    # Ray leaves sockets and log files of ended processes to the collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]
TINY = {"model": "tiny", "dtype": "float32"}
CONFIG = EncoderConfig(model="tiny", dtype="float32")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Yield the address of a head and another node, with two cores each, of which this is joined.

    Their workers find the tests' modules as this process does.
    """
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = {"num_cpus": 2, "object_store_memory": 150 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    made.add_node(**node)
    ray_data.connect(made.address)
    try:
        yield made.address
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture(scope="module")
def chroma() -> Iterator[int]:
    """Yield the port of a real Chroma server."""
    with folder_in_memory() as folder, ChromaServer(folder) as server:
        yield server.port


@pytest.fixture
def actors(cluster: str) -> dict[str, Any]:
    """Two actors, small batches."""
    return ray_data.actor_options(CONFIG, num_actors=2, batch_rows=128)


def write_files(folder: Path, num: int) -> None:
    """Write JSONL and Parquet files of 100 rows each, and files of other kinds."""
    folder.mkdir()
    for start in range(0, num, 100):
        rows = [{"text": f"note {i} 第{i}条", "year": i} for i in range(start, start + 100)]
        if start % 200:
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{start}.parquet")
        else:
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{start}.jsonl").write_text(lines, encoding="utf-8")
    (folder / "law.txt").write_text("出租人出卖租赁房屋的，承租人享有优先购买的权利。" * 60)
    (folder / "damaged.pdf").write_bytes(b"%PDF-1.7 and nothing more")


def index_here(folder: Path, tiny: Qwen3Encoder, place: Path) -> dict[str, Any]:
    """Return what one process makes of a folder."""
    with open_sink("chroma", place, tiny) as sink:
        index_folders([folder], tiny, sink, options=ReadOptions(tiny.count_tokens, 32))
        return held_by(sink)


def require_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Fail unless ids, texts, facts and vectors are the same."""
    assert found.keys() == wanted.keys()
    assert [found[one][:2] for one in wanted] == [wanted[one][:2] for one in wanted]
    furthest = max(np.abs(found[one][2] - wanted[one][2]).max() for one in wanted)
    assert furthest <= 1e-6, f"vectors differ by {furthest:.2e}"


def actor_pids() -> list[int]:
    """Return the processes of this machine that are actors of a map."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::MapWorker"):
                found.append(int(path.parent.name))
        except OSError:  # it ended meanwhile
            continue
    return found


def test_a_killed_worker_loses_nothing_and_doubles_nothing(
    actors: dict[str, Any], chroma: int, tmp_path: Path, tiny: Qwen3Encoder
):
    """With an actor killed half-way the store holds one process's rows; then only changes cost."""
    folder = tmp_path / "files"
    write_files(folder, 1200)
    killed: list[int] = []

    def kill_one(report: IndexReport) -> None:
        if report.written > 500 and not killed:
            killed.append(report.written)
            os.kill(actor_pids()[0], signal.SIGKILL)

    with serving(Proxy(chroma, "cut", every=10**9)) as port:
        target = ray_data.server("chroma", f"http://127.0.0.1:{port}", "killed", **TINY)
        rows = ray_data.read_files([folder], CONFIG, max_tokens=32)
        report = ray_data.index_dataset(rows, target, actors=actors, on_progress=kill_one)
    assert killed, "no actor was killed"
    assert killed[0] < 1200, "an actor was killed when all was written"
    assert [name.rpartition("/")[2] for name, _ in report.failures] == ["damaged.pdf"]
    wanted = index_here(folder, tiny, tmp_path / "here")
    assert report.written + report.unchanged == len(wanted)
    client = connect(f"http://127.0.0.1:{chroma}")
    found = find_collection(client, "killed")
    assert found is not None
    require_same(held_by(ChromaStore(client, found)), wanted)

    (folder / "0.jsonl").write_text('{"text": "another note", "year": 0}\n', encoding="utf-8")
    proxy = Proxy(chroma, "cut", every=10**9)
    with serving(proxy) as port:
        target = ray_data.server("chroma", f"http://127.0.0.1:{port}", "killed", **TINY)
        again = ray_data.index_dataset(
            ray_data.read_files([folder], CONFIG, max_tokens=32), target, actors=actors
        )
    assert (again.added, again.changed, again.removed) == (0, 1, 99)
    assert again.unchanged == len(wanted) - 100
    assert proxy.num_writes == 1
    require_same(held_by(ChromaStore(client, found)), index_here(folder, tiny, tmp_path / "here2"))


def test_a_dataset_goes_to_qdrant_and_bad_rows_into_the_report(cluster: str):
    """Columns are text, facts and id of a row; a row without a text is named and stops nothing."""
    actors = ray_data.actor_options(CONFIG, num_actors=1, batch_rows=512)
    documents = make_documents(300)
    rows = [{"text": d.text, "source": d.source, "position": d.position} for d in documents]
    rows[5]["text"] = None
    rows[9]["text"] = " "
    rows[13]["source"] = None
    rows.append(dict(rows[0]))  # as before
    qdrant = QdrantServer()
    with serving(qdrant) as port:
        report = ray_data.index_dataset(
            ray.data.from_items(rows, override_num_blocks=1),
            ray_data.server("qdrant", f"http://127.0.0.1:{port}", "notes", **TINY),
            actors=actors,
        )
        good = [one for i, one in enumerate(documents) if i not in (5, 9, 13)]
        assert (report.added, report.failed, report.repeated) == (297, 3, 1)
        assert {name for name, _ in report.failures} == {"1.txt #1", "2.txt #1", "None #1"}
        points, _ = qdrant.client.scroll("notes", limit=1000, with_vectors=True)
        assert {str(point.id) for point in points} == {row_of(one).id for one in good}
        with pytest.raises(ContractMismatchError, match="dimensions: stored 256, yours 64"):
            ray_data.index_dataset(
                ray.data.from_items(rows),
                ray_data.server(
                    "qdrant", f"http://127.0.0.1:{port}", "notes", **TINY, dimensions=64
                ),
                actors=actors,
            )
    with pytest.raises(InputError, match="the dataset has no column source, only"):
        ray_data.index_dataset(ray.data.from_items([{"text": "a"}]), _open_tiny, actors=actors)
    qdrant.client.close()


WRITE = """
import sys
from qwen3_embedding_integrations import EncoderConfig, ray_data
address, corpus, out = sys.argv[1:]
config = EncoderConfig(model="tiny", dtype="float32")
ray_data.connect(address)
actors = ray_data.actor_options(config, num_actors=1, batch_rows=128)
dataset = ray_data.read_files([corpus], config, max_tokens=32)
ray_data.write_embedded(dataset, out, config, actors=actors)
"""


def start_and_kill(address: str, corpus: Path, out: Path) -> None:
    """Let a process write vectors, and kill it when its third file is there."""
    process = subprocess.Popen([sys.executable, "-c", WRITE, address, str(corpus), str(out)])
    try:
        while len([*out.glob("*.parquet")]) < 3:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()


def rows_in(folder: Path) -> dict[str, tuple[str, dict[str, Any], np.ndarray]]:
    """Return text, facts and vector of every row of a folder, by id; fail where one is twice."""
    tables = [read_table(pq.read_table(file)) for file in folder.glob("*.parquet")]
    rows = [row for table in tables for row in table.rows]
    found = {str(row.id): (row.text, row.facts, row.vector) for row in rows}
    assert len(found) == len(rows), "a row is there twice"
    return found


def test_a_killed_run_embeds_only_what_is_not_there(
    cluster: str, tmp_path: Path, tiny: Qwen3Encoder
):
    """After SIGKILL the same call embeds the rest and what has changed, and drops what is gone."""
    corpus, out = tmp_path / "files", tmp_path / "out"
    write_files(corpus, 1200)
    start_and_kill(cluster, corpus, out)
    with pytest.raises(InputError, match="was not written to its end"):
        Embedded.find(out)
    (out / UNFINISHED / "torn.parquet").write_bytes(b"PAR1 and no more")
    before = rows_in(out)

    (corpus / "0.jsonl").write_text('{"text": "another note", "year": 0}\n', encoding="utf-8")
    (corpus / "100.parquet").unlink()
    (corpus / "law.txt").write_text("")
    report = ray_data.write_embedded(
        ray_data.read_files([corpus], CONFIG, max_tokens=32),
        out,
        actors=ray_data.actor_options(CONFIG, num_actors=1, batch_rows=128),
        config=CONFIG,
    )
    wanted = index_here(corpus, tiny, tmp_path / "here")
    require_same(rows_in(out), wanted)
    tables = [read_table(pq.read_table(file)) for file in out.glob("*.parquet")]
    empty = Gone((corpus / "law.txt").as_posix())
    assert [table.items.count(empty) for table in tables if empty in table.items] == [1]
    stayed = [one for one in before if one in wanted and before[one][1] == wanted[one][1]]
    assert 0 < len(stayed) < len(wanted)
    assert report.added == len(wanted) - len(stayed)
    assert (report.unchanged, report.failed) == (len(stayed), 1)
    assert report.removed == len(before) - len(stayed)
    assert not (out / UNFINISHED).exists()
    assert Embedded.find(out) is not None


def write_here(rows: list[dict[str, Any]], folder: Path, tiny: Qwen3Encoder) -> int:
    """Bring a folder up to date as a worker and its driver do; return how many rows are new."""
    writer = EmbeddedWriter(folder, tiny.contract, CONFIG)
    new = without_known(rows_of(pa.Table.from_pylist(rows)), writer.known)
    writer.has_come[pc.list_flatten(new["kept"]).to_numpy()] = True
    new = new.filter(pc.is_valid(new["id"]))
    if len(new):
        write_rows(ray_data.Qwen3BatchEncoder(CONFIG)(new), writer.place, writer.schema)
    writer.finish()
    return len(new)


def test_loading_leaves_what_indexing_leaves(tmp_path: Path, tiny: Qwen3Encoder):
    """Sources that shrank lose the rows beyond; a piece that cannot be encoded hides none."""
    out = tmp_path / "out"
    old = make_documents(24, per_source=8)
    new = [one for one in old if one.position < (3, 8, 5)[int(one.source[0])]]
    new[2] = replace(new[2], text="changed")
    new[13] = replace(new[13], text=" ")  # the third of 2.txt
    with open_sink("qdrant", ":memory:", tiny) as one, open_sink("chroma", tmp_path, tiny) as other:
        for version, num_new in ((old, 24), (new, 2), (new, 1)):
            rows = [{"text": d.text, "source": d.source, "position": d.position} for d in version]
            assert write_here(rows, out, tiny) == num_new
            embedded = Embedded.find(out)
            assert embedded is not None
            report, wanted = embedded.load(one), index_documents(version, tiny, other)
            assert replace(report, failures=[]) == replace(wanted, failures=[])
            assert [f.name for f in report.failures] == [f.name for f in wanted.failures]
            require_same(held_by(one), held_by(other))
            in_files = {row_of(d).id for d in version if d.text != " "}
            assert rows_in(out).keys() == in_files
        assert report.unchanged == 15
        # A file that has become empty has no row to tell where it ends.
        writer = EmbeddedWriter(tmp_path / "ends", tiny.contract, CONFIG)
        end = table_of([(None, "", {"source": "1.txt", "position": 0}, None)])
        nothing = pa.nulls(1, writer.schema.field("vector").type)
        write_rows(end.append_column("vector", nothing), writer.place, writer.schema)
        writer.finish()
        embedded = Embedded.find(tmp_path / "ends")
        assert embedded is not None
        report, wanted = embedded.load(one), index_documents([Gone("1.txt")], tiny, other)
        assert report == wanted == IndexReport(removed=8)
        require_same(held_by(one), held_by(other))


def test_a_folder_goes_on_only_as_it_was_made(tmp_path: Path, tiny: Qwen3Encoder):
    """Another width is refused, and so is a folder of other things; what is left of a run ends."""
    out, other = tmp_path / "out", tmp_path / "other"
    rows = [{"text": d.text, "source": d.source, "position": d.position} for d in make_documents(8)]
    assert write_here(rows, out, tiny) == 8
    narrow = shared_encoder(EncoderConfig(model="tiny", dtype="float32", dimensions=64))
    with pytest.raises(ContractMismatchError, match="dimensions: stored 256, yours 64"):
        EmbeddedWriter(out, narrow.contract, CONFIG)
    assert Embedded.find(out) is not None, "a refusal has changed the folder"
    other.mkdir()
    _note(other)
    with pytest.raises(InputError, match="holds something else"):
        EmbeddedWriter(other, tiny.contract, CONFIG)

    (file,) = out.glob("*.parquet")
    written_ns = file.stat().st_mtime_ns
    killed = EmbeddedWriter(out, tiny.contract, CONFIG)
    assert write_here(rows, out, tiny) == 0
    with pytest.raises(IndexingError, match="another run"):
        write_rows(pq.read_table(file), killed.place, killed.schema)
    assert [*out.glob("*.parquet")] == [file]
    assert file.stat().st_mtime_ns == written_ns, "what has not changed was written again"


def _open_tiny() -> Any:
    return OpenStore(None, shared_encoder(CONFIG))  # never asked for a row


def test_a_corpus_is_embedded_once_and_loaded_without_a_model(
    cluster: str, tmp_path: Path, tiny: Qwen3Encoder
):
    """`--to parquet` by Ray, then `index` of that folder, is `index` of the files."""
    folder, out, place = tmp_path / "files", tmp_path / "out", tmp_path / "loaded"
    write_files(folder, 400)
    made = CliRunner().invoke(
        app,
        [
            *("index", str(folder), "--engine", "ray", "--address", cluster, "--actors", "1"),
            *("--to", "parquet", "--location", str(out), "--model", "tiny", "--dtype", "float32"),
            *("--max-tokens", "32"),
        ],
    )  # fmt: skip
    assert made.exit_code == 1, made.output  # of the damaged file
    assert "1 failed" in made.output
    files = [*out.glob("*.parquet")]
    schema = pq.read_schema(files[0])
    assert schema.field("vector").type == pa.list_(pa.float32(), 256)
    embedded = Embedded.find(out)
    assert embedded is not None
    assert embedded.contract == tiny.contract
    loaded = CliRunner().invoke(
        app, ["index", str(out), "--location", str(place), "--collection", "notes"]
    )
    assert loaded.exit_code == 1, loaded.output
    again = CliRunner().invoke(
        app, ["index", str(out), "--location", str(place), "--collection", "notes"]
    )
    assert "0 pieces added, 0 changed" in again.output
    with open_sink("chroma", place, tiny) as sink:
        require_same(held_by(sink), index_here(folder, tiny, tmp_path / "here"))
        words = keywords_path(str(place), "notes", None)
        assert words is not None
        with KeywordIndex(words) as keywords:
            assert len(keywords) == len(sink), "the local collection's keywords are others"
    for option in (["--prune"], ["--watch"], ["--max-tokens", "64"], ["--dimensions", "64"]):
        refused = CliRunner().invoke(app, ["index", str(out), "--location", str(place), *option])
        assert isinstance(refused.exception, ConfigError)
        assert "are made" in str(refused.exception)


def test_a_batch_gets_fixed_size_lists_of_float32(tiny: Qwen3Encoder):
    """Each text's vector is the encoder's; a row without one says why, and keeps its columns."""
    texts = ["a note", None, "  ", "另一条"]
    table = pa.table({"number": [1, 2, 3, 4], "text": texts})
    done = ray_data.Qwen3BatchEncoder(CONFIG)(table)
    assert done.column_names == ["number", "text", "error", "vector"]
    assert done.schema.field("vector").type == pa.list_(pa.float32(), 256)
    assert done["vector"].is_valid().to_pylist() == [True, False, False, True]
    wanted = tiny.encode_documents(["a note", "另一条"])
    got = done["vector"].combine_chunks().flatten().to_numpy().reshape(-1, 256)
    assert np.abs(got - wanted).max() <= 1e-6
    errors = done["error"].to_pylist()
    assert errors[0] is None
    assert errors[1] == "it is None, not a text"
    assert errors[2].startswith("it is blank")
    with pytest.raises(InputError, match="no column 'body'"):
        ray_data.Qwen3BatchEncoder(CONFIG, text_column="body")(table)


def test_vectors_are_not_copied_into_arrow():
    """The column of a batch in which every text has a vector is the encoder's own array."""
    vectors = np.ones((5, 64), np.float32)
    column = vector_column(vectors, np.ones(5, bool))
    assert np.shares_memory(column.flatten().to_numpy(), vectors)


def test_actors_get_what_their_device_takes(cluster: str):
    """A card where "cuda" is asked for, cores elsewhere; what Ray cannot give is refused."""
    cpu = ray_data.actor_options(CONFIG, num_cpus=2)
    assert (cpu["num_cpus"], cpu["compute"].max_size) == (2, 1)  # four cores, one kept free
    assert "num_gpus" not in cpu
    card = ray_data.actor_options(EncoderConfig(model="tiny", device="cuda"), num_actors=3)
    assert (card["num_gpus"], card["compute"].min_size, card["compute"].max_size) == (1, 3, 3)
    with pytest.raises(ConfigError, match="Ray gives each actor one card"):
        ray_data.actor_options(EncoderConfig(model="tiny", device="cuda:1"))
    with pytest.raises(ConfigError, match="num_actors is 0"):
        ray_data.actor_options(CONFIG, num_actors=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "ray"], "give the URL of a server"),
        (["--engine", "ray", "--prune"], "not with --engine ray"),
        (["--to", "parquet"], "are for --engine ray"),
    ],
)
def test_what_a_cluster_cannot_do_is_refused(arguments: list[str], message: str, tmp_path: Path):
    """Folders that workers would have to share, and a journal's options, are refused at once."""
    done = CliRunner().invoke(app, ["index", str(tmp_path), "--model", "tiny", *arguments])
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)


def test_loading_checks_the_contract_and_the_end(tmp_path: Path, tiny: Qwen3Encoder):
    """A half-written folder is refused, and so is a collection that was made otherwise."""
    documents = [*read_documents(find_files([_note(tmp_path)])[0], count_tokens=tiny.count_tokens)]
    rows = [row_of(one) for one in documents]
    table = table_of((str(row.id), row.text, row.facts, None) for row in rows)
    vectors = tiny.encode_documents([row.text for row in rows])
    schema = embedded_schema(tiny.contract, CONFIG)
    full = table.append_column("vector", vector_column(vectors, np.ones(len(rows), bool)))
    out = tmp_path / "out"
    out.mkdir()
    pq.write_table(full.cast(schema), out / "0.parquet")
    with pytest.raises(InputError, match="was not written to its end"):
        Embedded.find(out)
    (tmp_path / "0.parquet").write_bytes(b"damaged: a file to be reported, in a folder of others")
    assert Embedded.find(tmp_path) is None
    (out / WHOLE).touch()
    embedded = Embedded.find(out)
    assert embedded is not None
    narrow = shared_encoder(EncoderConfig(model="tiny", dtype="float32", dimensions=64))
    mismatch = pytest.raises(ContractMismatchError, match="dimensions: stored 64, yours 256")
    with open_sink("qdrant", ":memory:", narrow) as sink, mismatch:
        embedded.load(sink)
    with open_sink("qdrant", ":memory:", tiny) as sink:
        assert embedded.load(sink).added == len(rows)
        assert index_documents(documents, tiny, sink).unchanged == len(rows)


def _note(folder: Path) -> Path:
    path = folder / "note.txt"
    path.write_text("A note that says something.", encoding="utf-8")
    return path
