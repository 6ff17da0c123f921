"""index_folders and watch_folders over real files, and the command that watches."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from qwen3_embedding_integrations import (
    EncoderConfig,
    IndexingError,
    InputError,
    Qwen3Encoder,
    shared_encoder,
)
from qwen3_embedding_integrations.indexing import (
    IndexReport,
    ReadOptions,
    index_folders,
    watch_folders,
)
from qwen3_embedding_integrations.rows import Sink
from tests.commands import command
from tests.indexing.jobs import PATIENCE_S
from tests.stores import Counting, held_by, open_sink


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Return a folder of six files in five formats, some in folders of it."""
    folder = tmp_path / "files"
    (folder / "deep" / "deeper").mkdir(parents=True)
    write(folder / "help.md", "# Password\n\nForgot it? We send a link that works once.\n")
    write(folder / "law.txt", "出租人出卖租赁房屋的，承租人享有以同等条件优先购买的权利。\n")
    write(folder / "rows.jsonl", '{"text": "row one"}\n{"text": "row two"}\n{"text": "row three"}')
    write(folder / "deep" / "table.csv", "name,colour\nsky,blue\ngrass,green\n")
    write(folder / "deep" / "page.html", "<title>Page</title><h1>Water</h1><p>It boils.</p>")
    write(folder / "deep" / "deeper" / "note.md", "A note.\n")
    return folder


def write(path: Path, text: str) -> None:
    """Write a file at once, as editors that rename do, so that nobody reads half of it."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.rename(path)


def texts_by_source(sink: Sink, folder: Path) -> dict[str, list[str]]:
    """Return the texts held of each file, in order."""
    held = sorted((f["source"], f["position"], text) for text, f, _ in held_by(sink).values())
    found: dict[str, list[str]] = {}
    for source, _, text in held:
        found.setdefault(Path(source).relative_to(folder).as_posix(), []).append(text)
    return found


class Indexing:
    """The same folder into the same collection, again and again."""

    def __init__(self, folder: Path, sink: Sink, encoder: Counting, journal: Path | None) -> None:
        self.folder = folder
        self._sink = sink
        self._encoder = encoder
        self._journal = journal
        self.max_tokens = 512

    def __call__(self, *, prune: bool = False) -> tuple[IndexReport, list[str]]:
        """Return the report of a run and what it encoded."""
        self._encoder.encoded.clear()
        options = ReadOptions(self._encoder.count_tokens, self.max_tokens)
        report = index_folders(
            [self.folder], self._encoder, self._sink,
            options=options, journal=self._journal, prune=prune,
        )  # fmt: skip
        return report, self._encoder.encoded


@pytest.fixture(params=[True, False], ids=["journal", "store alone"])
def index(
    request: pytest.FixtureRequest, files: Path, sink: Sink, encoder: Counting, tmp_path: Path
) -> Indexing:
    return Indexing(files, sink, encoder, tmp_path / "journal" if request.param else None)


def test_files_become_rows(index: Indexing, sink: Sink, files: Path) -> None:
    """Every file's pieces are there with source, position and heading; again changes nothing."""
    report, encoded = index()
    assert (report.added, report.failed, len(encoded), len(sink)) == (9, 0, 9, 9)
    assert texts_by_source(sink, files) == {
        "deep/deeper/note.md": ["A note."],
        "deep/page.html": ["# Water\n\nIt boils."],
        "deep/table.csv": ["name: sky\ncolour: blue", "name: grass\ncolour: green"],
        "help.md": ["# Password\n\nForgot it? We send a link that works once."],
        "law.txt": ["出租人出卖租赁房屋的，承租人享有以同等条件优先购买的权利。"],
        "rows.jsonl": ["row one", "row two", "row three"],
    }
    titles = {f["source"]: f.get("title") for _, f, _ in held_by(sink).values()}
    assert titles[(files / "help.md").as_posix()] == "Password"
    for prune in (False, True):
        report, encoded = index(prune=prune)
        assert (report.unchanged, report.written, report.removed, encoded) == (9, 0, 0, [])


def test_unchanged_files_are_not_opened(
    files: Path, sink: Sink, encoder: Counting, tmp_path: Path
) -> None:
    """With a journal, a file of the same size and time is taken for unchanged without a look."""
    index = Indexing(files, sink, encoder, tmp_path / "journal")
    index()
    before = (files / "law.txt").stat()
    (files / "law.txt").write_bytes(b"x" * before.st_size)  # only who opens it can tell
    os.utime(files / "law.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    report, encoded = index()
    assert (report.unchanged, report.written, encoded) == (9, 0, [])
    index.max_tokens = 256  # pieces may end elsewhere: all are read again
    report, encoded = index()
    assert (report.unchanged, report.changed, encoded) == (8, 1, ["x" * before.st_size])


def test_files_that_changed(index: Indexing, sink: Sink, files: Path) -> None:
    """Only what differs is encoded: touched files are not, lines and pieces are, what went goes."""
    index()
    os.utime(files / "help.md")
    write(files / "rows.jsonl", '{"text": "row one"}\n{"text": "row 2"}')
    write(files / "deep" / "new.md", "New.\n")
    report, encoded = index()
    assert sorted(encoded) == ["New.", "row 2"]
    assert (report.added, report.changed, report.removed, report.unchanged) == (1, 1, 1, 7)
    held = texts_by_source(sink, files)
    assert held["rows.jsonl"] == ["row one", "row 2"]

    write(files / "rows.jsonl", "")
    report, encoded = index()
    assert (report.removed, encoded) == (2, [])
    assert "rows.jsonl" not in texts_by_source(sink, files)
    report, encoded = index()
    assert (report.removed, report.written, report.unchanged) == (0, 0, 7)


def test_files_that_are_gone(index: Indexing, sink: Sink, files: Path) -> None:
    """Rows of deleted and renamed files stay until prune is asked for, and come back after."""
    index()
    (files / "law.txt").rename(files / "deep" / "statute.txt")
    shutil.rmtree(files / "deep" / "deeper")
    report, encoded = index()
    assert (report.added, report.removed, len(encoded), len(sink)) == (1, 0, 1, 10)
    report, encoded = index(prune=True)
    assert (report.written, report.removed, encoded) == (0, 2, [])
    assert set(texts_by_source(sink, files)) == {
        "deep/page.html", "deep/statute.txt", "deep/table.csv", "help.md", "rows.jsonl",
    }  # fmt: skip
    (files / "deep" / "statute.txt").rename(files / "law.txt")
    report, encoded = index(prune=True)
    assert (report.added, report.removed, len(encoded), len(sink)) == (1, 1, 1, 8)


def test_a_file_that_is_damaged(index: Indexing, sink: Sink, files: Path) -> None:
    """A damaged file is named, keeps its rows, even with prune, and is read when it is mended."""
    index()
    (files / "rows.jsonl").write_bytes(b'{"text": "row one"}\n\xff\xfe\xff not text')
    for _ in range(2):
        report, encoded = index(prune=True)
        assert (report.failed, report.written, report.removed, encoded) == (1, 0, 0, [])
        assert Path(report.failures[0].name).name == "rows.jsonl"
        assert "neither UTF-8 nor GB18030" in report.failures[0].reason
        assert texts_by_source(sink, files)["rows.jsonl"] == ["row one", "row two", "row three"]
    write(files / "rows.jsonl", '{"text": "mended"}')
    report, encoded = index()
    assert (report.changed, report.removed, report.failed, encoded) == (1, 2, 0, ["mended"])


def test_a_piece_that_fails(files: Path, sink: Sink, tmp_path: Path, index: Indexing) -> None:
    """A file of which a piece cannot be encoded is read again in the next run; others are not."""
    strict = Counting(
        shared_encoder(
            EncoderConfig(model="tiny", dtype="float32", max_length=64, on_too_long="error")
        )
    )
    write(files / "rows.jsonl", json.dumps({"text": "long " * 200}) + '\n{"text": "row two"}')
    journal = tmp_path / "other-journal"
    index = Indexing(files, sink, strict, journal)
    report, _ = index()
    assert (report.added, report.failed) == (7, 1)
    report, encoded = index()
    assert (report.unchanged, report.failed, report.added) == (7, 1, 0)
    assert encoded[0].startswith("long")
    write(files / "rows.jsonl", '{"text": "short"}\n{"text": "row two"}')
    report, encoded = index()
    assert (report.failed, encoded) == (0, ["short"])


def test_a_folder_that_is_not_there(index: Indexing, files: Path, sink: Sink) -> None:
    """A folder that has gone is an error, not a reason to delete everything."""
    index()
    files.rename(files.with_name("elsewhere"))
    with pytest.raises(InputError, match="does not exist"):
        index(prune=True)
    assert len(sink) == 9


class Watching:
    """A watch on a thread, its reports in a queue, and a search that goes on meanwhile."""

    def __init__(self, files: Path, encoder: Counting, sink: Any, journal: Path | None) -> None:
        self._files = files
        self._encoder = encoder
        self._sink = sink
        self._journal = journal
        self._stop = threading.Event()
        self._vector = encoder.encode_documents(["A note."])[0]
        self.reports: Queue[IndexReport] = Queue()
        self.errors: list[BaseException] = []
        self.num_searches = 0
        self._threads = [threading.Thread(target=one) for one in (self._watch, self._search)]

    def wait_for(self, is_so: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            assert not self.errors, self.errors
            assert time.monotonic() < deadline, f"{what} never came"
            time.sleep(0.05)

    def _watch(self) -> None:
        def watch() -> None:
            for report in watch_folders(
                [self._files], self._encoder, self._sink, self._stop,
                options=ReadOptions(self._encoder.count_tokens), journal=self._journal,
            ):  # fmt: skip
                self.reports.put(report)

        self._keep_going(watch)

    def _search(self) -> None:
        def search() -> None:
            # With a pause: a store in this process shares one lock, and a search without one
            # would keep the writer from it.
            while not self._stop.wait(0.01):
                self._sink.nearest(self._vector, limit=3)
                self.num_searches += 1

        self._keep_going(search)

    def _keep_going(self, run: Callable[[], object]) -> None:
        try:
            run()
        except BaseException as error:
            self.errors.append(error)

    def __enter__(self) -> Watching:
        for thread in self._threads:
            thread.start()
        self.reports.get(timeout=PATIENCE_S)  # of the pass over all
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_watching(files: Path, sink: Sink, encoder: Counting, tmp_path: Path) -> None:
    """New, changed, renamed and deleted files and folders are followed; searches never fail."""
    journal = tmp_path / "journal"
    with Watching(files, encoder, sink, journal) as watching:

        def held(name: str) -> list[str]:
            return texts_by_source(sink, files).get(name, [])

        assert len(sink) == 9
        encoder.encoded.clear()
        write(files / "deep" / "new.md", "New.\n")
        watching.wait_for(lambda: held("deep/new.md") == ["New."], "a new file")
        write(files / "deep" / "new.md", "Newer.\n")
        watching.wait_for(lambda: held("deep/new.md") == ["Newer."], "a changed file")
        (files / "deep" / "new.md").rename(files / "deep" / "renamed.md")
        watching.wait_for(lambda: held("deep/renamed.md") == ["Newer."], "a file's new name")
        watching.wait_for(lambda: not held("deep/new.md"), "the end of a file's old name")
        (files / "law.txt").unlink()
        watching.wait_for(lambda: not held("law.txt"), "a file's end")
        shutil.rmtree(files / "deep" / "deeper")
        watching.wait_for(lambda: not held("deep/deeper/note.md"), "a folder's end")
        (files / "deep").rename(files / "moved")
        watching.wait_for(lambda: held("moved/table.csv") != [], "a folder's new name")
        watching.wait_for(lambda: not held("deep/table.csv"), "the end of a folder's old name")
        write(files / ".hidden.md", "Hidden.\n")
        write(files / "picture.png", "no text")
        (files / "rows.jsonl").write_bytes(b"\xff\xfe\xff")
        watching.wait_for(
            lambda: any(report.failed for report in [*watching.reports.queue]), "a damaged file"
        )
        assert held("rows.jsonl") == ["row one", "row two", "row three"]
        unchanged = {"row one", "row two", "row three", "A note."}
        assert unchanged.isdisjoint(encoder.encoded)
    assert not watching.errors, watching.errors
    assert watching.num_searches > 0
    assert ".hidden.md" not in texts_by_source(sink, files)
    report, _ = Indexing(files, sink, encoder, journal)(prune=True)
    assert (report.written, report.removed, report.failed) == (0, 0, 1)


def test_a_watch_that_fails_says_so(files: Path, tiny: Qwen3Encoder, tmp_path: Path) -> None:
    """A watch whose journal another job holds ends with that error, not in silence."""
    from qwen3_embedding_integrations.indexing.journal import Journal

    with (
        open_sink("chroma", tmp_path / "store", tiny) as sink,
        Journal(tmp_path / "journal") as other,
    ):
        other.enter([("a", "b")])
        watch = watch_folders(
            [files], tiny, sink, threading.Event(),
            options=ReadOptions(tiny.count_tokens), journal=tmp_path / "journal",
        )  # fmt: skip
        with pytest.raises(IndexingError, match="wait for the other job"):
            next(watch)


def test_the_command_that_watches(files: Path, tmp_path: Path) -> None:
    """`index --watch` reports what it found, then each change, while other processes search."""
    place = ["--location", tmp_path / "index", "--model", "tiny"]
    with command("index", files, *place, "--watch") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("9 pieces added")
        write(files / "new.md", "The moon is made of rock.\n")
        assert process.stdout.readline().startswith("1 pieces added, 0 changed")
        with command(
            "search", "What is the moon made of?", *place[:2], "--limit", 1, "--json"
        ) as search:
            found, _ = search.communicate(timeout=PATIENCE_S)
        assert json.loads(found)[0]["text"] == "The moon is made of rock."
        (files / "new.md").unlink()
        assert "1 removed" in process.stdout.readline()


def test_prune_keeps_to_the_paths_given(tmp_path: Path, tiny: Qwen3Encoder) -> None:
    """A folder that was not asked for keeps its rows; of the one that was, what is gone goes."""
    for name in ("a", "b", "ab"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.md").write_text(f"one of {name}\n", encoding="utf-8")
    options = ReadOptions(tiny.count_tokens)
    with open_sink("chroma", tmp_path / "store", tiny) as sink:
        folders = [tmp_path / name for name in ("a", "b", "ab")]
        assert index_folders(folders, tiny, sink, options=options, prune=True).added == 3
        (tmp_path / "a" / "one.md").unlink()
        report = index_folders([tmp_path / "a"], tiny, sink, options=options, prune=True)
        assert (report.removed, len(sink)) == (1, 2)
