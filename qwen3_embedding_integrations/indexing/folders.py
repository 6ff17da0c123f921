"""Folders into a collection: changed files read anew, unchanged ones not opened; watched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import NamedTuple

from ..contract import Encoder
from ..documents import SUFFIXES, Gone, Item, Known, Stamp, Unreadable, find_files, read_documents
from ..errors import InputError, needs
from ..rows import Sink
from .job import IndexReport, Job, Progress, encode_by
from .journal import Journal

WATCH_INTERVAL_MS = 1000


class ReadOptions(NamedTuple):
    """How files become documents; see `read_documents`."""

    count_tokens: Callable[[str], int]
    max_tokens: int = 512
    text_field: str | None = None


def index_folders(
    paths: Sequence[str | Path],
    encoder: Encoder,
    sink: Sink,
    *,
    options: ReadOptions,
    journal: str | Path | None = None,
    prune: bool = False,
    retry_s: int = 300,
    on_file: Callable[[], object] = lambda: None,
    on_progress: Progress | None = None,
) -> IndexReport:
    """Bring a collection up to date with files and folders; see `index_documents`.

    `prune` deletes the rows of files that are gone from the paths given; other folders' rows stay.

    With a `journal`, a file whose size, time of change and options are those of the last run is
    not opened. A file that cannot be read is reported; what the collection holds of it stays.
    """
    with Journal(journal) as record:
        job = Job(encoder.contract, sink, record, retry_s=retry_s, on_progress=on_progress)

        def items() -> Iterator[Item]:
            for path in find_files(paths):
                yield from read_file(path, options, record.file(path.as_posix()))
                on_file()

        job.run(items(), encode_by(encoder))
        if prune:
            job.prune(partial(_is_within, [Path(path).as_posix() for path in paths]))
        job.finish()
    return job.report


def watch_folders(
    paths: Sequence[str | Path],
    encoder: Encoder,
    sink: Sink,
    stop: Event,
    *,
    options: ReadOptions,
    journal: str | Path | None = None,
    retry_s: int = 300,
) -> Iterator[IndexReport]:
    """Keep a collection up to date with files and folders; yield a report of each change.

    Ends when `stop` is set. What changed before the watch began is found by a pass over all.
    """
    with needs("watchfiles", extra="files"):
        from watchfiles import watch
    is_first = True
    for changes in watch(
        *paths, stop_event=stop, yield_on_timeout=True, rust_timeout=WATCH_INTERVAL_MS
    ):
        if is_first:
            yield index_folders(
                paths, encoder, sink, options=options, journal=journal, retry_s=retry_s
            )
            is_first = False
        if changes:
            changed = sorted({Path(path) for _, path in changes})
            with Journal(journal) as record:
                job = Job(encoder.contract, sink, record, retry_s=retry_s)
                items = changed_items(changed, paths, job.sources, record.file, options)
                job.run(items, encode_by(encoder))
                job.finish()
            yield job.report


def read_file(path: Path, options: ReadOptions, known: tuple[str, int] | None) -> Iterator[Item]:
    """Yield the items of one file; `known` are the stamp and number of pieces it had."""
    source = path.as_posix()
    try:
        stat = path.stat()  # before it is read: a change meanwhile shows in the next run
        stamp = f"{stat.st_size} {stat.st_mtime_ns} {options.max_tokens} {options.text_field or ''}"
        if known is not None and known[0] == stamp:
            yield Known(source, known[1])
            return
        yield from read_documents(path, **options._asdict())
        yield Stamp(source, stamp)
    except (InputError, OSError) as error:
        yield Unreadable(source, str(error))


def changed_items(
    changed: Iterable[Path],
    given: Sequence[str | Path],
    sources: Callable[[], Iterable[str]],
    known: Callable[[str], tuple[str, int] | None],
    options: ReadOptions,
) -> Iterator[Item]:
    """Yield the items of paths that have changed: files anew, what is gone as Gone.

    `sources` lists what the collection holds; it is asked where a folder may have gone. `known` is
    asked of files in folders that changed. Paths come absolute and are named as they were `given`,
    so that they are the same sources.
    """
    files: dict[Path, bool] = {}  # and whether the file itself is what changed
    gone: set[str] = set()
    for path in changed:
        named = _as_given(path, given)
        if named.is_dir() and not _is_hidden(path, given):
            # One that was moved here tells nothing of its files.
            files = dict.fromkeys(find_files([named]), False) | files
        elif named.is_file():
            if named.suffix.lower() in SUFFIXES and not _is_hidden(path, given):
                files[named] = True
        elif named.suffix.lower() in SUFFIXES:
            gone.add(named.as_posix())
        else:
            inside = named.as_posix() + "/"
            gone |= {one for one in sources() if one.startswith(inside)}
    yield from map(Gone, sorted(gone))
    for file, has_changed in files.items():
        yield from read_file(file, options, None if has_changed else known(file.as_posix()))


def _is_within(paths: Sequence[str], source: str) -> bool:
    return any(path in (".", source) or source.startswith(path + "/") for path in paths)


def _as_given(path: Path, given: Sequence[str | Path]) -> Path:
    for one in map(Path, given):
        if path.is_relative_to(one.absolute()):
            return one / path.relative_to(one.absolute())
    return path


def _is_hidden(path: Path, given: Sequence[str | Path]) -> bool:
    """Whether a folder's own reading would pass over the file."""
    for one in (Path(one).absolute() for one in given):
        if path.is_relative_to(one):
            return any(part.startswith((".", "~$")) for part in path.relative_to(one).parts)
    return False
