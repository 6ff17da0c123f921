"""Search measured on public sets: references found by number, and vectors, BM25 and both fused.

    python -m benchmarks.search --data DIR               # minutes, with the small model `tiny`

DIR holds the sets as folders in BEIR's layout (corpus.jsonl.gz, queries.jsonl.gz, qrels.tsv.gz):
stard, cmrc2018, cranfield, scifact; and law_zh/articles.jsonl.gz, tatoeba/cmn-eng.tsv.gz. The
weights are chosen on development questions; the table is of the others.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import random
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.search_report import report
from qwen3_embedding_integrations import EncoderConfig, Qwen3Encoder
from qwen3_embedding_integrations.bench.machine import describe
from qwen3_embedding_integrations.evaluation import (
    Ranking,
    RetrievalSet,
    measure_ranking,
    read_retrieval,
)
from qwen3_embedding_integrations.keywords import KeywordIndex
from qwen3_embedding_integrations.search import FUSIONS, Hit, Qwen3Retriever

HERE = Path(__file__).parent
SETS = ["stard", "cmrc2018", "cranfield", "scifact"]
DEPTH = 100  # candidates of each ranking, the retriever's default
WEIGHTS = [round(0.05 * n, 2) for n in range(21)]
NUM_REFERENCES = 500
DIGITS = "零一二三四五六七八九"

Vectors = npt.NDArray[np.float32]


class Recorded:
    """An encoder whose vectors were computed before: each question is encoded once."""

    def __init__(self, encoder: Qwen3Encoder, queries: Iterable[str]) -> None:
        self.contract, self._encoder = encoder.contract, encoder
        texts = list(dict.fromkeys(queries))
        self._vectors = dict(zip(texts, encoder.encode_queries(texts), strict=True))

    def encode_queries(self, queries: Sequence[str], *, instruction: str | None = None) -> Vectors:
        assert instruction is None
        return np.stack([self._vectors[query] for query in queries])


class RecordedIndex:
    """A keyword index that answers a repeated question from memory."""

    def __init__(self, index: KeywordIndex) -> None:
        self.find_references, self.close = index.find_references, index.close
        self.search = functools.cache(index.search)


class BruteForceStore:
    """Texts and vectors in memory, compared one by one."""

    def __init__(self, documents: Mapping[str, str], vectors: Vectors) -> None:
        self._documents, self._ids, self._vectors = documents, list(documents), vectors

    def nearest(self, vector: Vectors, *, limit: int, where: object = None) -> list[Hit]:
        scores = self._vectors @ vector
        order = np.argsort(-scores, kind="stable")[:limit]
        return [self._hit(self._ids[i], float(scores[i])) for i in order]

    def fetch(self, ids: Sequence[str], *, where: object = None) -> list[Hit]:
        return [self._hit(id_, 0.0) for id_ in ids if id_ in self._documents]

    def _hit(self, id_: str, score: float) -> Hit:
        return Hit(id_, score, self._documents[id_], {})


def lines(path: Path) -> list[Any]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def rows(path: Path) -> list[list[str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.rstrip("\n").split("\t") for line in file][1:]


def load_set(folder: Path) -> RetrievalSet:
    return read_retrieval(folder, on_empty="embed", joined_by="\n")


def choose_dev(folder: Path) -> dict[str, bool]:
    """STARD's own split (train: development), CMRC's trial; every other question elsewhere."""
    queries = lines(folder / "queries.jsonl.gz")
    ids = [query["_id"] for query in queries]
    if folder.name == "stard":
        return {query["_id"]: query["split"] == "train" for query in queries}
    if folder.name == "cmrc2018":
        return {id_: id_.startswith("TRIAL") for id_ in ids}
    return {id_: index % 2 == 1 for index, id_ in enumerate(sorted(ids))}


def ndcg(questions: RetrievalSet, ranking: Ranking) -> float:
    """Return nDCG@10 in points, the mean over the questions that were ranked."""
    asked = replace(questions, queries={query: questions.queries[query] for query in ranking})
    return 100 * float(measure_ranking(asked, ranking).values["ndcg@10"].mean())


def embed(encoder: Qwen3Encoder, name: str, texts: Sequence[str], cache: Path | None) -> Vectors:
    path = cache / f"{name}.npy" if cache else None
    if path and path.is_file():
        return np.load(path)
    vectors = encoder.encode_documents(texts)
    if path:
        np.save(path, vectors)
    return vectors


def fill(index: KeywordIndex, documents: Mapping[str, str]) -> None:
    ids = list(documents)
    for start in range(0, len(ids), 1000):
        some = ids[start : start + 1000]
        index.write(some, [documents[id_] for id_ in some])


def sweep(questions: RetrievalSet, dense: Ranking, keywords: Ranking) -> dict[str, list[float]]:
    """Return nDCG@10 for every fusion, at every weight of the vectors."""
    return {
        name: [
            ndcg(questions, {q: fuse(dense[q], keywords[q], dense_weight=w) for q in dense})
            for w in WEIGHTS
        ]
        for name, fuse in FUSIONS.items()
    }


def choose(development: Mapping[str, Any], fusion: str) -> float:
    """Return the weight whose worst development set gains most over its better ranking alone."""
    gains = [
        np.array(one["fused"][fusion]) - max(one["dense"], one["bm25"])
        for one in development.values()
    ]
    return WEIGHTS[int(np.argmax(np.min(gains, axis=0)))]


class Prepared(NamedTuple):
    """A set that can be searched."""

    questions: RetrievalSet
    is_dev: dict[str, bool]
    index: Any
    store: BruteForceStore
    encoder: Any

    def texts(self, *, is_dev: bool) -> dict[str, str]:
        queries = self.questions.queries.items()
        return {id_: text for id_, text in queries if self.is_dev[id_] is is_dev}

    def dense(self, query: str) -> list[tuple[str, float]]:
        vector = self.encoder.encode_queries([query])[0]
        return [(hit.id, hit.score) for hit in self.store.nearest(vector, limit=DEPTH)]

    def fused(self, query: str, fusion: Any, weight: float) -> list[tuple[str, float]]:
        retriever = Qwen3Retriever(
            self.store, self.encoder, keywords=self.index, fusion=fusion, dense_weight=weight
        )
        return [(hit.id, hit.score) for hit in retriever.search(query, limit=10)]


def measure_sets(prepared: Sequence[Prepared]) -> dict[str, Any]:
    """Choose the weights on the development questions, then measure on the others."""
    development: dict[str, Any] = {}
    for one in prepared:
        texts = one.texts(is_dev=True)
        dense = {q: one.dense(text) for q, text in texts.items()}
        keywords = {q: one.index.search(text, DEPTH) for q, text in texts.items()}
        development[one.questions.name] = {
            "questions": len(texts),
            "dense": ndcg(one.questions, dense),
            "bm25": ndcg(one.questions, keywords),
            "fused": sweep(one.questions, dense, keywords),
        }
    weights = {fusion: choose(development, fusion) for fusion in FUSIONS}
    test: dict[str, Any] = {}
    for one in prepared:
        texts = one.texts(is_dev=False)
        runs = {
            "dense": {q: one.dense(text) for q, text in texts.items()},
            "bm25": {q: one.index.search(text, DEPTH) for q, text in texts.items()},
        }
        for name, fusion, weight in (
            ("fused", "scores", weights["scores"]),
            ("rrf", "ranks", weights["ranks"]),
            ("rrf_equal", "ranks", 0.5),
        ):
            runs[name] = {q: one.fused(t, fusion, weight) for q, t in texts.items()}
        test[one.questions.name] = {
            "questions": len(texts),
            "documents": len(one.questions.documents),
            **{name: ndcg(one.questions, run) for name, run in runs.items()},
        }
    return {"weights": weights, "development": development, "test": test}


def chinese(number: int) -> str:
    """Return a number below 10,000 as statutes write it: 一千零七十九."""
    text = ""
    for power, unit in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // power % 10
        if digit:
            text += DIGITS[digit] + unit
        elif text and not text.endswith("零") and number % power:
            text += "零"
    return text.removeprefix("一") if 10 <= number < 20 else text


def notations(law: str, number: int) -> dict[str, str]:
    short = law.removeprefix("中华人民共和国")
    wide = "".join(chr(ord(digit) + 0xFEE0) for digit in str(number))
    return {
        "{law}第一千零七十九条": f"{short}第{chinese(number)}条",
        "{law}第1079条": f"{short}第{number}条",
        "《{full law}》第１０７９条": f"《{law}》第{wide}条",
        "{law} § 1079": f"{short} § {number}",
        "{law} Article 1079": f"{short} Article {number}",
        "in a question": f"请问{short}第{number}条是怎么规定的？",
    }


def measure_references(encoder: Qwen3Encoder, data: Path, cache: Path | None) -> dict[str, Any]:
    """How often the article itself comes first, by notation."""
    articles = lines(data / "law_zh" / "articles.jsonl.gz")
    documents = {one["_id"]: f"{one['_id']}\n{one['text']}" for one in articles}
    by_id = {one["_id"]: one["law"] for one in articles}
    plain = {
        f"{law}第{chinese(n)}条": (law, n) for law in set(by_id.values()) for n in range(1, 1300)
    }
    asked = random.Random(0).sample(sorted(set(plain) & set(documents)), NUM_REFERENCES)
    questions = {id_: notations(*plain[id_]) for id_ in asked}
    recorded = Recorded(encoder, (text for one in questions.values() for text in one.values()))
    store = BruteForceStore(documents, embed(encoder, "law_zh", list(documents.values()), cache))
    result: dict[str, Any] = {"articles": len(documents), "references": len(asked), "first": {}}
    with tempfile.TemporaryDirectory() as folder, KeywordIndex(Path(folder) / "law.db") as index:
        fill(index, documents)
        both = Qwen3Retriever(store, recorded, keywords=index)
        vectors = Qwen3Retriever(store, recorded)
        for notation in next(iter(questions.values())):
            texts = {id_: one[notation] for id_, one in questions.items()}
            result["first"][notation] = {
                "retriever": sum(both.search(t, limit=1)[0].id == i for i, t in texts.items()),
                "bm25": sum(index.search(t, 1)[0][0] == i for i, t in texts.items()),
                "dense": sum(vectors.search(t, limit=1)[0].id == i for i, t in texts.items()),
            }
    return result


def measure_languages(encoder: Qwen3Encoder, data: Path, cache: Path | None) -> dict[str, Any]:
    """Chinese sentences searched among their English translations."""
    pairs = rows(data / "tatoeba" / "cmn-eng.tsv.gz")
    texts = {f"q{n}": zh for n, (zh, _) in enumerate(pairs)}
    documents = {f"d{n}": en for n, (_, en) in enumerate(pairs)}
    # The same sentence may stand there twice: each of them answers.
    answers = {
        q: {d: 1 for d, en in documents.items() if en == pairs[int(q[1:])][1]} for q in texts
    }
    store = BruteForceStore(documents, embed(encoder, "tatoeba", list(documents.values()), cache))
    questions = RetrievalSet("tatoeba", documents, texts, answers)
    with KeywordIndex(":memory:") as index:
        fill(index, documents)
        one = Prepared(questions, {}, index, store, Recorded(encoder, texts.values()))
        default = Qwen3Retriever(store, one.encoder, keywords=index)
        found = {q: default.search(text, limit=10) for q, text in texts.items()}
        runs = {
            "dense": {q: one.dense(text) for q, text in texts.items()},
            "bm25": {q: index.search(text, DEPTH) for q, text in texts.items()},
            "fused": {q: [(hit.id, hit.score) for hit in hits] for q, hits in found.items()},
        }
    return {"questions": len(texts), **{name: ndcg(questions, run) for name, run in runs.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of the sets")
    parser.add_argument("--cache", type=Path, help="a folder that keeps the documents' vectors")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "search.json")
    arguments = parser.parse_args()
    if arguments.cache:
        arguments.cache.mkdir(parents=True, exist_ok=True)
    tiny = EncoderConfig(model="tiny", on_empty="embed")
    with Qwen3Encoder(tiny) as encoder, tempfile.TemporaryDirectory() as folder:
        prepared: list[Prepared] = []
        for name in SETS:
            questions = load_set(arguments.data / name)
            vectors = embed(encoder, name, list(questions.documents.values()), arguments.cache)
            index = KeywordIndex(Path(folder) / f"{name}.db")
            fill(index, questions.documents)
            asked = Recorded(encoder, questions.queries.values())
            store = BruteForceStore(questions.documents, vectors)
            is_dev = choose_dev(arguments.data / name)
            prepared.append(Prepared(questions, is_dev, RecordedIndex(index), store, asked))
        result = {
            **describe(shlex.join(["python", "-m", "benchmarks.search", "--data", "DIR"])),
            "model": "tiny",
            **measure_sets(prepared),
            "references": measure_references(encoder, arguments.data, arguments.cache),
            "zh_to_en": measure_languages(encoder, arguments.data, arguments.cache),
        }
        for one in prepared:
            one.index.close()
    arguments.output.write_text(
        json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    arguments.output.with_suffix(".md").write_text(report(result), encoding="utf-8")
    sys.stdout.write(report(result))


if __name__ == "__main__":
    main()
