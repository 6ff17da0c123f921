"""Pairs and retrieval sets from files: what is read, and that bad rows are named and counted."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from qwen3_embedding_integrations import ConfigError, InputError
from qwen3_embedding_integrations.evaluation import (
    PairSet,
    RetrievalSet,
    read_dataset,
    read_pairs,
    read_retrieval,
)
from tests.evaluation.sets import DATA, write_help

HEADER = "sentence1\tsentence2\tlabel\n"


def jsonl(path: Path, *rows: dict[str, object]) -> Path:
    """Return the path of a new file with a row in each line."""
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_pairs_are_the_same_from_every_format(tmp_path: Path) -> None:
    """One table as .tsv, .csv, .jsonl and .tsv.gz is one set of pairs, quotes being text."""
    plain = read_pairs(DATA / "pairs.tsv")
    lines = (DATA / "pairs.tsv").read_text(encoding="utf-8").splitlines()
    cells = [line.split("\t") for line in lines]
    with (tmp_path / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(cells)
    jsonl(tmp_path / "pairs.jsonl", *(dict(zip(cells[0], row, strict=True)) for row in cells[1:]))
    with gzip.open(tmp_path / "pairs.tsv.gz", "wb") as file:
        file.write((DATA / "pairs.tsv").read_bytes())
    assert 'Say "hello" to the team' in plain.first
    assert plain.rows == tuple(range(2, 26))
    assert (plain.is_binary, plain.scale, sum(plain.labels)) == (True, 1.0, 12)
    for name in ("pairs.csv", "pairs.jsonl", "pairs.tsv.gz"):
        found = read_dataset(tmp_path / name)
        assert isinstance(found, PairSet)
        assert (found.first, found.second, found.labels, found.scale) == (
            plain.first,
            plain.second,
            plain.labels,
            plain.scale,
        )


def test_grades_are_told_from_classes() -> None:
    """Scores up to 5 are grades; a scale that is given bounds them instead."""
    graded = read_pairs(DATA / "graded.jsonl")
    assert (graded.is_binary, graded.scale, max(graded.labels)) == (False, 5.0, 5.0)
    with pytest.raises(InputError, match=r"8 faults.*graded.jsonl:1 has the label 4.8; .*0 to 1"):
        read_pairs(DATA / "graded.jsonl", scale=1)
    with pytest.raises(ConfigError, match="scale is 0, the highest label"):
        read_pairs(DATA / "graded.jsonl", scale=0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a\tb\t1\n\tb\t0\n", r"1 fault, .*:3 has an empty sentence1"),
        ("a\tb\t1\na\tb\n", r"1 fault, .*:3 is not 3 cells"),
        ("a\tb\tyes\na\tb\t0\n", r"1 fault, .*:2 has the label 'yes'"),
        ("a\tb\tnan\na\tb\t0\n", r"1 fault, .*:2 has the label 'nan'"),
        ("a\tb\t3\n\tb\t?\na\tb\t7\n", r"3 faults.*:3 has an empty.*:3 .* '\?'.*:4 .* 7; al"),
        ("a\tb\t?\n" * 9 + "a\tb\t3\n", r"9 faults, .*:2 has the label '\?'; .*; and 4 more$"),
        ("a\tb\t7\na\tb\t3\n", r"1 fault, .*:2 has the label 7; allowed: 0 to 5"),
        ("a\tb\t1\n" * 19 + "a\tb\t2\n", r"1 fault, .*:21 has the label 2; allowed: 0 or 1"),
        ("a\t \t1\n" * 7, r"7 faults, .*:2 has an empty sentence2; .*; and 2 more"),
        ("", r"holds no pairs"),
    ],
)
def test_bad_pairs_are_counted_and_named(tmp_path: Path, rows: str, message: str) -> None:
    """A bad row refuses the file, with the number of faults and the rows of the first."""
    path = tmp_path / "pairs.tsv"
    path.write_text(HEADER + rows, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_pairs(path)


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    """Without a label, or a text, the error says which columns a row has."""
    path = tmp_path / "pairs.tsv"
    path.write_text("sentence1\tsentence2\na\tb\n", encoding="utf-8")
    with pytest.raises(InputError, match=r":2 has no label or score, only sentence1, sentence2"):
        read_pairs(path)
    path.write_text("text1\tsentence2\tlabel\na\tb\t1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r":2 has no text in 'sentence1', only text1, sentence2"):
        read_pairs(path)


@pytest.mark.parametrize("name", ["missing.tsv", "pairs.txt", "broken.tsv.gz", "latin.tsv"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    """A missing file, another format, a damaged .gz and another encoding are InputErrors."""
    (tmp_path / "pairs.txt").write_text(HEADER, encoding="utf-8")
    (tmp_path / "broken.tsv.gz").write_bytes(gzip.compress(HEADER.encode() * 99)[:-12])
    (tmp_path / "latin.tsv").write_bytes(HEADER.encode() + "café\tb\t1\n".encode("latin-1"))
    with pytest.raises(InputError, match=name):
        read_pairs(tmp_path / name)


def test_a_folder_in_beirs_layout(tmp_path: Path) -> None:
    """Title and text are joined by a space, grades kept, queries without judgements left out."""
    found = read_dataset(write_help(tmp_path / "help"))
    assert isinstance(found, RetrievalSet)
    assert (found.name, len(found.documents), len(found.queries)) == ("help", 40, 20)
    assert found.documents["help/sso"].startswith("Single sign-on (SSO) with SAML or OpenID Co")
    assert "Connect On the Business plan" in found.documents["help/sso"]
    assert "unjudged" not in found.queries
    assert found.relevant["q20"] == {"help/data-residency": 2, "help/encryption": 0}


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("qrels/test.tsv", "q1\thelp/nothing\t1", r":31 names 'help/nothing', which is not there"),
        ("qrels/test.tsv", "q99\thelp/sso\t1", r":31 names 'q99', which is not there"),
        ("qrels/test.tsv", "q1\thelp/sso\t0.5", r":31 has the score '0.5', not a whole number"),
        ("qrels/test.tsv", "q1\thelp/reset-password\t1", r":31 judges 'help/reset-password' for"),
        ("qrels/test.tsv", "q1", r":31 is not 3 cells"),
        ("corpus.jsonl", '{"_id": "help/sso", "text": "a"}', r":41 has the id 'help/sso' of ano"),
        ("corpus.jsonl", '{"text": "a"}', r":41 has no _id"),
        ("corpus.jsonl", '{"_id": "new", "text": " "}', r":41 has an empty text"),
        ("queries.jsonl", '{"_id": "q77"}', r":22 has no text in 'text', only _id"),
        ("queries.jsonl", "not JSON", r":22 is not a JSON object"),
    ],
)
def test_bad_retrieval_sets_are_refused(tmp_path: Path, file: str, line: str, message: str) -> None:
    """A judgement of an unknown id, an id twice, an empty text: refused with file and row."""
    folder = write_help(tmp_path / "help")
    with (folder / file).open("a", encoding="utf-8") as out:
        out.write(line + "\n")
    with pytest.raises(InputError, match=rf"1 fault, .*{file}{message}"):
        read_retrieval(folder)


def test_faults_of_all_files_are_counted_together(tmp_path: Path) -> None:
    """The error counts the faults of corpus, queries and judgements."""
    folder = write_help(tmp_path / "help")
    for file in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        with (folder / file).open("a", encoding="utf-8") as out:
            out.write("{} ?\n")
    with pytest.raises(InputError, match=r"^3 faults, nothing is read: .*corpus.*queries.*qrels"):
        read_retrieval(folder)


def test_empty_texts_are_kept_where_that_is_wanted(tmp_path: Path) -> None:
    """`on_empty="embed"` keeps an empty document, as the encoder's option does."""
    folder = write_help(tmp_path / "help")
    with (folder / "corpus.jsonl").open("a", encoding="utf-8") as out:
        out.write('{"_id": "void", "text": ""}\n')
    assert read_retrieval(folder, on_empty="embed").documents["void"] == ""


def test_a_split_is_a_file_or_a_field(tmp_path: Path) -> None:
    """`split` chooses qrels/SPLIT.tsv or, of one qrels.tsv, the queries whose field says so."""
    folder = write_help(tmp_path / "files")
    (folder / "qrels" / "dev.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq7\thelp/backup\t1\n", encoding="utf-8"
    )
    assert read_retrieval(folder, split="dev").relevant == {"q7": {"help/backup": 1}}
    folder = tmp_path / "fields"
    jsonl(folder / "corpus.jsonl", {"_id": "d", "text": "a document"})
    jsonl(
        folder / "queries.jsonl",
        {"_id": "a", "text": "one", "split": "train"},
        {"_id": "b", "text": "two", "split": "dev"},
    )
    (folder / "qrels.tsv").write_text(
        "query-id\tcorpus-id\tscore\na\td\t1\nb\td\t1\n", encoding="utf-8"
    )
    assert list(read_retrieval(folder, split="dev").queries) == ["b"]
    assert list(read_retrieval(folder).queries) == ["a", "b"]
    with pytest.raises(InputError, match=r"answers no query \(of split test\)"):
        read_retrieval(folder, split="test")


def test_a_file_of_queries_with_their_texts(tmp_path: Path) -> None:
    """Equal texts are one document and equal queries one query; negatives have grade 0."""
    path = jsonl(
        tmp_path / "queries.jsonl",
        {"query": "capital of France", "positive": "Paris is.", "negative": ["Rome is."]},
        {"query": "capital of Italy", "positive": ["Rome is.", "It is Rome."]},
        {"query": "capital of France", "positive": "It is Paris."},
    )
    found = read_dataset(path)
    assert isinstance(found, RetrievalSet)
    assert list(found.documents.values()) == [
        "Paris is.",
        "Rome is.",
        "It is Rome.",
        "It is Paris.",
    ]
    assert found.queries == {"1": "capital of France", "2": "capital of Italy"}
    assert found.relevant == {"1": {"d1": 1, "d2": 0, "d4": 1}, "2": {"d2": 1, "d3": 1}}


def test_a_file_of_queries_with_ids_of_a_corpus(tmp_path: Path) -> None:
    """With a corpus the positives are its ids; one that it lacks is refused with its row."""
    corpus = jsonl(
        tmp_path / "corpus.jsonl", {"_id": "p", "text": "Paris"}, {"_id": "r", "text": "R"}
    )
    path = jsonl(tmp_path / "queries.jsonl", {"query": "France", "positive": "p", "negative": "r"})
    found = read_retrieval(path, corpus=corpus)
    assert found.documents == {"p": "Paris", "r": "R"}
    assert found.relevant == {"1": {"p": 1, "r": 0}}
    jsonl(path, {"query": "France", "positive": ["p", "q"]}, {"query": "Italy"})
    with pytest.raises(InputError, match=r"2 faults.*:1 names 'q'.*:2 has no positive"):
        read_retrieval(path, corpus=corpus)
