"""Files to training data: read, checked against what is measured, divided."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Container, Hashable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..evaluation import PairSet, RetrievalSet, read_pairs, read_retrieval
from .config import FinetuneConfig

NUM_SHOWN = 5  # leaked rows that an error names
DEV_DOCUMENTS = 2000  # that dev's queries are searched among, over and over while training
Dataset = PairSet | RetrievalSet


@dataclass(frozen=True, slots=True)
class Material:
    """What a run learns from, what decides when to stop, and what is measured before and after."""

    train: Dataset
    held: dict[str, Dataset]  # "dev", and "test" if there is one
    hashes: dict[str, str]  # SHA-256 of each file
    dropped: tuple[str, ...]  # training rows left out, and why


def read_material(config: FinetuneConfig) -> Material:
    """Return the data of a run. Raises InputError for bad rows and, if asked to, for leaks."""
    train = _read(config, config.train)
    given = {name: getattr(config, name) for name in ("test", "dev")}
    held = {name: _read(config, path) for name, path in given.items() if path is not None}
    leaks = _leaks(train, held)
    if leaks and config.on_leak == "error":
        more = f" and {len(leaks) - NUM_SHOWN:,} more" if len(leaks) > NUM_SHOWN else ""
        raise InputError(
            f"{len(leaks):,} training rows are also in what is measured, which would flatter the "
            f"result: {', '.join(list(leaks.values())[:NUM_SHOWN])}{more}; take them out, or have "
            'them left out by on_leak="drop"'
        )
    train = _without(train, leaks)
    if "dev" not in held:
        train, held["dev"] = _divide(train, config)
        doubles = _leaks(train, {"dev": held["dev"]})
        train, leaks = _without(train, doubles), leaks | doubles
    if not _keys(train):
        raise InputError(f"{config.train}: no training rows are left besides what is measured")
    hashes = _hashes([config.train, *(path for path in given.values() if path is not None)])
    held["dev"] = _narrow(held["dev"], config.seed)
    return Material(train, held, hashes, tuple(leaks.values()))


def _read(config: FinetuneConfig, path: str) -> Dataset:
    path, split = _part(path)
    if config.task == "pairs":
        pairs = read_pairs(path)
        if config.loss_name == "contrastive" and not pairs.is_binary:
            raise InputError(f'{path} has grades; loss="contrastive" wants labels 0 and 1')
        return pairs
    dataset = read_retrieval(path, split=split)
    bare = [id_ for id_, judged in dataset.relevant.items() if max(judged.values()) <= 0]
    if bare:
        raise InputError(f"{path}: {len(bare):,} queries have no answer: {', '.join(bare[:5])}")
    return dataset


def _part(path: str) -> tuple[str, str | None]:
    """Return the folder and the split of FOLDER#SPLIT; a # elsewhere is the path's own."""
    place, sign, split = path.rpartition("#")
    is_split = sign and not Path(path).exists() and Path(place).is_dir()
    return (place, split) if is_split else (path, None)


def _keys(dataset: Dataset) -> dict[str, Hashable]:
    """Return for each row (a pair, a query) what it shares with every row of the same texts.

    The same: after NFC, whatever the white space; of pairs also in the other order.
    """

    def plain(text: str) -> str:
        return " ".join(unicodedata.normalize("NFC", text).split())

    if isinstance(dataset, RetrievalSet):
        return {id_: plain(text) for id_, text in dataset.queries.items()}
    pairs = zip(dataset.rows, dataset.first, dataset.second, strict=True)
    return {str(row): frozenset(map(plain, texts)) for row, *texts in pairs}


def _leaks(train: Dataset, held: dict[str, Dataset]) -> dict[str, str]:
    """Return the training rows whose texts are held out, each with where they are."""
    known = {key: f"{name} {row}" for name, one in held.items() for row, key in _keys(one).items()}
    what = "row" if isinstance(train, PairSet) else "query"
    return {
        row: f"{what} {row} (in {known[key]})" for row, key in _keys(train).items() if key in known
    }


def _divide(dataset: Dataset, config: FinetuneConfig) -> tuple[Dataset, Dataset]:
    """Return the rest, and the share of rows that the seed holds out."""
    rows = list(_keys(dataset))
    if len(rows) < 2:
        raise InputError(f"{dataset.name} has too few rows to hold some out; give a dev as well")
    order = np.random.default_rng(config.seed).permutation(len(rows))
    held = {rows[n] for n in order[: max(1, round(config.dev_fraction * len(rows)))]}
    return _without(dataset, held), _without(dataset, set(rows) - held)


def _without(dataset: Dataset, left_out: Container[str]) -> Dataset:
    if isinstance(dataset, RetrievalSet):
        queries = {id_: text for id_, text in dataset.queries.items() if id_ not in left_out}
        return replace(
            dataset, queries=queries, relevant={id_: dataset.relevant[id_] for id_ in queries}
        )
    kept = [n for n, row in enumerate(dataset.rows) if str(row) not in left_out]
    return replace(
        dataset,
        first=tuple(dataset.first[n] for n in kept),
        second=tuple(dataset.second[n] for n in kept),
        labels=tuple(dataset.labels[n] for n in kept),
        rows=tuple(dataset.rows[n] for n in kept),
    )


def _narrow(dataset: Dataset, seed: int) -> Dataset:
    """Return a retrieval set with all judged documents, and others up to DEV_DOCUMENTS."""
    if isinstance(dataset, PairSet):
        return dataset
    kept = {document for judged in dataset.relevant.values() for document in judged}
    others = [id_ for id_ in dataset.documents if id_ not in kept]
    order = np.random.default_rng(seed).permutation(len(others))
    kept.update(others[n] for n in order[: max(0, DEV_DOCUMENTS - len(kept))])
    documents = {id_: text for id_, text in dataset.documents.items() if id_ in kept}
    return replace(dataset, documents=documents)


def _hashes(paths: list[str]) -> dict[str, str]:
    places = [Path(_part(path)[0]) for path in dict.fromkeys(paths)]
    files = {file for place in places for file in (place, *place.rglob("*")) if file.is_file()}
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}
