"""KeywordIndex: BM25 and exact references over Chinese and English texts, in one SQLite file."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .core.streaming import divide
from .database import MEMORY, Database
from .errors import ConfigError, InputError, StoreError
from .references import Reference, agreement, ends_with_law
from .terms import RULES_VERSION, Terms, split_text

MAX_QUERY_TERMS = 256
# Places that one query reads, by the number of texts: the commonest terms are left out beyond.
# Of 20,000 articles, 25,000 places gave the same nDCG as all, in half the time.
MIN_PLACES, PLACES_PER_TEXT, MAX_PLACES = 25_000, 2, 300_000
MAX_TEXTS_OF_CODE = 20  # what more texts hold, such as covid-19, names none of them
BUSY_TIMEOUT_S = 60.0
PARAMETERS = 500  # of one statement; old builds of SQLite allow 999

SCHEMA = (
    "CREATE TABLE document (row INTEGER PRIMARY KEY, id TEXT UNIQUE, digest BLOB)",
    "CREATE TABLE reference (key TEXT, row INTEGER, name TEXT, is_heading INTEGER)",
    "CREATE INDEX reference_key ON reference (key)",
    "CREATE INDEX reference_row ON reference (row)",
    "CREATE VIRTUAL TABLE bag USING fts5 (terms, tokenize='porter unicode61 remove_diacritics 0')",
)
SEARCH = """
SELECT id, -found.rank
FROM (SELECT rowid, rank FROM bag WHERE bag MATCH ? ORDER BY rank, rowid LIMIT ? OFFSET ?) AS found
JOIN document ON document.row = found.rowid ORDER BY found.rank, found.rowid
"""
REFERENCES = """
SELECT id, name, is_heading FROM reference JOIN document USING (row)
WHERE key = ? ORDER BY row LIMIT ?
"""


class KeywordIndex:
    r"""A keyword index in one SQLite file, or ":memory:".

    Ranks by BM25 (k1 1.2, b 0.75) over words (lower case, accents folded, English endings taken
    off), over characters and pairs of them in Chinese, Japanese, Korean and Thai, and over statute
    numbers and codes, each one term in every notation. Any number of threads and processes may
    search while one writes. A write is there in whole or not at all, whatever kills the process;
    what a call has returned from is on disk. Raises StoreError when the file cannot be used.

    >>> index = KeywordIndex(":memory:")
    >>> index.write(["1079", "42"], ["民法典第一千零七十九条\n夫妻一方要求离婚", "Error E-1042"])
    >>> index.search("第1079条", 10)[0][0], index.search("error code e1042", 10)[0][0]
    ('1079', '42')
    """

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)
        self._is_closed = False
        begin = [] if self._path == MEMORY else ["PRAGMA journal_mode = WAL"]
        self._database = Database(self._path, begin, timeout_s=BUSY_TIMEOUT_S)
        with self._connection(is_writer=True) as connection:
            self._prepare(connection)

    def write(self, ids: Sequence[str], texts: Sequence[str]) -> None:
        """Add the texts, replacing those of the same ids, in one transaction.

        A text that is there unchanged costs a look-up. Raises InputError for an id given twice.
        """
        _check(ids, texts)
        new = [(id_, text, _digest(text)) for id_, text in zip(ids, texts, strict=True)]
        with self._connection(is_writer=True) as connection:
            stored = _digests(connection, ids)
            changed = [one for one in new if stored.get(one[0]) != one[2]]
            _delete(connection, [id_ for id_, _, _ in changed if id_ in stored])
            for id_, text, digest in changed:
                _insert(connection, id_, digest, split_text(text))

    def delete(self, ids: Sequence[str]) -> None:
        """Take the texts of these ids out, in one transaction; unknown ids are no error."""
        _check(ids)
        with self._connection(is_writer=True) as connection:
            _delete(connection, ids)

    def search(self, query: str, limit: int, *, offset: int = 0) -> list[tuple[str, float]]:
        """Return (id, BM25 score) of up to `limit` texts that share terms with the query.

        Best first; `offset` leaves out the first ones. No character of a query is an operator.
        The commonest terms of a query are left out where together they stand in very many texts.
        """
        if limit < 1 or offset < 0:
            raise ConfigError(f"limit is {limit}, offset {offset}; they start at 1 and at 0")
        terms = list(dict.fromkeys(split_text(query).terms))
        with self._connection() as connection:
            if not (terms := _affordable(connection, terms)):
                return []
            match = " OR ".join(f'"{term}"' for term in terms)
            return connection.execute(SEARCH, (match, limit, offset)).fetchall()

    def find_references(self, query: str) -> list[tuple[str, float]]:
        """Return (id, rank) of the texts that a reference in the query names, best rank first.

        Texts under that heading; if there are none, texts that cite it. Ranks are equal where the
        reference does not tell texts apart: 第十条 names one article of every law. Empty if the
        query holds no reference that is known, or a code that over 20 texts hold.
        """
        ranks: dict[str, float] = {}
        with self._connection() as connection:
            for reference in split_text(query).references:
                for id_, rank in _named(connection, reference):
                    ranks[id_] = max(rank, ranks.get(id_, 0.0))
        return sorted(ranks.items(), key=lambda item: -item[1])

    def __len__(self) -> int:
        with self._connection() as connection:
            return _count(connection)

    def close(self) -> None:
        """Close the file; a call under way in another thread ends first."""
        self._is_closed = True
        self._database.close()

    def __enter__(self) -> KeywordIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"KeywordIndex({self._path!r})"

    @contextmanager
    def _connection(self, *, is_writer: bool = False) -> Generator[sqlite3.Connection]:
        if self._is_closed:
            raise StoreError(f"the keyword index {self._path} is closed; open it again")
        lend = self._database.transaction if is_writer else self._database.connection
        try:
            with lend() as connection:
                yield connection
        except (sqlite3.Error, UnicodeEncodeError) as error:
            raise self._failure(error) from error

    def _prepare(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == RULES_VERSION:
            return
        if version or connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            found = f"version {version} of the rules, this is {RULES_VERSION}" if version else "not"
            raise StoreError(
                f"{self._path} is no keyword index of this version ({found}); give another path, "
                "or delete the file and write the texts again"
            )
        for statement in SCHEMA:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {RULES_VERSION}")

    def _failure(self, error: Exception) -> StoreError:
        hints = {
            "fts5": "this Python's SQLite has no FTS5; install one that has",
            "full": "the disk is full: what was written before is whole; free some space",
            "locked": f"another process has written for over {BUSY_TIMEOUT_S:.0f} s",
            "surrogates": "an id is no valid Unicode text",
        }
        hint = next((hint for sign, hint in hints.items() if sign in str(error)), "")
        return StoreError(
            f"the keyword index {self._path} failed ({type(error).__name__}: {error}); "
            f"{hint or 'is it a file this process may write, on a local disk?'}"
        )


def _check(ids: Sequence[str], texts: Sequence[str] | None = None) -> None:
    for word, given in (("ids", ids), ("texts", texts or [])):
        if isinstance(given, str):
            raise TypeError(f"{word} is a str; pass a list: [{word[:-1]}]")
        if odd := next((one for one in given if not isinstance(one, str)), None):
            raise InputError(f"{word} holds a {type(odd).__name__} ({odd!r:.40}); all must be str")
    if texts is None:
        return
    if len(ids) != len(texts):
        raise InputError(f"{len(ids)} ids for {len(texts)} texts; give one id for each text")
    if len(set(ids)) < len(ids):
        twice = next(id_ for index, id_ in enumerate(ids) if id_ in ids[:index])
        raise InputError(f"the id {twice!r} is given twice; which text it stands for is unclear")


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _count(connection: sqlite3.Connection) -> int:
    return connection.execute("SELECT count(*) FROM document").fetchone()[0]


def _digests(connection: sqlite3.Connection, ids: Sequence[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for some in divide(ids, PARAMETERS):
        marks = ", ".join("?" * len(some))
        found |= connection.execute(
            f"SELECT id, digest FROM document WHERE id IN ({marks})", some
        ).fetchall()
    return found


def _insert(connection: sqlite3.Connection, id_: str, digest: bytes, found: Terms) -> None:
    values = (id_, digest)
    row = connection.execute("INSERT INTO document (id, digest) VALUES (?, ?)", values).lastrowid
    connection.execute("INSERT INTO bag (rowid, terms) VALUES (?, ?)", (row, " ".join(found.terms)))
    places = {(one.key, row, one.name, one.is_heading) for one in found.references}
    connection.executemany("INSERT INTO reference VALUES (?, ?, ?, ?)", sorted(places))


def _delete(connection: sqlite3.Connection, ids: Sequence[str]) -> None:
    for id_ in ids:
        row = connection.execute("SELECT row FROM document WHERE id = ?", (id_,)).fetchone()
        if row is not None:
            for table, column in (("bag", "rowid"), ("reference", "row"), ("document", "row")):
                connection.execute(f"DELETE FROM {table} WHERE {column} = ?", row)


def _affordable(connection: sqlite3.Connection, terms: list[str]) -> list[str]:
    """Return the terms to search for: all, or the rarest if together they stand in many texts."""
    num_texts = _count(connection)
    most = min(max(MIN_PLACES, num_texts * PLACES_PER_TEXT), MAX_PLACES)
    if num_texts * len(terms) <= most and len(terms) <= MAX_QUERY_TERMS:
        return terms
    # Counted by the table itself, which alone knows how it cuts the endings off.
    count = "SELECT count(*) FROM (SELECT 1 FROM bag WHERE bag MATCH ? LIMIT ?)"
    places = {term: connection.execute(count, (f'"{term}"', most)).fetchone()[0] for term in terms}
    kept: list[str] = []
    total = 0
    for term in sorted((term for term in terms if places[term]), key=lambda term: places[term]):
        total += places[term]
        if kept and (total > most or len(kept) == MAX_QUERY_TERMS):
            break
        kept.append(term)
    return kept


def _named(connection: sqlite3.Connection, asked: Reference) -> list[tuple[str, float]]:
    """Return (id, rank) of the texts that one reference names."""
    limit = MAX_TEXTS_OF_CODE + 1 if asked.kind == "code" else -1
    rows = connection.execute(REFERENCES, (asked.key, limit)).fetchall()
    if asked.kind == "code":
        return [(id_, 1.0) for id_, _, _ in rows] if len(rows) < limit else []
    rows = [row for row in rows if row[2]] or rows
    fits = [(id_, *agreement(asked.name, name)) for id_, name, _ in rows]
    best = max((num_chars for _, num_chars, _ in fits), default=0)
    if not best and ends_with_law(asked.name):
        return []
    # Where there is a 合同法, 劳动合同法 is not asked for. In 请问第十条 nothing is a name.
    return [(id_, num_chars + share) for id_, num_chars, share in fits if num_chars == best]
