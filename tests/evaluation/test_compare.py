"""The lab: what a setting reached equals the same done the slow way, and the advice is sound."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from qwen3_embedding_integrations import (
    ConfigError,
    EmbeddingContract,
    EncoderConfig,
    KeywordIndex,
    Qwen3Encoder,
    Qwen3Reranker,
    Qwen3Retriever,
    shared_encoder,
)
from qwen3_embedding_integrations.cli import app
from qwen3_embedding_integrations.core.linear import has_packed_products
from qwen3_embedding_integrations.demo import load_questions, load_texts
from qwen3_embedding_integrations.documents import read_documents
from qwen3_embedding_integrations.evaluation import (
    Comparison,
    RetrievalSet,
    Setting,
    Trial,
    compare,
    compare_paired,
    evaluate,
    find_intervals,
    measure_ranking,
)
from qwen3_embedding_integrations.evaluation.chart import chart_files, draw
from qwen3_embedding_integrations.evaluation.compare import recommend
from qwen3_embedding_integrations.evaluation.lab import WEB_SEARCH_ZH, make_settings
from tests.commands import command
from tests.memory_store import MemoryStore

TINY = EncoderConfig(model="tiny", dtype="float32")
ENGLISH = "Given a question, retrieve the help article that answers it"


@pytest.fixture(scope="module")
def labelled() -> RetrievalSet:
    """The demo's texts; the demo's questions, and the titles of its help articles, ask for them."""
    texts = load_texts()
    asked = [(one["question"], one["expected"]) for one in load_questions()]
    asked += [(text.title, text.id) for text in texts if text.id.startswith("help/")]
    queries = {f"q{n}": question for n, (question, _) in enumerate(asked)}
    relevant = {f"q{n}": {answer: 1} for n, (_, answer) in enumerate(asked)}
    return RetrievalSet("demo", {text.id: text.text for text in texts}, queries, relevant)


@pytest.fixture(scope="module")
def found(labelled: RetrievalSet) -> Comparison:
    """Every kind of setting that needs one encoder alone."""
    grid = {
        "chunk_tokens": [None, 48],
        "instruction": [ENGLISH, WEB_SEARCH_ZH],
        "dimensions": [256, 64],
        "storage": ["float32", "int8"],
        "dense_weight": [None, 0.3],
    }
    return compare(TINY, labelled, grid)


def ndcg(ranked: list[str], answers: dict[str, int]) -> float:
    """Return nDCG@10 where one document answers."""
    (answer,) = answers
    return 1 / math.log2(ranked.index(answer) + 2) if answer in ranked[:10] else 0.0


def slowly(
    dataset: RetrievalSet, setting: Setting, pieces: list[tuple[str, str]], reranker=None
) -> list[float]:
    """Return each query's nDCG@10 by an encoder, a store and an index of the setting's own."""
    config = replace(TINY, dimensions=setting.dimensions, instruction=setting.instruction)
    encoder = shared_encoder(config)
    owners = {f"piece {n}": owner for n, (owner, _) in enumerate(pieces)}
    texts = dict(zip(owners, [text for _, text in pieces], strict=True))
    keywords = KeywordIndex(":memory:")
    keywords.write(list(texts), list(texts.values()))
    retriever = Qwen3Retriever(
        MemoryStore(encoder, {id_: (text, {}) for id_, text in texts.items()}),
        encoder,
        keywords=keywords if setting.dense_weight is not None else None,
        dense_weight=setting.dense_weight,
        reranker=reranker,
        candidates=setting.rerank_depth or 100,
    )
    values: list[float] = []
    for id_, query in dataset.queries.items():
        hits = retriever.search(query, limit=100)
        ranked = list(dict.fromkeys(owners[hit.id] for hit in hits))
        values.append(ndcg(ranked, dataset.relevant[id_]))
    return values


def trial_of(found: Comparison, **options) -> Trial:
    """Return the trial of the setting with these options."""
    return next(
        one
        for one in found.trials
        if all(getattr(one.setting, name) == value for name, value in options.items())
    )


@pytest.mark.parametrize("dimensions", [256, 64])
@pytest.mark.parametrize("dense_weight", [None, 0.3])
@pytest.mark.parametrize("instruction", [ENGLISH, WEB_SEARCH_ZH])
def test_a_derived_setting_is_one_done_by_itself(
    found, labelled, dimensions, dense_weight, instruction
):
    """Widths, weights and instructions give what their own encoder, store and retriever give."""
    trial = trial_of(
        found,
        dimensions=dimensions,
        dense_weight=dense_weight,
        instruction=instruction,
        chunk_tokens=None,
        storage="float32",
    )
    slow = slowly(labelled, trial.setting, list(labelled.documents.items()))
    assert trial.results.values["ndcg@10"].tolist() == pytest.approx(slow, abs=1e-9)
    assert trial.bytes_per_document == 4 * dimensions


@pytest.mark.parametrize("dense_weight", [None, 0.3])
def test_pieces_are_those_of_the_indexer(found, labelled, dense_weight, tmp_path):
    """A chunk size gives what indexing a file in pieces gives, a document at its best piece."""
    trial = trial_of(
        found,
        dimensions=256,
        dense_weight=dense_weight,
        instruction=ENGLISH,
        chunk_tokens=48,
        storage="float32",
    )
    path = tmp_path / "texts.jsonl"
    rows = ({"text": text, "id": id_} for id_, text in labelled.documents.items())
    path.write_text("\n".join(map(json.dumps, rows)))
    count = shared_encoder(TINY).count_tokens
    read = list(read_documents(path, count_tokens=count, max_tokens=48))
    pieces = [(str(one.metadata["id"]), one.text) for one in read]
    assert len(pieces) > 1.5 * len(labelled.documents)
    slow = slowly(labelled, trial.setting, pieces)
    assert trial.results.values["ndcg@10"].tolist() == pytest.approx(slow, abs=1e-9)
    assert trial.bytes_per_document == 4 * 256 * len(pieces) / len(labelled.documents)


def test_a_plain_setting_is_what_evaluate_measures(found, labelled):
    """At full width without anything else, every metric and its interval is `evaluate`'s."""
    trial = trial_of(
        found,
        dimensions=256,
        dense_weight=None,
        instruction=ENGLISH,
        chunk_tokens=None,
        storage="float32",
    )
    measured = evaluate(shared_encoder(TINY), labelled, instruction=ENGLISH)
    for name, interval in measured.metrics.items():
        assert trial.metrics[name] == pytest.approx(interval, abs=1e-12), name


def test_int8_storage_is_whole_numbers(found, labelled):
    """Vectors kept as int8 are ranked as products of whole numbers from 0 to 127 rank them."""
    trial = trial_of(
        found,
        dimensions=64,
        dense_weight=None,
        instruction=ENGLISH,
        chunk_tokens=None,
        storage="int8",
    )
    encoder = shared_encoder(replace(TINY, dimensions=64, instruction=ENGLISH))
    ids = list(labelled.documents)
    documents = encoder.encode_documents(list(labelled.documents.values())).astype(np.float64)
    queries = encoder.encode_queries(list(labelled.queries.values())).astype(np.float64)
    low, high = np.percentile(documents, [0.5, 99.5])
    codes = np.round((np.clip(documents, low, high) - low) * 127 / (high - low)).astype(np.uint8)
    assert (codes.min(), codes.max()) == (0, 127)
    # The offset adds the same to every document of a query.
    order = np.argsort(-(queries @ codes.T), axis=1, kind="stable")
    slow = [
        ndcg([ids[n] for n in row], labelled.relevant[id_])
        for row, id_ in zip(order, labelled.queries, strict=True)
    ]
    assert trial.results.values["ndcg@10"].mean() == pytest.approx(np.mean(slow), abs=0.01)
    assert trial.bytes_per_document == 64


def test_every_depth_comes_from_one_scoring(labelled, reranker: Qwen3Reranker):
    """Depths give what a retriever with so many candidates gives; no pair is scored twice."""
    some = dict(list(labelled.queries.items())[:6])
    short = {id_: text[:60] for id_, text in labelled.documents.items()}
    dataset = replace(
        labelled,
        documents=short,
        queries=some,
        relevant={id_: labelled.relevant[id_] for id_ in some},
    )
    before = reranker.stats().pairs
    grid = {"instruction": [ENGLISH], "dimensions": [256], "rerank_depth": [0, 12, 4, 8]}
    found = compare(TINY, dataset, grid, reranker=reranker)
    assert reranker.stats().pairs - before == 12 * len(some)
    reached = {one.setting.rerank_depth: one.results.values["ndcg@10"] for one in found.trials}
    assert not np.array_equal(reached[0], reached[12]), "the reranker changed nothing"
    for trial in found.trials:
        second = reranker if trial.setting.rerank_depth else None
        slow = slowly(dataset, trial.setting, list(short.items()), second)
        assert trial.results.values["ndcg@10"].tolist() == pytest.approx(slow, abs=1e-9)
    assert trial_of(found, rerank_depth=12).latency_ms > trial_of(found, rerank_depth=0).latency_ms


@pytest.mark.skipif(not has_packed_products(), reason="this CPU has no int8 products")
def test_a_quantization_loads_its_own_encoder(labelled):
    """Quantized weights give what an encoder of that quantization gives, and cost less."""
    grid = {"instruction": [ENGLISH], "dimensions": [256], "quantization": [None, "int8"]}
    config = EncoderConfig(model="tiny")
    found = compare(config, labelled, grid)
    for quantization in (None, "int8"):
        with Qwen3Encoder(replace(config, quantization=quantization)) as encoder:
            measured = evaluate(encoder, labelled, instruction=ENGLISH)
        trial = trial_of(found, quantization=quantization)
        assert trial.metrics["ndcg@10"] == pytest.approx(measured.metrics["ndcg@10"], abs=1e-3)
    assert {row["quantization"] for row in found.rows()} == {"none", "int8"}


def test_each_loss_is_the_paired_test_against_the_best(found):
    """Trials stand best first, each with evaluation's own paired test against the first."""
    values = [one.metrics["ndcg@10"].value for one in found.trials]
    assert values == sorted(values, reverse=True)
    assert len(found.trials) == 2**5
    for one in found.trials:
        expected = compare_paired(one.results, found.trials[0].results)["ndcg@10"]
        assert one.loss == expected
        assert one.metrics == find_intervals(one.results)


def made(dimensions: int, misses: int, num_queries: int, best: Trial | None = None) -> Trial:
    """Return a trial that misses the answers of the first `misses` queries."""
    ids = [f"q{n}" for n in range(num_queries)]
    answers = {id_: {"right": 1} for id_ in ids}
    dataset = RetrievalSet("made", {"right": "a", "wrong": "b"}, dict.fromkeys(ids, "?"), answers)
    ranking = {id_: [("wrong" if n < misses else "right", 1.0)] for n, id_ in enumerate(ids)}
    results = measure_ranking(dataset, ranking)
    loss = compare_paired(results, (best.results if best else results))["ndcg@10"]
    setting = Setting(dimensions=dimensions)
    return Trial(setting, results, find_intervals(results), 4 * dimensions, 1.0, loss)


@pytest.mark.parametrize(
    ("misses", "num_queries", "recommended"),
    [
        (0, 100, 32),  # as good on every query
        (60, 100, 1024),  # clearly worse
        (8, 1000, 1024),  # a loss of 0.008 cannot be chance: significant
        (1, 20, 1024),  # too few queries to exclude a loss over 0.02
        (1, 1000, 32),  # one query in a thousand
    ],
)
def test_the_cheapest_setting_that_is_surely_as_good(misses, num_queries, recommended):
    """A cheaper setting is recommended if its loss may be chance and cannot be over 0.02."""
    best = made(1024, 0, num_queries)
    cheap = made(32, misses, num_queries, best)
    dear = made(2048, 0, num_queries, best)
    assert recommend([best, dear, cheap]).setting.dimensions == recommended


def test_the_snippet_runs_and_tells_the_truth(found):
    """What is to be pasted makes a config whose encoder has the very contract pasted beside it."""
    names: dict[str, object] = {}
    exec(found.snippet(), names)
    config, contract = names["config"], names["contract"]
    assert isinstance(config, EncoderConfig)
    assert isinstance(contract, EmbeddingContract)
    setting = found.recommended.setting
    assert (config.dimensions, config.instruction) == (setting.dimensions, setting.instruction)
    assert shared_encoder(config).contract == contract == found.contract
    notes = {
        f"index --max-tokens {setting.chunk_tokens}": setting.chunk_tokens is not None,
        f'storage="{setting.storage}"': setting.storage != "float32",
        f"dense_weight={setting.dense_weight}": setting.dense_weight is not None,
    }
    for words, is_meant in notes.items():
        assert (words in found.snippet()) == is_meant, words


def test_keywords_alone_are_said(found):
    """A weight of 0 is a value like any other: the snippet says it, and no default."""
    setting = Setting(dimensions=64, dense_weight=0)
    chosen = found.trials[0]._replace(setting=setting)
    (note,) = [
        line
        for line in replace(found, recommended=chosen).snippet().splitlines()
        if line.startswith("#")
    ]
    assert note.endswith("dense_weight=0)")


def test_the_chart_holds_every_series(found, tmp_path):
    """The chart is an SVG and a PNG with a line for all that differs beside the width."""
    draw(found, tmp_path / "chart")
    svg = (tmp_path / "chart.svg").read_text(encoding="utf-8")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    for trial in found.trials:
        words = found.describe(trial.setting)
        assert words.pop("dimensions") in {"256", "64"}
        assert list(words) == ["chunk_tokens", "instruction", "storage", "dense_weight"]
        assert ", ".join(f"{name} {value}" for name, value in words.items()) in svg
    for words in ("recommended", "bytes of a document", "ms of a query", "ndcg@10, 95% interval"):
        assert words in svg
    draw(found, tmp_path / "compare-0.6b.png")
    assert (tmp_path / "compare-0.6b.svg").read_text(encoding="utf-8") == svg
    one = replace(found, dataset="检索", trials=found.trials[:1], recommended=found.trials[0])
    draw(one, tmp_path / "one")  # whose name no font here may have: a warning, and so an error
    assert chart_files(tmp_path / "compare-0.6b")[0] == tmp_path / "compare-0.6b.svg"


def test_left_out_values_have_defaults():
    """Without a grid: two instructions, the model's width and its halves down to 32."""
    settings = make_settings({}, 1024)
    assert [one.dimensions for one in settings[:6]] == [1024, 512, 256, 128, 64, 32]
    assert [one.instruction for one in settings[::6]] == [
        EncoderConfig().instruction,
        WEB_SEARCH_ZH,
    ]
    assert len(settings) == 12


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"dimension": [64]}, "unknown option 'dimension'; did you mean 'dimensions'"),
        ({"dimensions": [31]}, "dimensions is 31; choose a number from 32 to 256"),
        ({"dimensions": [512]}, "dimensions is 512; choose a number from 32 to 256"),
        ({"storage": ["bit"]}, "storage is 'bit'; choose one of 'float32', 'float16', 'int8'"),
        ({"dense_weight": ["much"]}, "dense_weight is 'much'; choose from 0 to 1, or None"),
        ({"dense_weight": [1.5]}, "dense_weight is 1.5; choose from 0 to 1, or None"),
        ({"rerank_depth": [-1]}, "rerank_depth is -1; choose a number from 0 to 1000"),
        ({"dense_weight": []}, "these are 0 settings; give 1 to 200"),
        ({"dense_weight": [n / 100 for n in range(100)]}, "these are 800 settings; give 1 to 200"),
    ],
)
def test_what_cannot_be_compared_is_refused(grid, message):
    """A value that cannot be, or too many settings, is a ConfigError that says what can."""
    with pytest.raises(ConfigError, match=message):
        make_settings(grid, 256)


def test_a_depth_needs_a_reranker_and_a_metric_a_name(labelled):
    """A rerank depth without a reranker, and an unknown metric, are refused before any work."""
    with pytest.raises(ConfigError, match="rerank_depth is \\[0, 10\\]; give a reranker"):
        compare(TINY, labelled, {"rerank_depth": [0, 10]})
    with pytest.raises(ConfigError, match="storage is 'bit'"):
        compare("no/such-model", labelled, {"storage": ["bit"]})
    with pytest.raises(ConfigError, match="metric is 'ndcg'; choose one of 'ndcg@10'"):
        compare(TINY, labelled, metric="ndcg")


@pytest.fixture(scope="module")
def folder(labelled: RetrievalSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty queries and forty documents in BEIR's layout."""
    folder = tmp_path_factory.mktemp("beir") / "help"
    (folder / "qrels").mkdir(parents=True)
    documents = {id_: one for id_, one in labelled.documents.items() if id_.startswith("help/")}
    queries = {
        id_: one
        for id_, one in labelled.queries.items()
        if next(iter(labelled.relevant[id_])) in documents
    }
    for name, texts in (("corpus", documents), ("queries", queries)):
        rows = (json.dumps({"_id": id_, "text": text}) for id_, text in texts.items())
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    rows = [f"{id_}\t{next(iter(labelled.relevant[id_]))}\t1" for id_ in queries]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]))
    return folder


def test_the_command_prints_table_advice_and_chart(folder, tmp_path):
    """As a user runs it: a row for each setting, one marked, Python to paste, a chart."""
    options = ["--model", "tiny", "--dimensions", "256,32", "--dense-weight", "none,0.5"]
    with command("compare", folder, *options, "--chart", tmp_path / "lab") as process:
        out, problems = process.communicate(timeout=120)
    assert process.returncode == 0, problems
    lines = [line for line in out.splitlines() if line.startswith("│")]
    assert len(lines) == 8, out
    assert sum(line.startswith("│ *") for line in lines) == 1
    assert f"i2: {WEB_SEARCH_ZH}" in out
    assert "config = EncoderConfig(" in out
    assert "8 settings on 42 queries of help" in " ".join(out.split())
    assert (tmp_path / "lab.svg").is_file()
    assert (tmp_path / "lab.png").is_file()


def test_the_command_speaks_json(folder, tmp_path, monkeypatch):
    """With --json the same as data: rows by column, the contract, the snippet that runs."""
    monkeypatch.chdir(tmp_path)
    options = ["--model", "tiny", "--dimensions", "64", "--chunk-tokens", "none,32", "--json"]
    run = CliRunner().invoke(app, ["compare", str(folder), *options])
    assert run.exit_code == 0, run.output
    said = json.loads(run.stdout)
    assert len(said["rows"]) == 4
    assert {row["chunk_tokens"] for row in said["rows"]} == {"none", "32"}
    assert [row[""] for row in said["rows"]].count("*") == 1
    assert said["contract"]["dimensions"] == 64
    assert (tmp_path / "compare.svg").is_file()


def test_the_command_refuses_what_is_no_number(folder):
    """A value that is no number is a ConfigError that names the option."""
    run = CliRunner().invoke(
        app, ["compare", str(folder), "--model", "tiny", "--dimensions", "64,wide"]
    )
    assert isinstance(run.exception, ConfigError)
    assert "dimensions is 'wide', a str; give int" in str(run.exception)


def test_the_command_refuses_a_chart_without_a_folder(folder, tmp_path):
    """Before anything is measured: a chart that could not be written is a ConfigError."""
    options = ["--model", "./nowhere", "--chart", str(tmp_path / "no" / "chart")]
    run = CliRunner().invoke(app, ["compare", str(folder), *options])
    assert isinstance(run.exception, ConfigError)
    assert "would stand in" in str(run.exception)
