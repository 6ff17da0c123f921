"""The verb `bench`, run as a user runs it, on `tiny` and on four random layers."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from qwen3_embedding_integrations import ConfigError
from qwen3_embedding_integrations.bench import contender
from qwen3_embedding_integrations.bench.contender import install_peer
from qwen3_embedding_integrations.bench.machine import FLAGS
from qwen3_embedding_integrations.bench.options import BenchOptions
from qwen3_embedding_integrations.bench.ours import COMPILED, REST, STAGES, TOKENISE, stage_of
from qwen3_embedding_integrations.bench.run import run_bench
from qwen3_embedding_integrations.bench.workload import make_workload
from qwen3_embedding_integrations.cli import app
from qwen3_embedding_integrations.core.tokenizer import Tokenizer
from qwen3_embedding_integrations.errors import EngineError
from tests.test_cli import run

SMALL = ["--texts", "6", "--rounds", "2", "--queries", "3"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], Path]:
    """What a small run printed, its JSON, and the folder with the chart."""
    out = tmp_path_factory.mktemp("results")
    options = ["--model", "tiny", "--modes", "int8,float32", "--lengths", "1,16", *SMALL]
    done = run("bench", *options, "--out", out, "--work-dir", out / "work")
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((out / "bench-cpu.json").read_text()), out


def spreads(value: Any) -> list[dict[str, Any]]:
    """Return every spread in a result, however deep."""
    if isinstance(value, dict):
        if "rounds" in value and "median" in value:
            return [value]
        value = list(value.values())
    return [one for part in value for one in spreads(part)] if isinstance(value, list) else []


def test_the_machine_is_described_and_measured(result: tuple[str, dict[str, Any], Path]):
    """The JSON says when, how and on what it was measured, and what that machine can do."""
    _, facts, _ = result
    assert facts["command"].startswith("qwen3-embedding bench --model tiny --modes int8,float32")
    assert facts["processor"]
    assert facts["cores"] >= 1
    assert set(facts["flags"]) == set(FLAGS)
    assert facts["versions"]["torch"]
    for name, rates in facts["gemm_gflops"].items():
        assert set(rates) == {"1", "16", "128", "1024"}
        assert rates["1024"] > 1, f"{name}: {rates}"
    assert facts["bandwidth_gb_s"] == max(one["bandwidth_gb_s"] for one in facts["rate_rounds"])
    assert len(facts["rate_rounds"]) == 2


def test_every_mode_is_measured_in_every_way(result: tuple[str, dict[str, Any], Path]):
    """Each of our modes has throughput, fidelity, latency, memory, lengths and stages."""
    _, facts, _ = result
    assert [(one["engine"], one["mode"]) for one in facts["engines"]] == [
        ("ours", "int8"),
        ("ours", "float32"),
    ]
    for one in facts["engines"]:
        assert len(one["documents_tokens_per_s"]["rounds"]) == 2
        assert [len(times) for times in one["query_latency_ms"]["rounds"]] == [3, 3]
        assert [len(times) for times in one["query_from_string_ms"]["rounds"]] == [3, 3]
        assert one["concurrent_speedup"]["median"] > 0
        assert [entry["length"] for entry in one["lengths"]] == [1, 16]
        stages = one["stages"]["stages_ms"]
        assert set(stages) == {TOKENISE, *STAGES, REST, COMPILED}
        assert all(stages[name] > 0 for name in {TOKENISE, "attention", "embedding, gathers", REST})
        is_int8 = one["mode"] == "int8"
        assert stages[COMPILED] >= 0
        assert is_int8 or stages["matrix products"] > 0
        assert one["stages"]["num_threads"] == 1
        assert one["load_s"] > 0
        peaks = [one["peak_resident_bytes"], *(e["peak_resident_bytes"] for e in one["lengths"])]
        assert min(peaks) > 50e6, f"{one['mode']}: peaks of {peaks} bytes"
    int8, float32 = (one["cosine"] for one in facts["engines"])
    assert float32["min"] > 0.999999
    assert 0.99 < int8["min"] <= int8["mean"] < 1


def test_medians_are_of_the_rounds(result: tuple[str, dict[str, Any], Path]):
    """Each median, minimum and maximum is that of the rounds beside it."""
    found = spreads(result[1]["engines"])
    assert len(found) == 2 * 6
    for spread in found:
        values = np.ravel(spread["rounds"]).tolist()
        assert spread["median"] == statistics.median(values)
        assert (spread["min"], spread["max"]) == (min(values), max(values))


def test_shares_are_of_what_the_machine_can_do(result: tuple[str, dict[str, Any], Path]):
    """The share of the GEMM rate counts two operations a parameter and token."""
    _, facts, _ = result
    shape = facts["model"]
    heads = 2 * shape["num_heads"] + 2 * shape["num_kv_heads"]
    layer = shape["hidden_size"] * (heads * shape["head_dim"] + 3 * shape["intermediate_size"])
    assert facts["matrix_parameters"] == layer * shape["num_layers"]
    for one in facts["engines"]:
        best = 1e9 * max(facts["gemm_gflops"][one["mode"]].values())
        used = one["documents_tokens_per_s"]["median"] * 2 * facts["matrix_parameters"]
        assert one["gemm_share"] == pytest.approx(used / best)


def test_the_terminal_shows_all(result: tuple[str, dict[str, Any], Path]):
    """Five tables are printed, and a chart is drawn twice."""
    printed, _, out = result
    for words in ("GFLOP/s", "6 documents", "One query", "Texts of one length", "on one thread"):
        assert words in printed, printed
    assert printed.count("ours int8") >= 2
    assert (out / "bench-cpu.svg").read_text().startswith("<?xml")
    assert (out / "bench-cpu.png").read_bytes().startswith(b"\x89PNG")


def test_peers_are_measured_beside_ours(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """sentence-transformers gets our float32 vectors; a peer whose process ends has its reason."""
    monkeypatch.setattr(contender, "BATCH_SIZES", (1, 8))  # each imports it anew: ten seconds
    (tmp_path / "venv-sentence-transformers").symlink_to(sys.prefix)
    broken = tmp_path / "venv-onnxruntime" / "bin" / "python"
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/bin/sh\necho no such library >&2\nexit 3\n")
    broken.chmod(0o755)
    options = BenchOptions(
        model=str(small_checkpoint),
        modes=("float32",),
        against=("onnxruntime", "sentence-transformers"),
        num_texts=5,
        num_rounds=1,
        num_queries=2,
        lengths=(16,),
        out=tmp_path / "out",
        work_dir=tmp_path,
    )
    steps: list[str] = []
    ours, failed, peer = run_bench(options, "a test", steps.append)["engines"]
    assert "status 3: no such library" in failed["failed"]
    assert "failed" not in peer, peer
    assert peer["batch_size"] in peer["batch_size_trials_s"]
    assert set(peer["batch_size_trials_s"]) <= {1, 8}
    assert peer["cosine"]["min"] >= 0.9999, peer["cosine"]
    assert len(peer["query_latency_ms"]["rounds"][0]) == 2
    assert peer["peak_resident_bytes"] >= peer["resident_bytes"] > 0
    assert ours["cosine"]["min"] >= 0.9999
    assert "round 1 of 1: sentence-transformers float32" in steps


def test_a_failed_installation_leaves_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """pip's failure is an EngineError with pip's last words; the environment is removed."""
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null"}
    for name, value in offline.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EngineError, match=r"cannot be installed: ERROR: .*llama-cpp-python"):
        install_peer("llama-cpp", tmp_path)
    assert not (tmp_path / "venv-llama-cpp").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--against", "vllm"], "'vllm'; choose one of 'sentence-transformers', 'onnxruntime'"),
        (["--modes", "int4"], "'int4'; choose one of 'int8', 'bfloat16', 'float32'"),
        (["--modes", "int8", "--against", "sentence-transformers"], "runs in float32, bfloat16"),
        (["--rounds", "0"], "rounds is 0"),
        (["--lengths", "1,many"], "'many'"),
        (["--model", "tiny", "--lengths", "1,4096"], "reads 2048 tokens at most"),
    ],
)
def test_wrong_options_are_refused(options: list[str], message: str):
    """What cannot be measured is refused before anything is made, with what is allowed."""
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(app, ["bench", *options], catch_exceptions=False)


def test_without_matplotlib_nothing_is_measured():
    """The extra is named at once, not after an hour."""
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.argv = ['qwen3-embedding', 'bench']\n"
        "from qwen3_embedding_integrations.cli import main; main()"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "qwen3-embedding-integrations[bench]" in " ".join(done.stderr.split())


def test_the_workload_is_the_protocols(small_checkpoint: Path):
    """Documents are unique, of 3 to 1,024 tokens; a query is 14 tokens after 19 of instruction."""
    tokenizer = Tokenizer(small_checkpoint)
    workload = make_workload(tokenizer, num_documents=96, num_queries=20)
    lengths = [len(ids) for ids in workload.documents]
    assert 3 <= min(lengths) < max(lengths) <= 1024
    assert 100 < statistics.median(lengths) < 145
    assert len(set(map(tuple, workload.documents))) == 96
    assert all(ids[-1] == 151643 and max(ids[:-1]) < 150_000 for ids in workload.documents)
    assert len(set(workload.queries + workload.concurrent_queries)) == 36
    whole = workload.whole_query_ids
    assert {len(ids) for ids in whole} == {19 + 14 + 1}
    prompt = "Instruct: Given a web search query, retrieve relevant passages that answer the query"
    texts = [f"{prompt}\nQuery:{query}" for query in workload.queries]
    assert [ids.tolist() for ids in tokenizer.encode(texts)] == whole


def test_operations_have_their_stage():
    """Products, attention and gathers are told apart by the names of torch's operations."""
    assert stage_of("onednn::qlinear_pointwise") == "matrix products"
    assert stage_of("mkldnn::_linear_pointwise") == "matrix products"
    assert stage_of("aten::addmm") == "matrix products"
    assert stage_of("aten::bmm") == "attention"
    assert stage_of("aten::_scaled_dot_product_flash_attention_for_cpu") == "attention"
    assert stage_of("aten::index_select") == "embedding, gathers"
    assert stage_of("aten::linalg_vector_norm") == REST
