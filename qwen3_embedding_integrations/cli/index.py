"""The verb `index`: files and folders into a collection, once or for as long as it runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..errors import ConfigError, InputError
from ..options import (
    INDEX,
    JsonOption,
    KeywordsOption,
    Options,
    Place,
    err,
    given,
    print_json,
    say,
    takes,
)
from .bulk import (
    ActorsOption,
    AddressOption,
    Engine,
    EngineOption,
    Target,
    TargetOption,
    index_by_ray,
    load_vectors,
)

if TYPE_CHECKING:
    from ..indexing import IndexReport, ReadOptions
    from ..stores import OpenStore

READING = ("max_tokens", "text_field")
LOCAL = ("journal", "prune", "watch")
STOPPED = 143  # what a shell shows of a process that SIGTERM ended


@takes(*INDEX)
def index(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.")],
    place: Place,
    options: Options,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens of one piece of a file; 512.")
    ] = None,
    text_field: Annotated[
        str | None, typer.Option(help="The CSV column or JSONL field with the text.")
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(help="Where committed files are noted; beside a local index.")
    ] = None,
    keywords: KeywordsOption = None,
    prune: Annotated[
        bool, typer.Option(help="Delete the rows of files gone from these paths.")
    ] = False,
    watch: Annotated[bool, typer.Option(help="Stay, and follow changes of the files.")] = False,
    engine: EngineOption = Engine.local,
    address: AddressOption = None,
    actors: ActorsOption = None,
    to: TargetOption = Target.store,
    as_json: JsonOption = False,
) -> None:
    """Read txt, md, html, pdf, docx, csv, jsonl and parquet files into a collection.

    Files that did not change are skipped, changed ones replace their rows. Killed or stopped, the
    next run goes on where this one was. A folder made by --to parquet is loaded as it is.
    """
    store, location, collection = place
    where = location if to == Target.parquet else f"{store} {collection!r} at {location}"
    local = given({"journal": journal, "prune": prune or None, "watch": watch or None}, *LOCAL)
    reading = given(locals(), *READING)
    if engine == Engine.ray:
        if local or keywords:
            raise ConfigError("--journal, --keywords, --prune and --watch: not with --engine ray")
        report = index_by_ray(paths, place, options, reading, address=address, actors=actors, to=to)
        return _finish(report, where, as_json=as_json)
    if address or actors or to == Target.parquet:
        raise ConfigError("--address, --actors and --to parquet are for --engine ray")
    made_otherwise = [*options, *local, *reading]
    if (loaded := load_vectors(paths, place, made_otherwise, keywords)) is not None:
        return _finish(loaded, where, as_json=as_json)
    return _index_here(paths, place, where, options, reading, local, keywords, as_json=as_json)


def _index_here(
    paths: list[Path],
    place: Place,
    where: str,
    options: Options,
    reading: Options,
    local: Options,
    keywords: Path | None,
    *,
    as_json: bool,
) -> None:
    """Index by this process, and follow the files if `local` says so."""
    from ..documents import find_files
    from ..indexing import ReadOptions
    from ..stores import is_url, keywords_path, open_store

    store, location, collection = place
    num_files = len(find_files(paths))
    if not num_files and "watch" not in local:
        raise InputError(f"nothing to index in {', '.join(map(str, paths))}")
    beside = None if is_url(location) else Path(location) / f"{collection}.{store}.journal"
    journal = local.get("journal", beside)
    with err.status("loading the model"):
        target = open_store(*place, options, create=True)
        if (words := keywords_path(location, collection, keywords)) is not None:
            target = target.with_keywords(words)
    read = ReadOptions(target.encoder.count_tokens, **reading)
    with closing(target.store), _stopped_by_sigterm():
        report = _index_once(target, paths, num_files, read, journal, prune="prune" in local)
        _print_report(report, where, len(target.store), as_json=as_json)
        if "watch" in local:
            _follow(target, paths, read, journal, where, as_json=as_json)
    if report.failed:
        raise typer.Exit(1)


def _finish(report: IndexReport, where: str, *, as_json: bool) -> None:
    _print_report(report, where, None, as_json=as_json)
    if report.failed:
        raise typer.Exit(1)


def _index_once(
    target: OpenStore,
    paths: list[Path],
    num_files: int,
    read: ReadOptions,
    journal: Path | None,
    *,
    prune: bool,
) -> IndexReport:
    """Index under a progress bar."""
    from ..indexing import index_folders

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=err) as bar:
        files = bar.add_task("files read", total=num_files)
        rows = bar.add_task("pieces written", total=None)
        return index_folders(
            paths,
            target.encoder,
            target.store,
            options=read,
            journal=journal,
            prune=prune,
            on_file=lambda: bar.advance(files),
            on_progress=lambda report: bar.update(rows, completed=report.written),
        )


def _follow(
    target: OpenStore,
    paths: list[Path],
    read: ReadOptions,
    journal: Path | None,
    where: str,
    *,
    as_json: bool,
) -> None:
    from ..indexing import watch_folders

    say(f"watching {', '.join(map(str, paths))}; stop with Ctrl-C", to=err)
    try:
        for report in watch_folders(
            paths, target.encoder, target.store, Event(), options=read, journal=journal
        ):
            if report.written or report.removed or report.failed:
                _print_report(report, where, len(target.store), as_json=as_json)
    except KeyboardInterrupt:
        err.print("stopped")


def _print_report(report: IndexReport, where: str, num_rows: int | None, *, as_json: bool) -> None:
    if as_json:
        print_json({**asdict(report), "rows": num_rows})
        return
    rows = "" if num_rows is None else f"{num_rows} rows "
    say(
        f"{report.added} pieces added, {report.changed} changed, {report.unchanged} unchanged, "
        f"{report.removed} removed, {report.failed} failed; {rows}in {where}"
    )
    for name, reason in report.failures:
        err.print("[red]failed[/] ", end="")
        # What is said of a file names it already.
        say(reason if reason.startswith(name) else f"{name}: {reason}", to=err)


@contextmanager
def _stopped_by_sigterm() -> Generator[None]:
    """End the process at SIGTERM at once: what is committed is committed, the rest is not begun."""
    cursor = "\x1b[?25h" if err.is_terminal else ""  # which a progress bar hides

    def stop(*_: Any) -> None:
        # Not by an exception: watchfiles would make a KeyboardInterrupt of it, a finalizer swallow
        # it. Not sys.exit: that waits for the forward under way, seconds with a large model.
        os.write(2, message)  # standard error, past buffers that may be half written
        os._exit(STOPPED)

    message = f"{cursor}stopped by SIGTERM; run again to go on\n".encode()
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
