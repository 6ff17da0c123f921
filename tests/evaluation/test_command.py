"""`qwen3-embedding evaluate`, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen3_embedding_integrations import Qwen3Encoder
from qwen3_embedding_integrations.evaluation import evaluate, read_dataset, read_results
from tests.evaluation.sets import DATA, write_help
from tests.test_cli import run

TINY = ("--model", "tiny", "--dtype", "float32")


def test_sets_are_measured_and_tested_against_a_baseline(
    tiny: Qwen3Encoder, tmp_path: Path
) -> None:
    """The command prints what the functions return, and the gain over an earlier run."""
    folder, before = write_help(tmp_path / "help"), tmp_path / "before.jsonl"
    sets = (DATA / "pairs.tsv", folder)
    first = run("evaluate", *sets, *TINY, "--per-query", before, "--json")
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    for path, one in zip(sets, found, strict=True):
        expected = evaluate(tiny, read_dataset(path))
        assert one["dataset"] == expected.dataset
        assert one["items"] == len(expected.results.ids)
        assert one["gains"] is None
        assert one["settings"]["contract"]["model"] == "tiny"
        for name, metric in expected.metrics.items():
            assert one["metrics"][name] == pytest.approx(metric._asdict(), abs=1e-5), name
    kept = read_results(before)
    assert [len(one.ids) for one in kept.values()] == [24, 20]
    assert kept["help"].values["ndcg@10"].mean() == pytest.approx(
        found[1]["metrics"]["ndcg@10"]["value"]
    )
    second = run("evaluate", folder, *TINY, "--dimensions", 32, "--baseline", before)
    assert second.returncode == 0, second.stderr
    assert "gain" in second.stdout
    again = run("evaluate", folder, *TINY, "--dimensions", 32, "--baseline", before, "--json")
    gains = json.loads(again.stdout)[0]["gains"]["ndcg@10"]
    assert gains["difference"] < 0
    assert gains["low"] <= gains["difference"] <= gains["high"]
    assert f"{gains['difference']:+.4f}" in second.stdout


def test_bad_data_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    """A bad row ends the command with its place; so do one name twice and another's baseline."""
    path = tmp_path / "pairs.tsv"
    path.write_text("sentence1\tsentence2\tlabel\na\t\t1\na\tb\t0\n", encoding="utf-8")
    refused = run("evaluate", path, "--model", "no/such-model")
    assert refused.returncode == 2
    assert "pairs.tsv:2 has an empty sentence2" in "".join(refused.stderr.split("\n"))
    path.write_text("sentence1\tsentence2\tlabel\na\tb\t1\na\tb\t0\n", encoding="utf-8")
    nowhere = run(
        "evaluate", path, "--model", "no/such-model", "--per-query", tmp_path / "a/b.jsonl"
    )
    assert nowhere.returncode == 2
    assert "which is not there" in " ".join(nowhere.stderr.split())
    twice = run("evaluate", DATA / "pairs.tsv", DATA / "pairs.tsv", "--model", "no/such-model")
    assert twice.returncode == 2
    assert "one name" in twice.stderr
    (tmp_path / "before.jsonl").write_text('{"dataset": "x", "id": "1", "ndcg@10": "?"}\n')
    wrong = run("evaluate", DATA / "pairs.tsv", *TINY, "--baseline", tmp_path / "before.jsonl")
    assert wrong.returncode == 2
    assert "is no file of results" in wrong.stderr
