"""Rows and their vectors in Parquet: a corpus is embedded once and loaded into any store."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .contract import EmbeddingContract
from .core.config import EncoderConfig
from .documents import Document, Gone, Item, Unreadable
from .errors import ContractMismatchError, IndexingError, InputError, needs
from .indexing import IndexReport
from .indexing.job import Job, Progress
from .indexing.journal import Journal
from .rows import HASH_KEY, Row, Sink, Vectors, row_of

with needs("pyarrow", extra="files"):
    import pyarrow as pa
    import pyarrow.parquet as pq

ArrowTable = ArrowArray = ArrowSchema = Any  # pyarrow has no types
Hashes = npt.NDArray[np.bytes_]  # (N,) of 16 bytes, content hashes; b"" for what has no vector

CONTRACT_KEY = b"qwen3_embedding_contract"  # of a file's schema metadata
CONFIG_KEY = b"qwen3_embedding_config"
WHOLE = "_SUCCESS"  # the file that says that a folder was written to its end
UNFINISHED = ".unfinished"  # a folder in it, where a run's files stand until they are whole
BATCH_ROWS = 4096
DOCUMENT = ("text", "source", "position", "title")  # columns; the others are metadata
# A row without an id is its source's end (`position` is beyond the last piece), or, with an error,
# a source that could not be read. `facts` are JSON: the columns of many files differ.
ROWS = pa.schema([(name, pa.string()) for name in ("id", "text", "facts", "error")])


class Table(NamedTuple):
    """What a table of ROWS holds."""

    rows: list[Row]  # to be in the store, with their vectors where the table has them
    ends: list[tuple[str, int]]  # source and number of pieces
    failures: list[tuple[str, str]]  # name and reason
    items: list[Item]  # as `Journal.see_sources` takes them: which pieces came of which source


def table_of(
    rows: Iterable[tuple[str | None, str | None, dict[str, Any], str | None]],
) -> ArrowTable:
    """Return the table of (id, text, facts, error)."""
    records = [(i, text, json.dumps(facts), error) for i, text, facts, error in rows]
    return pa.Table.from_pylist([dict(zip(ROWS.names, r, strict=True)) for r in records], ROWS)


def rows_of(batch: ArrowTable) -> ArrowTable:
    """Return the table of ROWS that a batch of documents stands for."""
    if {*ROWS.names} <= {*batch.column_names}:
        return batch
    if missing := {"text", "source"} - {*batch.column_names}:
        raise InputError(
            f"the dataset has no column {' and no '.join(sorted(missing))}, only "
            f"{batch.column_names}; rename its columns"
        )
    return table_of(map(_values, batch.to_pylist()))


def _values(record: dict[str, Any]) -> tuple[str, str, dict[str, Any], str | None]:
    text, source, position = record["text"], record["source"], int(record.get("position") or 0)
    fault = fault_of(text) or (None if source is not None else "it has no source")
    others = {name: value for name, value in record.items() if name not in DOCUMENT}
    metadata = {k: v for k, v in others.items() if isinstance(v, str | int | float)}
    text = "" if fault else text
    row = row_of(Document(text, str(source), position, record.get("title"), metadata))
    return str(row.id), row.text, row.facts, fault


def fault_of(text: object) -> str | None:
    """Return what is wrong with a column's value as a text."""
    return None if isinstance(text, str) else f"it is {text!r:.40}, not a text"


def read_table(table: ArrowTable) -> Table:
    """Return what a table of ROWS holds, vectors as views of its memory."""
    vectors: Iterator[Vectors] = iter(())
    has_vector = [False] * len(table)
    if "vector" in table.column_names:
        column, width = table["vector"], table.schema.field("vector").type.list_size
        # flatten() passes over the rows without a vector.
        flat = (chunk.flatten().to_numpy().reshape(-1, width) for chunk in column.chunks)
        vectors, has_vector = chain.from_iterable(flat), column.is_valid().to_pylist()
    found = Table([], [], [], [])
    columns = (table[name].to_pylist() for name in ROWS.names)
    for row_id, text, known, error, is_there in zip(*columns, has_vector, strict=True):
        facts = json.loads(known)
        source, position = facts["source"], facts["position"]
        row = Row(row_id or "", text or "", facts, next(vectors) if is_there else None)
        nothing = Gone(source) if error is None else Unreadable(source, error)
        found.items.append(nothing if row_id is None else Document("", source, position))
        if error is not None:
            found.failures.append((row.name if row_id else source, error))
        elif row_id is None:
            found.ends.append((source, position))
        else:
            found.rows.append(row)
    return found


def vector_column(vectors: Vectors, has_vector: npt.NDArray[np.bool_]) -> ArrowArray:
    """Return a fixed-size list of float32 per row, null where it has no vector.

    `vectors` (M, dimensions) are those of the M rows that have one; where all have, they are not
    copied.
    """
    mask = None
    if not has_vector.all():
        spread = np.zeros((len(has_vector), vectors.shape[1]), np.float32)
        spread[has_vector] = vectors
        vectors, mask = spread, pa.array(~has_vector)
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1], mask=mask)


def embedded_schema(contract: EmbeddingContract, config: EncoderConfig) -> ArrowSchema:
    """Return the schema of rows with vectors; it says what they were made by."""
    kept = {CONTRACT_KEY: contract.to_dict(), CONFIG_KEY: config.portable()}
    vector = pa.field("vector", pa.list_(pa.float32(), contract.dimensions))
    return ROWS.append(vector).with_metadata({key: json.dumps(kept[key]) for key in kept})


class Embedded(NamedTuple):
    """Parquet files with vectors, and what these were made by: as far as opening a store asks."""

    files: list[Path]
    contract: EmbeddingContract
    config: EncoderConfig

    @property
    def dimensions(self) -> int:
        """Width of the vectors."""
        return self.contract.dimensions

    @classmethod
    def find(cls, path: str | Path, *, must_be_whole: bool = True) -> Embedded | None:
        """Return what a folder holds; None where `path` is no folder of such files.

        Raises InputError for a folder whose writing did not come to its end,
        ContractMismatchError where its files were made otherwise each.
        """
        files = sorted(Path(path).glob("*.parquet"))
        facts = [_metadata(file) for file in files]
        if not any(CONTRACT_KEY in one for one in facts):
            return None
        if must_be_whole and not (Path(path) / WHOLE).exists():
            raise InputError(f"{path} was not written to its end (no {WHOLE}); write it again")
        if len({one.get(CONTRACT_KEY) for one in facts}) > 1:
            raise ContractMismatchError(f"the files in {path} were made otherwise each; part them")
        config = EncoderConfig.from_options(**json.loads(facts[0][CONFIG_KEY]))
        return cls(files, EmbeddingContract.from_dict(facts[0][CONTRACT_KEY].decode()), config)

    def load(
        self, sink: Sink, *, retry_s: int = 300, on_progress: Progress | None = None
    ) -> IndexReport:
        """Bring the rows into a collection; return what was done.

        No text is encoded; what stands there with the same content is not written again, what a
        source held beyond its present pieces is deleted. Raises what `index_documents` raises.
        """
        with Journal(None) as record:
            job = Job(self.contract, sink, record, retry_s=retry_s, on_progress=on_progress)
            job.run_rows(self._rows(job, record), _stored)
            job.remove_stale()
        return job.report

    def _rows(self, job: Job, record: Journal) -> Iterator[Row]:
        for path in self.files:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=BATCH_ROWS):
                    found = read_table(pa.Table.from_batches([batch]))
                    record.see_sources(found.items)
                    for failure in found.failures:
                        job.report.fail(*failure)
                    yield from job.first_ones(found.rows)


def write_rows(rows: ArrowTable, place: Path, schema: ArrowSchema, name: str = "") -> None:
    """Write a file by way of `place`, whole or not at all; the same rows again replace it."""
    digest = hashlib.sha256("".join(rows["facts"].to_pylist()).encode()).hexdigest()
    name = name or f"{place.name}-{digest[:32]}.parquet"
    try:
        with (place / name).open("wb") as file:
            pq.write_table(rows.select(schema.names).cast(schema), file)
            file.flush()
            os.fsync(file.fileno())
        (place / name).replace(place.parent.parent / name)
    except FileNotFoundError as error:
        raise IndexingError(f"another run writes into {place.parent.parent} by now") from error


class EmbeddedWriter:
    """A folder of such files while a run writes it: what it held before, and what of it stays.

    What is left of a killed run writes no more once another has begun. Raises InputError where the
    folder holds something else, ContractMismatchError where it was made otherwise.
    """

    def __init__(self, folder: Path, contract: EmbeddingContract, config: EncoderConfig) -> None:
        self.schema: ArrowSchema = embedded_schema(contract, config)
        if made := Embedded.find(folder, must_be_whole=False):
            contract.require_match(made.contract, index=str(folder))
            self.schema = pq.read_schema(made.files[0])  # all of a folder's are the same
        elif folder.exists() and (folder.is_file() or {*os.listdir(folder)} - {UNFINISHED, WHOLE}):
            raise InputError(f"{folder} holds something else; give another folder")
        self.place = folder / UNFINISHED / uuid.uuid4().hex  # of files under way
        shutil.rmtree(self.place.parent, ignore_errors=True)
        self.place.mkdir(parents=True)
        (folder / WHOLE).unlink(missing_ok=True)
        columns, files = ["facts", "error"], sorted(folder.glob("*.parquet"))
        self._held = {file: _hashes(pq.read_table(file, columns=columns)) for file in files}
        self.known: Hashes = np.unique(np.concatenate([np.zeros(1, "S16"), *self._held.values()]))
        self.has_come = self.known == b""

    def finish(self) -> None:
        """Drop what was held but for those of `known` that have come."""
        for file, hashes in self._held.items():
            stays = _places(self.known[self.has_come], hashes) > 0
            if not stays.any():
                file.unlink()
            elif not stays.all():
                write_rows(pq.read_table(file).filter(stays), self.place, self.schema, file.name)
        shutil.rmtree(self.place.parent)
        (self.place.parent.parent / WHOLE).touch()


def without_known(table: ArrowTable, known: Hashes) -> ArrowTable:
    """Return what of a table of ROWS is not `known`; one more row lists what is, in "kept"."""
    places = _places(known, _hashes(table))
    kept = pa.table({"kept": pa.array([places[places > 0]], pa.list_(pa.int64()))})
    return pa.concat_tables([table.filter(places == 0), kept], promote_options="default")


def _hashes(table: ArrowTable) -> Hashes:
    pairs = zip(table["facts"].to_pylist(), table["error"].to_pylist(), strict=True)
    hashes = ["" if error else json.loads(facts).get(HASH_KEY, "") for facts, error in pairs]
    return np.array([bytes.fromhex(one) for one in hashes], "S16")


def _places(known: Hashes, wanted: Hashes) -> npt.NDArray[np.int64]:
    """Return where each stands in `known`, whose first is b""; 0 for what is not there."""
    places = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    return np.where(known[places] == wanted, places, 0)


def _metadata(file: Path) -> dict[bytes, bytes]:
    try:
        return pq.read_schema(file).metadata or {}
    except pa.ArrowInvalid:  # damaged: who reads its rows will say so
        return {}


def _stored(rows: Sequence[Row]) -> Vectors:
    return np.stack([row.vector for row in rows if row.vector is not None])
