"""Whole runs: they learn, they resume to the bit after a kill, and what they write is complete."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score
from transformers import AutoModel, AutoTokenizer

from qwen3_embedding_integrations import ConfigError, EncoderConfig, ModelLoadError, Qwen3Encoder
from qwen3_embedding_integrations.core.checkpoint import locate_model
from qwen3_embedding_integrations.core.prompts import format_queries
from qwen3_embedding_integrations.finetuning import FinetuneConfig, finetune
from qwen3_embedding_integrations.finetuning.checkpoints import newest_whole, seal
from qwen3_embedding_integrations.finetuning.config import SIMILARITY
from qwen3_embedding_integrations.finetuning.data import read_material
from qwen3_embedding_integrations.finetuning.run import _open
from tests.finetuning.lessons import pairs_config, retrieval_config
from tests.oracle import largest_difference

ROOT = Path(__file__).parents[2]
# A process that is killed when it opens the last file but one of the fourth checkpoint.
KILLED = """
import json, os, signal, sys, torch
def kill(event, arguments):
    if event == "open" and str(arguments[0]).endswith("checkpoint-12/trainer_state.json"):
        os.kill(os.getpid(), signal.SIGKILL)
torch.set_num_threads(int(sys.argv[2]))
sys.addaudithook(kill)
from qwen3_embedding_integrations.finetuning import FinetuneConfig, finetune
finetune(FinetuneConfig(**json.loads(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the options of a run on pairs that was never interrupted, what it came to and told."""
    config = pairs_config(tmp_path_factory.mktemp("run"), checkpoint_steps=3)
    told: list[dict] = []
    return config, finetune(config, on_progress=told.append), told


def test_a_run_learns_the_pairs(run):
    """Average precision on the held-out pairs rises, and the adapter is that of the best step."""
    config, report, told = run
    before, after = (one["dev"]["average_precision"].value for one in (report.before, report.after))
    assert after > before + 0.1
    curve = [one["eval_average_precision"] for one in told if "eval_average_precision" in one]
    assert after == pytest.approx(max(curve), abs=1e-9)
    assert report.steps == 20
    assert report.best_step % 3 == 0 or report.best_step == 20
    assert [one["step"] for one in told if len(one) == 2] == list(range(1, 21))
    assert config.out == str(report.folder)


def test_the_folder_is_complete(run):
    """An adapter in PEFT's layout, that names its model; the record; the curves; no checkpoints."""
    config, report, _ = run
    files = {path.name for path in report.folder.iterdir()}
    expected = {"adapter_config.json", "adapter_model.safetensors", "finetune.json", "curves.png"}
    assert files - {"README.md"} == expected
    assert (
        json.loads((report.folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "tiny"
    )
    record = json.loads((report.folder / "finetune.json").read_text(encoding="utf-8"))
    assert FinetuneConfig(**record["config"]) == config
    assert set(record["data"]) == {config.train, config.dev}
    assert record["query_template"] == f"Instruct: {SIMILARITY}\nQuery:{{query}}"
    assert record["report"]["after"]["dev"]["f1"]["value"] == report.after["dev"]["f1"].value


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21.2
def test_peft_and_the_folded_encoder_give_what_was_measured(run):
    """PEFT on transformers, and our encoder with lora=, have the trained model's vectors.

    And so the average precision that the report says.
    """
    config, report, _ = run
    base = locate_model(EncoderConfig(model="tiny").engine)
    tokenizer = AutoTokenizer.from_pretrained(base)
    plain = AutoModel.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, str(report.folder)).eval()
    rows = [line.split("\t") for line in Path(config.dev).read_text().splitlines()[1:]]
    sides = [row[0] for row in rows], [row[1] for row in rows]
    folded = EncoderConfig(model="tiny", dtype="float32", lora=str(report.folder))
    vectors = []
    with Qwen3Encoder(folded) as encoder, torch.no_grad():
        for texts in sides:
            hidden = [
                model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1]
                for text in format_queries(texts, SIMILARITY)
            ]
            vectors.append(torch.nn.functional.normalize(torch.stack(hidden)).numpy())
            ours = encoder.encode_queries(texts, instruction=SIMILARITY)
            assert largest_difference(ours, vectors[-1]) < 1e-5
    cosines = (vectors[0] * vectors[1]).sum(axis=1)
    found = average_precision_score([int(row[2]) for row in rows], cosines)
    assert found == pytest.approx(report.after["dev"]["average_precision"].value, abs=1e-6)


def test_a_killed_run_ends_in_the_same_weights(run, tmp_path, caplog):
    """After kill -9 while a checkpoint is written, the run resumes from the one before.

    In the middle of an epoch, with dropout: every weight is equal to the bit, and every metric.
    """
    whole, expected, _ = run
    config = replace(whole, out=str(tmp_path / "adapter"))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(asdict(config)), str(torch.get_num_threads())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    work = tmp_path / "adapter/checkpoints"
    assert (work / "checkpoint-12/adapter_model.safetensors").is_file()  # torn, not missing
    steps: list[int] = []
    report = finetune(config, resume=True, on_progress=lambda now: steps.append(now["step"]))
    assert min(steps) == 10
    assert "checkpoint-12 is not whole" in caplog.text
    ours, theirs = (
        load_file(Path(one.out, "adapter_model.safetensors")) for one in (config, whole)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert report.after == expected.after
    assert report.best_step == expected.best_step


def test_a_torn_checkpoint_is_never_used(tmp_path):
    """A file cut, changed or gone, or no seal: the checkpoint is deleted, the one before used."""
    for n in (5, 10, 20, 30, 40):
        (folder := tmp_path / f"checkpoint-{n}").mkdir()
        (folder / "weights").write_bytes(b"whole" * 1000)
        if n != 40:
            seal(folder)
    assert newest_whole(tmp_path) == str(tmp_path / "checkpoint-30")
    assert not (tmp_path / "checkpoint-40").exists()
    (tmp_path / "checkpoint-30/weights").write_bytes(b"whole" * 999)
    assert newest_whole(tmp_path) == str(tmp_path / "checkpoint-20")
    (tmp_path / "checkpoint-20/weights").unlink()
    assert newest_whole(tmp_path) == str(tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-10/manifest.json").write_text('{"wei')
    assert newest_whole(tmp_path) == str(tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-5/manifest.json").unlink()
    assert newest_whole(tmp_path) is None


def test_a_run_resumes_only_as_it_began(run, tmp_path):
    """Other options or data than the run's, a finished folder, an empty or foreign one: refused."""
    finished, _, _ = run
    with pytest.raises(ConfigError, match="finished adapter"):
        finetune(finished, resume=True)
    config = replace(finished, out=str(tmp_path / "adapter"))
    material = read_material(config)
    with pytest.raises(ConfigError, match="no run to resume"):
        _open(Path(config.out), config, material, resume=True)
    _open(Path(config.out), replace(config, rank=4), material, resume=False)
    _open(Path(config.out), config, material, resume=False)  # nothing was learnt yet: begun anew
    (tmp_path / "adapter/checkpoints/checkpoint-3").mkdir()
    with pytest.raises(ConfigError, match="not empty"):
        _open(Path(config.out), config, material, resume=False)
    _open(Path(config.out), config, material, resume=True)
    with pytest.raises(ConfigError, match=r"rank was 8 .* is 4"):
        _open(Path(config.out), replace(config, rank=4), material, resume=True)
    other = replace(material, hashes=dict.fromkeys(material.hashes, "0"))
    with pytest.raises(ConfigError, match=r"dev.tsv was"):
        _open(Path(config.out), config, other, resume=True)


def test_retrieval_learns_and_stops_early(tmp_path):
    """Mined negatives, GradCache and all widths; no better for one evaluation, and it stops."""
    config = retrieval_config(tmp_path, learning_rate=1e-8, epochs=9, patience=1)
    report = finetune(config)
    assert report.steps == 4  # the first epoch is the best so far, the second no better
    assert report.decided_by == "ndcg@10"
    assert set(report.after["dev"]) == {"ndcg@10", "recall@10", "recall@100", "mrr@10"}


def test_a_folder_without_weights_is_refused(tmp_path):
    """A folder that was exported, say: an error of ours before anything is written."""
    tiny = locate_model(EncoderConfig(model="tiny").engine)
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    config = pairs_config(tmp_path, model=str(tmp_path))
    with pytest.raises(ModelLoadError, match=r"no model.safetensors"):
        finetune(config)
    assert not Path(config.out).exists()


def test_texts_that_are_cut_are_counted(tmp_path, caplog):
    """What max_length cuts is warned of, as our own tokenizer counts, and stands in the report."""
    config = pairs_config(tmp_path, epochs=1, max_length=24)
    with Qwen3Encoder("tiny") as encoder:
        texts = [
            text
            for path in (config.train, config.dev)
            for line in Path(path).read_text(encoding="utf-8").splitlines()[1:]
            for text in format_queries(line.split("\t")[:2], SIMILARITY)
        ]
        expected = sum(encoder.count_tokens(text) > 24 for text in texts)
    assert 0 < expected < len(texts)
    assert finetune(config).num_cut == expected
    assert f"{expected} of {len(texts)} texts have more than max_length=24 tokens" in caplog.text


def test_the_same_seed_gives_the_same_adapter(tmp_path):
    """Two runs of one seed agree to the bit, another seed's differ."""
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        report = finetune(retrieval_config(tmp_path / name, epochs=1, seed=seed))
        tensors = load_file(report.folder / "adapter_model.safetensors")
        weights.append(np.concatenate([one.numpy().ravel() for one in tensors.values()]))
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])
