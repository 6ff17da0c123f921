"""The Ray door: a cluster encodes a Dataset, and writes it into a store or to Parquet."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from .contract import EmbeddingContract, Encoder
from .core.config import EncoderConfig, check_range
from .documents import find_files, read_documents
from .errors import ConfigError, InputError, Qwen3EmbeddingError, needs
from .indexing import Failure, IndexReport
from .indexing.job import MAX_FAILURES, PLACE, Job, Progress, encode_by
from .indexing.journal import Journal
from .indexing.pipeline import encode_rows
from .parquet import (
    ArrowTable,
    EmbeddedWriter,
    fault_of,
    read_table,
    rows_of,
    table_of,
    vector_column,
    without_known,
    write_rows,
)
from .rows import Row, row_of
from .sharing import shared_encoder
from .stores import OpenStore, is_url, open_store

with needs("ray", extra="ray"):
    import pyarrow as pa
    import ray
    import ray.data
    import ray.exceptions

BATCH_ROWS = 2048  # of a call: four windows, so that encoding and writing overlap
READ_ROWS = 1024


class Qwen3BatchEncoder:
    """Encodes batches of documents in `Dataset.map_batches`, one encoder in each actor.

    Adds two columns to an Arrow table: "vector", fixed-size lists of float32, unit length, and
    "error", why a text has none. `config` may also be a function that makes an encoder. The other
    arguments of `map_batches` are the `actor_options`.
    """

    def __init__(
        self,
        config: EncoderConfig | str | Callable[[], Encoder] | None = None,
        *,
        text_column: str = "text",
    ) -> None:
        self._encoder = config() if callable(config) else shared_encoder(config)
        self._text_column = text_column

    def __call__(self, batch: ArrowTable) -> ArrowTable:
        """Return the table with the columns "vector" and "error"."""
        if self._text_column not in batch.column_names:
            raise InputError(
                f"no column {self._text_column!r}, only {batch.column_names}; give text_column="
            )
        texts = batch[self._text_column].to_pylist()
        has_error = "error" in batch.column_names
        errors = batch["error"].to_pylist() if has_error else [None] * len(texts)
        errors = [e or fault_of(text) for e, text in zip(errors, texts, strict=True)]
        rows = [Row(i, text, {}) for i, text in enumerate(texts) if errors[i] is None]
        done = encode_rows(rows, encode_by(self._encoder))
        for row, error in done.failures:
            errors[int(row.id)] = PLACE.sub("it", str(error))
        reasons = pa.array(errors, pa.string())
        vectors = done.vectors.reshape(-1, self._encoder.dimensions)
        column = vector_column(vectors, reasons.is_null().to_numpy(zero_copy_only=False))
        table = batch.drop_columns("error") if has_error else batch
        return table.append_column("error", reasons).append_column("vector", column)


def connect(address: str | None = None) -> None:
    """Join the Ray cluster at `address` or $RAY_ADDRESS, else start one here, without telemetry."""
    address = address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read by the processes that it starts
    ray.init(
        address or "local",
        include_dashboard=None if address else False,  # a cluster that runs has its own
        num_cpus=None if address else max(2, os.cpu_count() or 1),  # one for those that read
        log_to_driver=False,
        logging_level=logging.WARNING,
    )


def actor_options(
    config: EncoderConfig | str | None = None,
    *,
    num_actors: int | None = None,
    num_cpus: int = 1,
    batch_rows: int = BATCH_ROWS,
) -> dict[str, Any]:
    """Return what `map_batches` is to be given for actors with an encoder of this config each.

    Each has a card where `device` is "cuda", or "auto" and the cluster has cards; else `num_cpus`
    cores, which are its forward's threads. `num_actors` is as many as there is room for, if None.
    """
    config = EncoderConfig.of(config)
    check_range("batch_rows", batch_rows, 1, 1_000_000)
    check_range("num_cpus", num_cpus, 1, 1024)
    if config.device not in {"auto", "cpu", "cuda"}:
        raise ConfigError(
            f'device is {config.device!r}; Ray gives each actor one card: give "cuda", "cpu" or '
            '"auto"'
        )
    connect()
    has = ray.cluster_resources()
    wants_card = config.device == "cuda" or (config.device == "auto" and "GPU" in has)
    on_card = wants_card and not config.is_remote
    needs = {"num_gpus": 1} if on_card else {"num_cpus": num_cpus}
    # A core stays free: readers that find none would wait for actors that wait for readers.
    room = has.get("GPU", 1) if on_card else (has.get("CPU", 1) - 1) // num_cpus
    sizes = {"min_size": 1, "max_size": max(1, int(room))}
    if num_actors is not None:
        check_range("num_actors", num_actors, 1, 100_000 if on_card else int(room))
        sizes = {"size": num_actors}
    # Two calls at a time: the device goes on while one of them waits for its store or its table.
    pool = ray.data.ActorPoolStrategy(
        **sizes, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True
    )
    return {**needs, "compute": pool, "batch_size": batch_rows, "batch_format": "pyarrow"}


def read_files(
    paths: Sequence[str | Path],
    config: EncoderConfig | str | None = None,
    *,
    max_tokens: int = 512,
    text_field: str | None = None,
) -> ray.data.Dataset:
    """Return the rows of files and folders, cut into pieces as `qwen3-embedding index` does.

    Paths must mean the same files on every machine. A file that cannot be read becomes a row that
    says so. Each file is one task's, so cut a corpus into many.
    """
    connect()
    files = [{"path": str(p.absolute()), "source": p.as_posix()} for p in find_files(paths)]
    if not files:
        raise InputError(f"nothing to index in {', '.join(map(str, paths))}")
    options = {"max_tokens": max_tokens, "text_field": text_field}
    read = partial(_read_batch, config=EncoderConfig.of(config), options=options)
    dataset = ray.data.from_items(files, override_num_blocks=min(len(files), 10_000))
    return dataset.map_batches(read, batch_size=1, batch_format="pyarrow")


def server(store: str, location: str, collection: str, **options: Any) -> Callable[[], OpenStore]:
    """Return what opens a collection of a Chroma or Qdrant server in a worker; see `open_store`."""
    if not is_url(location):
        raise ConfigError(
            f"location is {location!r}, a folder, which one process at a time can hold; give the "
            "URL of a server, or write Parquet and load that (--to parquet)"
        )
    return partial(open_store, store, location, collection, options, create=True)


def index_dataset(
    dataset: ray.data.Dataset,
    open_target: Callable[[], OpenStore],
    *,
    actors: dict[str, Any] | None = None,
    retry_s: int = 300,
    on_progress: Progress | None = None,
) -> IndexReport:
    """Bring a collection up to date with a dataset, by actors that encode and write.

    The dataset is one of `read_files`, or has the columns text, source (what names the row) and
    perhaps position and title; other columns of strings and numbers are metadata. A pair of source
    and position comes once. `open_target` is a `server(...)`, `actors` the `actor_options` of its
    config. Ids and hashes are those of `index_documents`: what stands in the store with the same
    content is neither encoded nor written. A worker that dies has its batches done again; what it
    had committed counts as unchanged. Sources of `read_files` lose what the store holds beyond
    their present pieces. Rows that cannot be encoded are named in the report. Raises what
    `index_documents` raises.
    """
    actors = actors or actor_options()
    report = IndexReport()
    with _our_errors():
        # By one worker first: it makes the collection, or says why it cannot be used.
        _contract_of(open_target, actors)
        rows = dataset.map_batches(rows_of, batch_format="pyarrow")
        for _ in _answers(rows, _Indexer, (open_target, retry_s), actors, report):
            if on_progress:
                on_progress(report)
    return report


def write_embedded(
    dataset: ray.data.Dataset,
    folder: str | Path,
    config: EncoderConfig | str | None = None,
    *,
    actors: dict[str, Any] | None = None,
) -> IndexReport:
    """Bring a folder of Parquet files up to date with a dataset; return what was done.

    The dataset is as in `index_dataset`. A row has id, text, facts (JSON), error and vector; what
    its vectors were made by stands in each file's schema. `folder` must mean the same on every
    machine. What it holds is not encoded again: a killed run goes on from its last files, one a
    batch. What did not come is dropped; a changed row is one added and one removed. Takes 32 bytes
    here for each row that was there. `parquet.Embedded` loads it. Raises as `EmbeddedWriter`.
    """
    config, folder = EncoderConfig.of(config), Path(folder).absolute()
    actors = actors or actor_options(config)
    report = IndexReport()
    with _our_errors():
        contract = _contract_of(partial(shared_encoder, config), actors)
        writer = EmbeddedWriter(folder, contract, config)
        known, made_by = ray.put(writer.known), (config, writer.place, writer.schema)
        rows = dataset.map_batches(
            lambda batch: without_known(rows_of(batch), ray.get(known)), batch_format="pyarrow"
        )
        for answer in _answers(rows, _Embedder, made_by, actors, report):
            writer.has_come[answer["kept"]] = True
        writer.finish()
    report.unchanged = int(writer.has_come.sum()) - 1
    report.removed = int((~writer.has_come).sum())
    return report


def _answers(
    rows: ray.data.Dataset, worker: type, made_by: Any, actors: dict[str, Any], report: IndexReport
) -> Iterator[dict[str, Any]]:
    """Yield what actors answer to batches of rows; add their reports to the one of all."""
    # In blocks of a batch each, so that one large file is every actor's.
    blocks = rows.repartition(target_num_rows_per_block=actors["batch_size"])
    answers = blocks.map_batches(worker, fn_constructor_args=made_by, **actors)
    answers.context.raise_original_map_exception = True  # else ours is lost on the way here
    for answer in answers.iter_rows():
        part = json.loads(answer["report"])
        room = MAX_FAILURES - len(report.failures)
        report.failures += [Failure(*one) for one in part.pop("failures")[:room]]
        for name, count in part.items():
            setattr(report, name, getattr(report, name) + count)
        yield answer


class _Indexer:
    """Brings batches of rows into a collection, in one actor; a report for each."""

    def __init__(self, open_target: Callable[[], OpenStore], retry_s: int) -> None:
        self._sink, self._encoder = open_target()
        self._retry_s = retry_s

    def __call__(self, batch: ArrowTable) -> ArrowTable:
        found = read_table(batch)
        with Journal(None) as record:
            # A job for each batch: calls run side by side, and a dead worker's are done again.
            job = Job(self._encoder.contract, self._sink, record, retry_s=self._retry_s)
            for failure in found.failures:
                job.report.fail(*failure)
            job.run_rows(job.first_ones(found.rows), encode_by(self._encoder))
            job.remove(found.ends)
        return pa.table({"report": [json.dumps(asdict(job.report))]})


class _Embedder(Qwen3BatchEncoder):
    """Encodes batches of rows into a file each, in one actor; a report for each."""

    def __init__(self, config: EncoderConfig, *output: Any) -> None:
        super().__init__(config)
        self._output = output  # place and schema

    def __call__(self, batch: ArrowTable) -> ArrowTable:
        is_other = batch["id"].is_null().to_numpy() & batch["error"].is_null().to_numpy()
        rows, others = super().__call__(batch.filter(~is_other)), batch.filter(is_other)
        empty = others.filter(others["text"].is_valid())  # sources without a row, told by no other
        rows = pa.concat_tables([rows, empty], promote_options="default")
        if len(rows):
            write_rows(rows, *self._output)
        failures = read_table(rows.filter(rows["error"].is_valid())).failures
        num_added = len(rows) - rows["vector"].null_count
        report = {"added": num_added, "failed": len(failures), "failures": failures}
        kept = others["kept"].combine_chunks().flatten().to_pylist()
        return pa.table({"report": [json.dumps(report)], "kept": [kept]})


def _read_batch(
    batch: ArrowTable, *, config: EncoderConfig, options: dict[str, Any]
) -> Iterator[ArrowTable]:
    """Yield the tables of ROWS of the files of a batch."""
    for file in batch.to_pylist():
        rows, end = list[Any](), {"source": file["source"], "position": 0}
        try:
            for document in read_documents(file["path"], count_tokens=_counter(config), **options):
                row = row_of(replace(document, source=file["source"]))
                rows.append((row.id, row.text, row.facts, None))
                end["position"] += 1
                if len(rows) == READ_ROWS:
                    yield table_of(rows)
                    rows.clear()
            rows.append((None, None if end["position"] else "", end, None))
        except (InputError, OSError) as error:
            rows.append((None, None, end, str(error)))
        yield table_of(rows)


@lru_cache(maxsize=1)
def _counter(config: EncoderConfig) -> Callable[[str], int]:
    """Return what counts tokens as an encoder does, without its weights."""
    if config.is_remote:
        return shared_encoder(config).count_tokens
    from .core.checkpoint import locate_model
    from .core.tokenizer import Tokenizer

    tokenizer = Tokenizer(locate_model(config.engine))
    return lambda text: len(tokenizer.encode([text])[0])


def _contract_of(make: Callable[[], Any], actors: dict[str, Any]) -> EmbeddingContract:
    """Return the contract of what a worker with an actor's resources makes; it ends then."""
    needs = {name: actors[name] for name in ("num_cpus", "num_gpus") if name in actors}
    return ray.get(ray.remote(max_calls=1, **needs)(_make).remote(make))


def _make(make: Callable[[], Any]) -> EmbeddingContract:
    made = make()
    return getattr(made, "encoder", made).contract


@contextmanager
def _our_errors() -> Generator[None]:
    """Raise the error of ours that a worker raised, not Ray's around it."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while isinstance(cause, ray.exceptions.RayError):  # it may take its cause's class as well
            cause = getattr(cause, "cause", None) or cause.__cause__
        if isinstance(cause, Qwen3EmbeddingError):
            raise cause from error
        raise
