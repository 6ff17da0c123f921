"""Plans: the arithmetic against other arithmetic, rates against the committed measurements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qwen3_embedding_integrations import ConfigError, EncoderConfig, InputError, Qwen3Encoder
from qwen3_embedding_integrations.cli import app
from qwen3_embedding_integrations.demo import load_texts
from qwen3_embedding_integrations.plan import (
    EFFICIENCY,
    SIZES,
    Rate,
    known_rates,
    make_plan,
    measure_rate,
    read_rates,
)

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
# hidden, inner, layers, query heads, key heads: config.json of the three models
CONFIGS = {
    "0.6B": (1024, 3072, 28, 16, 8),
    "4B": (2560, 9728, 36, 32, 8),
    "8B": (4096, 12288, 36, 32, 8),
}
RATE = Rate("a device", 1000.0, 100.0, "a test")


@pytest.mark.parametrize("size", CONFIGS)
def test_operations_of_a_token_are_those_of_the_config(size: str) -> None:
    """Matrices as config.json sizes them, and attention summed over each token's keys."""
    hidden, inner, layers, heads, key_heads = CONFIGS[size]
    matrices = layers * hidden * (128 * (2 * heads + 2 * key_heads) + 3 * inner)
    attention = layers * heads * sum(4 * 128 * keys for keys in range(1, 513)) / 512
    expected = 2 * matrices + attention
    assert SIZES[size].flops_per_token(512) == pytest.approx(expected, rel=1e-3)
    assert SIZES[size].width == hidden


def test_time_and_bytes_by_hand() -> None:
    """A million documents of 100 tokens at 1,000 tokens/s, in 256 dimensions of 2 bytes."""
    plan = make_plan(RATE, num_documents=1e6, num_tokens=100, dimensions=256, storage="float16")
    assert plan.hours == pytest.approx(1e6 * 100 / 1000 / 3600)
    assert plan.vector_bytes == 1e6 * 256 * 2
    assert plan.total_tokens == 1e8
    binary = make_plan(RATE, num_documents=8, num_tokens=1, storage="binary")
    assert binary.vector_bytes == 1024


def test_longer_texts_and_larger_models_cost_their_operations() -> None:
    """The rate falls by the ratio of operations per token, in length and in size."""
    longer = make_plan(RATE, num_documents=1, num_tokens=8192)
    ratio = (0.881 + 0.940) / (0.881 + 0.0116)  # GFLOP/token at 8,192 and 100 tokens
    assert longer.tokens_per_s == pytest.approx(1000 / ratio, rel=2e-3)
    larger = make_plan(RATE, num_documents=1, num_tokens=100, size="8B")
    assert larger.tokens_per_s == pytest.approx(1000 * 0.8926 / 13.922, rel=2e-3)


def test_devices_for_a_deadline_are_the_fewest_that_keep_it() -> None:
    """One fewer would be late, whatever the deadline; one device loses nothing to others."""
    corpus = {"num_documents": 1e7, "num_tokens": 100}
    for hours in (1, 7.3, 100, 277.7, 277.8, 1000):
        plan = make_plan(RATE, **corpus, within_hours=hours)
        assert plan.hours <= hours
        if plan.num_devices > 2:
            fewer = make_plan(RATE, **corpus, num_devices=plan.num_devices - 1)
            assert fewer.hours > hours
    assert make_plan(RATE, **corpus, within_hours=1000).num_devices == 1
    two = make_plan(RATE, **corpus, num_devices=2)
    assert two.hours == pytest.approx(1e9 / (2 * EFFICIENCY * 1000) / 3600)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_documents": 0}, "num_documents is 0"),
        ({"num_documents": float("inf")}, "num_documents is inf"),
        ({"num_tokens": 40_000}, "pieces"),
        ({"size": "7B"}, "'0.6B', '4B', '8B'"),
        ({"storage": "float8"}, "'float32', 'float16', 'int8', 'binary'"),
        ({"dimensions": 2048}, "from 32 to 1024"),
        ({"size": None}, "dimensions"),
        ({"num_devices": 0}, "num_devices is 0"),
        ({"within_hours": 0}, "within_hours is 0"),
    ],
)
def test_impossible_values_are_refused(options: dict[str, object], message: str) -> None:
    """Each with its value and what is allowed."""
    with pytest.raises(ConfigError, match=message):
        make_plan(RATE, **({"num_documents": 1, "num_tokens": 1} | options))  # type: ignore[arg-type]


def test_the_known_rates_are_the_committed_measurements() -> None:
    """Every rate that is no estimate stands in the results file that it names."""
    committed = read_rates(RESULTS / "bench-cpu.json")
    measured = [rate for rate in known_rates() if "ESTIMATE" not in rate.source]
    assert len(measured) == len(committed)
    for known, rate in zip(measured, committed, strict=True):
        assert known.device.split()[-1] == rate.device.split()[-1]
        assert known.tokens_per_s == pytest.approx(rate.tokens_per_s, abs=0.1)
        assert known.num_tokens == pytest.approx(rate.num_tokens, abs=0.1)


def test_other_files_are_no_rates(tmp_path: Path) -> None:
    """A file that is not there, or not a report, is refused with its name."""
    (tmp_path / "empty.json").write_text('{"engines": []}')
    (tmp_path / "wrong.json").write_text("no JSON")
    for name in ("missing.json", "wrong.json", "empty.json"):
        with pytest.raises(InputError, match=name):
            read_rates(tmp_path / name)


def test_a_measured_rate_counts_what_was_read(tiny: Qwen3Encoder) -> None:
    """Mean length as the tokenizer counts it; an empty sample is refused."""
    texts = [text.document for text in load_texts()[:20]]
    rate = measure_rate(tiny, lambda: texts, seconds=0.01)
    assert rate.num_tokens == sum(map(tiny.count_tokens, texts)) / 20
    assert rate.tokens_per_s > 0
    with pytest.raises(InputError, match="no text"):
        measure_rate(tiny, list)


def test_the_command(tmp_path: Path) -> None:
    """`plan` shows a row for each rate and what it rests on; --sample measures one here."""
    run = CliRunner().invoke(app, ["plan", "--documents", "1e9", "--tokens", "300", "--json"])
    report = json.loads(run.stdout)
    assert len(report["plans"]) == len(known_rates())
    assert report["plans"][0]["vector_bytes"] == 1e9 * 1024 * 4
    assert any("ESTIMATE" in line for line in report["assumptions"])
    shown = CliRunner().invoke(
        app, ["plan", "--documents", "1e9", "--tokens", "300", "--within-hours", "24"]
    )
    assert shown.exit_code == 0
    assert "HNSW" in shown.stdout
    (tmp_path / "a.txt").write_text("A short text.\n" * 3, encoding="utf-8")
    sample = ["--sample", str(tmp_path), "--model", "tiny", "--dimensions", "64"]
    run = CliRunner().invoke(app, ["plan", "--documents", "1000", *sample, "--json"])
    assert run.exit_code == 0, run.output
    (plan,) = json.loads(run.stdout)["plans"]
    encoder = Qwen3Encoder(EncoderConfig(model="tiny"))
    with encoder:
        assert plan["total_tokens"] == 1000 * encoder.count_tokens(("A short text.\n" * 3).strip())
    assert plan["vector_bytes"] == 1000 * 64 * 4


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--tokens", "3", "--sample", "x"],
        ["--tokens", "3", "--model", "tiny"],
        ["--tokens", "3", "--devices", "2", "--within-hours", "1"],
    ],
)
def test_options_that_do_not_go_together(arguments: list[str]) -> None:
    """Neither length nor sample, both, a model without a sample, two answers at once: refused."""
    run = CliRunner().invoke(app, ["plan", "--documents", "10", *arguments])
    assert isinstance(run.exception, ConfigError)
