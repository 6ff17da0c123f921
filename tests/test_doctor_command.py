"""The verb doctor, run as a user runs it: table, JSON, exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.backends import TransformersBackend, of_encoder, serving
from tests.commands import run_here


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `qwen3-embedding doctor` as a user does."""
    command = [sys.executable, "-m", "qwen3_embedding_integrations", "doctor", *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1", "COLUMNS": "120"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=300
    )


def test_the_command_on_a_right_model() -> None:
    """A right model exits with 0; the report says what was chosen and why."""
    done = run("--model", "tiny", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["is_right"] is True
    assert report["faults"] == []
    assert report["known"] == "weights"
    assert any("attention:" in line for line in report["machine"]["choices"])
    assert report["machine"]["versions"]["torch"] == torch.__version__
    assert {check["verdict"] for check in report["checks"]} == {"right"}
    assert "attention" not in done.stderr


def test_the_command_on_a_wrong_server() -> None:
    """A wrong server exits with 1 and a table that names fault and remedy."""
    with serving(TransformersBackend(pool="mean")) as url:
        done = run("--base-url", url, "--model", "tiny", "--max-tokens", "200")
    assert done.returncode == 1, done.stderr
    assert "mean pooling: the mean of all tokens" in done.stdout
    assert "pool the last token" in done.stdout
    assert '"versions"' in done.stdout


def test_the_command_that_cannot_ask() -> None:
    """What cannot be asked exits with 2 and says why on standard error, one line."""
    with serving(of_encoder(lambda texts: np.zeros((len(texts), 8)))) as url:
        pass
    done = run("--base-url", url, "--model", "tiny")
    assert done.returncode == 2
    assert "RemoteError" in done.stderr
    assert done.stdout == ""
    done = run_here("doctor", "--base-url", url, "--dtype", "float32", "--model", "tiny")
    assert done.returncode == 2
    assert "leave out dtype" in " ".join(done.stderr.split())


@pytest.mark.weights
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_real_weights_are_right(dtype: str) -> None:
    """The command finds nothing wrong with the official weights, and has values for them."""
    done = run("--model", os.environ["QWEN3_WEIGHTS"], "--dtype", dtype, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0, report["faults"]
    verdicts = {check["name"]: check["verdict"] for check in report["checks"]}
    assert verdicts["values of the weights"] == verdicts["published values"] == "right"
