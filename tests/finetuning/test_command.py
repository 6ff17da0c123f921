"""The verb `finetune`."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from qwen3_embedding_integrations import ConfigError
from qwen3_embedding_integrations.cli import app
from tests.finetuning.lessons import pairs_config

RUNNER = CliRunner()


def test_the_verb_tunes_and_says_what_it_gained(tmp_path):
    """The options, and any other by --set, make an adapter; --json gives what it came to."""
    config = pairs_config(tmp_path)
    files = ["--train", config.train, "--dev", config.dev or "", "--out", config.out]
    options = ["--task", "pairs", "--model", "tiny", "--set", "epochs=1", "--set", "device=cpu"]
    done = RUNNER.invoke(app, ["finetune", *files, *options, "--set", 'projections=["q_proj"]'])
    assert done.exit_code == 0, done.output
    assert "trainable params: 18,432 ||" in done.output  # 3 layers, rank 8, 256 + 512
    assert "average_precision" in done.output
    record = json.loads((tmp_path / "adapter/finetune.json").read_text(encoding="utf-8"))
    assert record["config"]["epochs"] == 1
    assert record["config"]["projections"] == ["q_proj"]


def test_what_is_no_option_is_refused():
    """A setting without a value, and one that does not exist, are ConfigErrors."""
    needed = ["finetune", "--train", "a", "--out", "b", "--task", "pairs", "--set"]
    for setting, message in (("rank", "give NAME=VALUE"), ("ranks=4", "did you mean 'rank'")):
        failed = RUNNER.invoke(app, [*needed, setting])
        assert isinstance(failed.exception, ConfigError)
        assert message in str(failed.exception)
