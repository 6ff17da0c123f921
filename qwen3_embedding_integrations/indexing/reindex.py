"""A collection built anew beside the old one, and checked before it takes its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from ..contract import EmbeddingContract, Encoder
from ..core.streaming import divide
from ..errors import IndexingError
from ..rows import HASH_KEY, Row, Store, Vectors, content_hash
from .job import Failure, Job, Progress, encode_by
from .journal import Journal
from .pipeline import Encode

PAGE = 1000
MAX_PASSES = 5  # over a collection that is written to meanwhile
NUM_PROBES = 100  # rows whose vectors and neighbours are compared
NEAR = 10  # neighbours of each
# Cosine of a row's stored vector and the same text encoded again, perhaps in another dtype.
MIN_COSINE = 0.99


@dataclass(frozen=True)
class ReindexReport:
    """What a reindex made."""

    rows: int
    encoded: int  # in this run; 0 where the stored vectors were cut
    agreement: float  # share of the old neighbours of sampled rows that are the new ones, 0 to 1
    old: str = ""  # the collection that was current
    new: str = ""  # and the one that is


def can_cut(old: EmbeddingContract, new: EmbeddingContract) -> bool:
    """Whether the new vectors are the old ones, cut to fewer dimensions (Matryoshka)."""
    same = replace(new, dimensions=old.dimensions)
    return same.fingerprint == old.fingerprint and new.dimensions <= old.dimensions


def rebuild(
    source: Store,
    target: Store,
    contract: EmbeddingContract,
    encoder: Encoder | None,
    *,
    journal: str | Path | None = None,
    retry_s: int = 300,
    on_progress: Progress | None = None,
) -> ReindexReport:
    """Fill the target with the source's rows under a new contract, and check it.

    With an encoder the texts are encoded anew; without one the stored vectors are cut to the
    contract's dimensions. Rows that stand in the target are not made again, so a rebuild that died
    goes on. The source may be searched and written to meanwhile. Raises IndexingError when the two
    do not come to hold the same rows, or sampled vectors are not what they should be.
    """
    encode = encode_by(encoder) if encoder else _cut_to(contract.dimensions)
    num_written, failures = 0, list[Failure]()
    for _ in range(MAX_PASSES):
        with Journal(journal) as record:
            job = Job(contract, target, record, retry_s=retry_s, on_progress=on_progress)
            job.run_rows(_rows(source), encode)
            job.delete(_ids_not_in(target, source))
            job.finish()
        num_written += job.report.written
        failures = job.report.failures
        if not job.report.written and not job.report.removed:  # nothing came meanwhile
            break
    num_rows = len(target)
    if failures or num_rows != len(source):
        named = "".join(f"\n  {one.name}: {one.reason}" for one in failures[:10])
        raise IndexingError(
            f"{target.name} holds {num_rows} rows, {source.name} {len(source)}; "
            f"{len(failures)} failed:{named}\nthe old one stays current: mend or delete these "
            "rows, or stop what is writing, and run again"
        )
    agreement = _check(source, target, encode)
    encoded = num_written if encoder else 0
    return ReindexReport(num_rows, encoded, agreement)


def _rows(source: Store) -> Iterator[Row]:
    for row, vector in source.rows():
        known = row.facts.get(HASH_KEY)
        own = {} if known else {HASH_KEY: content_hash(row.text, row.facts)}
        yield Row(row.id, row.text, {**row.facts, **own}, vector)


def _cut_to(dimensions: int) -> Encode:
    def cut(rows: list[Row]) -> Vectors:
        vectors = np.stack([row.vector for row in rows if row.vector is not None])[:, :dimensions]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return cut


def _ids_not_in(target: Store, source: Store) -> Iterator[int | str]:
    """Yield the ids of the target's rows that the source no longer holds."""
    # Listed before the first is deleted: a page must not move under its reader.
    ids = [row.id for row, _ in target.rows()] if len(target) > len(source) else []
    for page in divide(ids, PAGE):
        there = source.hashes(page)
        yield from (one for one in page if one not in there)


def _check(source: Store, target: Store, encode: Encode) -> float:
    """Compare sampled rows with the same rows made again; return how far neighbours agree."""
    # Spread over the collection, the same ones in every run.
    step = max(1, len(source) // NUM_PROBES)
    sample = list(islice(_rows(source), 0, None, step))[:NUM_PROBES]
    if not sample:
        return 1.0
    shares: list[float] = []
    for row, vector in zip(sample, encode(sample), strict=True):
        found = target.nearest(vector, limit=NEAR)
        if not found or found[0].score < MIN_COSINE:
            score = f"{found[0].score:.4f}" if found else "none"
            raise IndexingError(
                f"{target.name}: the row nearest to {row.name}'s own vector has cosine {score}, at "
                f"least {MIN_COSINE} is right; the old collection stays current. Delete "
                f"{target.name} and run again"
            )
        if row.vector is not None:
            before = {hit.id for hit in source.nearest(row.vector, limit=NEAR)}
            shares.append(len(before & {hit.id for hit in found}) / len(before))
    return float(np.mean(shares))
