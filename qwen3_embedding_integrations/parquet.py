"""Rows and their vectors in Parquet: a corpus is embedded once and loaded into any store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .contract import EmbeddingContract
from .core.config import EncoderConfig
from .errors import ContractMismatchError, InputError, MissingDependencyError
from .indexing import IndexReport
from .indexing.job import Job, Progress
from .indexing.journal import Journal
from .rows import Row, Sink, Vectors

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise MissingDependencyError("pyarrow", extra="files", reason=error) from error

ArrowTable = ArrowArray = ArrowSchema = Any  # pyarrow has no types

CONTRACT_KEY = b"qwen3_embedding_contract"  # of a file's schema metadata
CONFIG_KEY = b"qwen3_embedding_config"
WHOLE = "_SUCCESS"  # the file that says that a folder was written to its end
BATCH_ROWS = 4096
# A row without an id is its source's end (`position` is beyond the last piece), or, with an error,
# a source that could not be read. `facts` are JSON: the columns of many files differ.
ROWS = pa.schema([(name, pa.string()) for name in ("id", "text", "facts", "error")])


class Table(NamedTuple):
    """What a table of ROWS holds."""

    rows: list[Row]  # to be in the store, with their vectors where the table has them
    ends: list[tuple[str, int]]  # source and number of pieces
    failures: list[tuple[str, str]]  # name and reason


def table_of(
    rows: Iterable[tuple[str | None, str | None, dict[str, Any], str | None]],
) -> ArrowTable:
    """Return the table of (id, text, facts, error)."""
    records = [(i, text, json.dumps(facts), error) for i, text, facts, error in rows]
    return pa.Table.from_pylist([dict(zip(ROWS.names, r, strict=True)) for r in records], ROWS)


def read_table(table: ArrowTable) -> Table:
    """Return what a table of ROWS holds, vectors as views of its memory."""
    vectors: Iterator[Vectors] = iter(())
    has_vector = [False] * len(table)
    if "vector" in table.column_names:
        column, width = table["vector"], table.schema.field("vector").type.list_size
        # flatten() passes over the rows without a vector.
        flat = (chunk.flatten().to_numpy().reshape(-1, width) for chunk in column.chunks)
        vectors, has_vector = chain.from_iterable(flat), column.is_valid().to_pylist()
    found = Table([], [], [])
    columns = (table[name].to_pylist() for name in ROWS.names)
    for row_id, text, known, error, is_there in zip(*columns, has_vector, strict=True):
        facts = json.loads(known)
        row = Row(row_id or "", text or "", facts, next(vectors) if is_there else None)
        if error is not None:
            found.failures.append((row.name if row_id else facts["source"], error))
        elif row_id is None:
            found.ends.append((facts["source"], facts["position"]))
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
    def find(cls, path: str | Path) -> Embedded | None:
        """Return what a folder holds; None where `path` is no folder of such files.

        Raises InputError for a folder whose writing did not come to its end,
        ContractMismatchError where its files were made otherwise each.
        """
        files = sorted(Path(path).glob("*.parquet"))
        facts = [pq.read_schema(file).metadata or {} for file in files]
        if not any(CONTRACT_KEY in one for one in facts):
            return None
        if not (Path(path) / WHOLE).exists():
            raise InputError(f"{path} was not written to its end (no {WHOLE}); write it again")
        if len({one.get(CONTRACT_KEY) for one in facts}) > 1:
            raise ContractMismatchError(f"the files in {path} were made otherwise each; part them")
        config = EncoderConfig.from_options(**json.loads(facts[0][CONFIG_KEY]))
        return cls(files, EmbeddingContract.from_dict(facts[0][CONTRACT_KEY].decode()), config)

    def load(
        self, sink: Sink, *, retry_s: int = 300, on_progress: Progress | None = None
    ) -> IndexReport:
        """Bring the rows into a collection; return what was done.

        No text is encoded; rows that stand there with the same content are not written again, and
        what else the collection holds stays. Raises what `index_documents` raises.
        """
        with Journal(None) as record:
            job = Job(self.contract, sink, record, retry_s=retry_s, on_progress=on_progress)
            job.run_rows(self._rows(job.report), _stored)
            job.finish()
        return job.report

    def _rows(self, report: IndexReport) -> Iterator[Row]:
        for path in self.files:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=BATCH_ROWS):
                    found = read_table(pa.Table.from_batches([batch]))
                    for failure in found.failures:
                        report.fail(*failure)
                    yield from found.rows


def _stored(rows: Sequence[Row]) -> Vectors:
    return np.stack([row.vector for row in rows if row.vector is not None])
