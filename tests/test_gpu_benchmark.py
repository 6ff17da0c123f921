"""The GPU benchmark, run as its users run it, on a small shape and this machine's processor."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu_engines import Transformers
from benchmarks.gpu_workload import MIXES, SHAPES, tera_operations
from qwen3_embedding_integrations.bench.random_model import write_checkpoint
from qwen3_embedding_integrations.core.checkpoint import read_architecture
from tests.checkpoints import SHAPE_SMALL
from tests.oracle import largest_difference, vectors_of_ids

ROOT = Path(__file__).parent.parent
PEERS = ("sentence-transformers bfloat16", "transformers bfloat16")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of a trial run's results, and the process."""
    folder = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--shape", "small"]
    command += ["--out", str(folder), "--work", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    return folder, done


@pytest.fixture(scope="module")
def result(run) -> dict[str, Any]:
    """The JSON of the trial run."""
    return json.loads((run[0] / "gpu-small.json").read_text(encoding="utf-8"))


def test_every_section_is_measured(result):
    """Each engine has its rate for every mix, its latency, and what many callers get."""
    for name in ("ours bfloat16", *PEERS):
        measured = result["engines"][name]
        for mix in MIXES:
            row = measured[mix.name]
            assert row["tokens_per_s"] == pytest.approx(row["tokens"] / row["seconds"]), name
            assert row["texts"] > 0
        assert 0 < measured["one query"]["p50_ms"] <= measured["one query"]["p99_ms"]
        assert measured["queries in one call"]["queries_per_s"] > 0
        assert measured["strings"]["tokens_per_s"] > 0
    for name in ("ours bfloat16", PEERS[0]):
        callers = result["engines"][name]["concurrent queries"]
        assert list(callers) == ["1", "4"]
    assert set(result["budget_sweep"]) == {"256", "2048"}


def test_nothing_failed_in_silence(result):
    """No section holds a failure, and what this machine cannot do is named with its reason."""
    text = json.dumps(result)
    assert '"failed"' not in text, text[text.index('"failed"') - 200 :][:600]
    assert "fp8" in result["engines"]["ours fp8"]["skipped"]


def test_every_engine_got_the_same_texts(result):
    """The numbers of texts and tokens of a mix are the same for all engines."""
    for mix in MIXES:
        rows = [result["engines"][name][mix.name] for name in ("ours bfloat16", *PEERS)]
        assert len({(row["texts"], row["tokens"]) for row in rows}) == 1, mix.name


def test_correctness_is_measured_against_float32(result):
    """Every engine computes the same model: errors of bfloat16's size, ours no larger."""
    for name in ("ours bfloat16", *PEERS):
        found = result["engines"][name]["correctness"]
        assert found["least_cosine"] > 0.999, name
        assert 0 < found["error"]["mean"] < 0.05, name
    ours = result["engines"]["ours bfloat16"]["correctness"]
    assert ours["least_cosine_prefix_reused_to_read"] > 0.999
    assert result["verdict"]["is_near_enough"] is True
    assert set(result["verdict"]["times_as_fast_as"]) == set(PEERS)


def test_the_ceilings_are_measured(result):
    """The machine's bandwidth and the rate of each of the model's products are there."""
    ceilings = result["ceilings"]
    assert ceilings["copy_tb_s"] > 0
    assert ceilings["square_product_tflops"]["bfloat16"] > 0
    products = {row["product"] for row in ceilings["model_products"]}
    assert products == {"qkv", "o", "gate_up", "down"}


def test_the_run_says_what_it_was(run, result):
    """The JSON names command, versions and device, and a chart stands beside it."""
    folder, _ = run
    assert result["command"].startswith("python -m benchmarks.gpu --device cpu --shape small")
    assert result["versions"]["transformers"]
    assert result["device"] == "cpu"
    assert (folder / "gpu-small.svg").stat().st_size > 1000
    assert (folder / "gpu-small.png").stat().st_size > 1000


def test_the_peer_computes_the_model_itself(tmp_path):
    """transformers as the benchmark batches it gives each text the vector it has alone."""
    folder = write_checkpoint(tmp_path / "model", SHAPE_SMALL)
    rng = np.random.default_rng(0)
    texts = [rng.integers(1000, size=length).astype(np.int32) for length in (3, 40, 40, 7, 90)]
    engine = Transformers(folder, "cpu", "float32")
    difference = largest_difference(engine.embed(texts, 3), vectors_of_ids(folder, texts))
    assert difference < 2e-5, f"{difference:.1e}"


def test_the_arithmetic_is_the_models(tmp_path):
    """Operations a token are those of the roofline: 0.881 GFLOP and attention by length."""
    folder = tmp_path / "shape"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPES["0.6b"]))
    architecture = read_architecture(folder)
    one = tera_operations(architecture, [1]) * 1e3
    assert math.isclose(one, 0.881, abs_tol=0.001), one
    attention = tera_operations(architecture, [512]) * 1e3 / 512 - one
    assert math.isclose(attention, 0.059, abs_tol=0.001), attention


def test_without_a_card_it_says_so(tmp_path):
    """Asked for a card that is not there, it says what can be tried instead."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--device cpu --shape small" in done.stderr
