"""Sentence pairs and retrieval sets from files; every bad row is counted, named and refused."""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.config import check_choice
from ..errors import ConfigError, InputError

NUM_SHOWN = 5  # faults whose rows an error names; the others are counted
BINARY_SHARE = 0.9  # of labels that are 0 or 1: the others are mistakes then, not grades
Judgements = dict[str, dict[str, int]]  # query → document → grade; 0: not an answer


@dataclass(frozen=True, slots=True)
class PairSet:
    """Pairs of texts, each with a label from 0 to `scale`: the same meaning is the highest."""

    name: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    labels: tuple[float, ...]
    scale: float
    rows: tuple[int, ...]  # where each pair stands in its file

    @property
    def is_binary(self) -> bool:
        """Whether every label is 0 or 1."""
        return set(self.labels) <= {0.0, 1.0}


@dataclass(frozen=True, slots=True)
class RetrievalSet:
    """Documents, queries, and which document answers which query; all by id."""

    name: str
    documents: dict[str, str]
    queries: dict[str, str]
    relevant: Judgements


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file; what is wrong with it goes to the faults of all rows."""

    where: str  # path:number, the header is row 1
    number: int
    record: Mapping[str, Any]
    faults: list[str]

    def fault(self, what: str) -> None:
        """Note what is wrong with this row."""
        self.faults.append(f"{self.where} {what}")

    def text(self, column: str, on_empty: str = "error") -> str:
        """Return a column's text; without one, note that and return ""."""
        value = self.record.get(column)
        if not isinstance(value, str):
            self.fault(f"has no text in {column!r}, only {', '.join(self.record)}")
            return ""
        if not value.strip() and on_empty == "error":
            self.fault(f"has an empty {column}")
        return value


def refuse(faults: list[str]) -> None:
    """Raise InputError if there are faults: how many, and what and where the first are."""
    if faults:
        more = f"; and {len(faults) - NUM_SHOWN:,} more" if len(faults) > NUM_SHOWN else ""
        count = f"{len(faults):,} fault{'s' * (len(faults) > 1)}"
        raise InputError(f"{count}, nothing is read: {'; '.join(faults[:NUM_SHOWN])}{more}")


def read_rows(path: Path, faults: list[str]) -> Iterator[Row]:
    """Yield the rows of a .tsv, .csv or .jsonl file, or a .gz of one; quotes are text in a .tsv.

    What is no row becomes a fault. Raises InputError for a file that cannot be read.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if not path.is_file() or suffix not in {".tsv", ".csv", ".jsonl"}:
        raise InputError(f"{path} is no file in .tsv, .csv or .jsonl (or .gz of one)")
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            tabs = (line.rstrip("\r\n").split("\t") for line in file)
            cells = csv.reader(file, strict=True) if suffix == ".csv" else tabs
            header = [] if suffix == ".jsonl" else next(cells, [])
            for number, values in enumerate(
                file if suffix == ".jsonl" else cells, 1 + bool(header)
            ):
                row = Row(f"{path}:{number}", number, _record(header, values), faults)
                if row.record:
                    yield row
                elif any(map(str.strip, values)):
                    row.fault(f"is not {len(header)} cells" if header else "is not a JSON object")
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def read_dataset(
    path: str | Path,
    *,
    scale: float | None = None,
    split: str | None = None,
    on_empty: str = "error",
) -> PairSet | RetrievalSet:
    """Return what a path holds: a folder or a .jsonl with "query" is a retrieval set.

    Raises InputError as `read_pairs` and `read_retrieval` do, which explain the options.
    """
    path = Path(path)
    is_jsonl = ".jsonl" in path.suffixes
    if path.is_dir() or (is_jsonl and any("query" in row.record for row in read_rows(path, []))):
        return read_retrieval(path, split=split, on_empty=on_empty)
    return read_pairs(path, scale=scale)


def read_pairs(path: str | Path, *, scale: float | None = None) -> PairSet:
    """Return the pairs of a .tsv, .csv or .jsonl file: sentence1, sentence2, label (or score).

    `scale` is the highest label. Without it, it is 1 if nine of ten labels are 0 or 1 (all must
    be then) or none is above 1, else 5. Raises InputError that counts the bad rows.
    """
    if scale is not None and not scale > 0:
        raise ConfigError(f"scale is {scale}, the highest label; choose a number above 0")
    path = Path(path)
    faults: list[str] = []
    rows = list(read_rows(path, faults))
    found = [(row.text("sentence1"), row.text("sentence2"), _label(row)) for row in rows]
    if not found:
        refuse([*faults, f"{path} holds no pairs"])
    first, second, labels = zip(*found, strict=True)
    known = [label for label in labels if not math.isnan(label)]
    is_binary = scale is None and sum(n in {0, 1} for n in known) >= BINARY_SHARE * len(known)
    highest = scale or (1.0 if is_binary or max(known) <= 1 else 5.0)
    allowed = "0 or 1, as nearly all are" if is_binary else f"0 to {highest:g} (see scale)"
    for row, label in zip(rows, labels, strict=True):
        if label < 0 or label > highest or (is_binary and label % 1 > 0):
            row.fault(f"has the label {label:g}; allowed: {allowed}")
    refuse(faults)
    numbers = tuple(row.number for row in rows)
    return PairSet(_name(path), first, second, labels, highest, numbers)


def read_retrieval(
    path: str | Path,
    *,
    split: str | None = None,
    corpus: str | Path | None = None,
    on_empty: str = "error",
    joined_by: str = " ",
) -> RetrievalSet:
    """Return a folder in BEIR's layout, or a .jsonl with a query and its positives in each row.

    A folder holds corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv (default: test) or one qrels.tsv,
    whose queries `split` chooses by their field "split"; title and text are joined as in BEIR. In
    a .jsonl, "positive" and "negative" are texts or, with `corpus`, ids of that file's; equal
    texts are one document, equal queries one query. `on_empty="embed"` keeps empty texts. Raises
    InputError that counts the bad rows.
    """
    check_choice("on_empty", on_empty, ("error", "embed"))
    path = Path(path)
    faults: list[str] = []
    source = _find(path, "corpus.jsonl") if path.is_dir() and corpus is None else corpus
    documents = _texts(Path(source), faults, on_empty, joined_by)[0] if source else {}
    if path.is_dir():
        queries, relevant = _read_folder(path, documents, split, on_empty, faults)
    else:
        queries, relevant = _read_examples(path, documents, on_empty, faults)
    judged = {id_: text for id_, text in queries.items() if id_ in relevant}
    refuse(faults if faults or judged else [f"{path} answers no query (of split {split})"])
    return RetrievalSet(_name(path), documents, judged, {id_: relevant[id_] for id_ in judged})


def _record(header: list[str], values: Any) -> dict[str, Any]:
    if header:
        return dict(zip(header, values, strict=True)) if len(header) == len(values) else {}
    try:
        record = json.loads(values)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _label(row: Row) -> float:
    """Return a row's label; without one that is a finite number, note that and return NaN."""
    value = row.record.get("label", row.record.get("score"))
    with suppress(TypeError, ValueError):
        if math.isfinite(label := float(value)):  # pyright: ignore[reportArgumentType]
            return label
    columns = ", ".join(row.record)
    row.fault(f"has the label {value!r}" if value else f"has no label or score, only {columns}")
    return math.nan


def _texts(
    path: Path, faults: list[str], on_empty: str, joined_by: str
) -> tuple[dict[str, str], dict[str, Any]]:
    """Return texts and splits by id."""
    texts: dict[str, str] = {}
    splits: dict[str, Any] = {}
    for row in read_rows(path, faults):
        id_, title = str(row.record.get("_id", "")), row.record.get("title") or ""
        if not id_ or id_ in texts:
            row.fault(f"has the id {id_!r} of another row" if id_ else "has no _id")
        text = row.text("text", "embed" if title else on_empty)
        texts[id_] = f"{title}{joined_by}{text}".strip() if "title" in row.record else text
        splits[id_] = row.record.get("split")
    return texts, splits


def _read_folder(
    folder: Path, documents: dict[str, str], split: str | None, on_empty: str, faults: list[str]
) -> tuple[dict[str, str], Judgements]:
    queries, splits = _texts(_find(folder, "queries.jsonl"), faults, on_empty, " ")
    path = _find(folder, f"qrels/{split or 'test'}.tsv", "qrels.tsv")
    relevant: Judgements = {}
    for row in read_rows(path, faults):
        query, document = row.text("query-id"), row.text("corpus-id")
        for id_, known in ((query, queries), (document, documents)):
            if id_ and id_ not in known:
                row.fault(f"names {id_!r}, which is not there")
        if document in relevant.setdefault(query, {}):
            row.fault(f"judges {document!r} for {query!r} again")
        try:
            relevant[query][document] = int(row.text("score"))
        except ValueError:
            row.fault(f"has the score {row.record.get('score')!r}, not a whole number")
    if split is not None and path.parent == folder:
        queries = {id_: text for id_, text in queries.items() if splits[id_] == split}
    return queries, relevant


def _read_examples(
    path: Path, documents: dict[str, str], on_empty: str, faults: list[str]
) -> tuple[dict[str, str], Judgements]:
    ids = {id_: id_ for id_ in documents}  # or, without a corpus, by text
    is_by_id = bool(documents)
    queries: dict[str, str] = {}  # text → id
    relevant: Judgements = {}
    for row in read_rows(path, faults):
        query = queries.setdefault(row.text("query", on_empty), str(row.number))
        for name, grade in (("positive", 1), ("negative", 0)):
            found = row.record.get(name, [])
            values = found if isinstance(found, list) else [found]
            if not values and grade:
                row.fault("has no positive, only " + ", ".join(row.record))
            for value in values:
                if not isinstance(value, str) or not value.strip():
                    row.fault(f"has a {name} {value!r}")
                elif is_by_id and value not in ids:
                    row.fault(f"names {value!r}, which is not there")
                else:
                    id_ = ids.setdefault(value, f"d{len(ids) + 1}")
                    documents.setdefault(id_, value)
                    judged = relevant.setdefault(query, {})
                    judged[id_] = max(grade, judged.get(id_, 0))
    return {id_: text for text, id_ in queries.items()}, relevant


def _find(folder: Path, *names: str) -> Path:
    found = (folder / f"{name}{end}" for name in names for end in ("", ".gz"))
    if path := next((path for path in found if path.is_file()), None):
        return path
    raise InputError(f"{folder} has no {' or '.join(names)}; its layout is to be BEIR's")


def _name(path: Path) -> str:
    path = path.absolute()
    return path.name if path.is_dir() else f"{path.parent.name}/{path.name.split('.')[0]}"
