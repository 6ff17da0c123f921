"""Data of a fine-tuning: what is refused, with which words; what is left out, held out, mined."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

import numpy as np
import pytest

from qwen3_embedding_integrations import ConfigError, InputError
from qwen3_embedding_integrations.evaluation import PairSet, RetrievalSet
from qwen3_embedding_integrations.finetuning import FinetuneConfig
from qwen3_embedding_integrations.finetuning.data import read_material
from qwen3_embedding_integrations.finetuning.lessons import choose_negatives
from tests.finetuning.lessons import pairs_config, retrieval_config, write_pairs


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("task", "ranking", "'pairs', 'retrieval'"),
        ("loss", "infonce", "'cosent', 'contrastive'"),
        ("rank", 0, "from 1 to 1024"),
        ("rank", 2.5, "choose int"),
        ("epochs", True, "choose int"),
        ("learning_rate", 2.0, "from 1e-08 to 1.0"),
        ("projections", (), "choose one of 'q_proj'"),
        ("projections", ("lm_head",), "choose one of 'q_proj'"),
        ("dimensions", (16,), "from 32"),
        ("instruction", " ", "blank"),
        ("checkpoint_steps", -3, "from 1"),
        ("dtype", "float16", "'float32', 'bfloat16'"),
    ],
)
def test_an_option_that_cannot_be_is_refused(option, value, message):
    """A value an option cannot have is a ConfigError that names what it can have."""
    options = {"train": "a.tsv", "out": "adapter", "task": "pairs"}
    with pytest.raises(ConfigError, match=message):
        FinetuneConfig(**{**options, option: value})


def test_widths_are_the_models_own_and_those_below():
    """Without `dimensions` all halves down to 32 are trained; a wider one than the model's is
    refused.
    """
    options = {"train": "a.tsv", "out": "adapter", "task": "pairs"}
    assert FinetuneConfig(**options).widths(1024) == [1024, 512, 256, 128, 64, 32]
    assert FinetuneConfig(**options, dimensions=[100]).widths(256) == [256, 100]
    assert FinetuneConfig(**options, dimensions=()).widths(256) == [256]
    with pytest.raises(ConfigError, match="from 32 to 256"):
        FinetuneConfig(**options, dimensions=(300,)).widths(256)


@pytest.mark.parametrize(
    ("rows", "messages"),
    [
        (["sentence1\tlabel", "a\t1"], ["train.tsv:2", "sentence2"]),
        (["sentence1\tsentence2\tlabel", "a\tb\t1", "a\t \t0"], ["train.tsv:3", "empty"]),
        (["sentence1\tsentence2\tlabel", *["a\tb\t1"] * 20, "a\tc\t7"], ["train.tsv:22", "7"]),
        (["sentence1\tsentence2\tlabel", "a\tb\tyes"], ["train.tsv:2", "yes"]),
    ],
)
def test_bad_rows_are_refused_by_number(tmp_path, rows, messages):
    """A missing column, an empty text, a label out of range or none: an InputError with the row."""
    config = pairs_config(tmp_path)
    (tmp_path / "train.tsv").write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_material(config)
    assert all(message in str(caught.value) for message in messages)


def test_test_pairs_in_the_training_rows_are_named(tmp_path):
    """A pair of dev or test among the training rows is found, swapped or written otherwise too."""
    config = pairs_config(tmp_path, test=str(tmp_path / "test.tsv"))
    header = "sentence1\tsentence2\tlabel\n"
    (tmp_path / "test.tsv").write_text(f"{header}caf\u00e9 is  open\tis it open\t1\nx\ty\t0\n")
    with (tmp_path / "train.tsv").open("a", encoding="utf-8") as file:
        decomposed = unicodedata.normalize("NFD", "caf\u00e9 is open ")
        file.write(f"is it open\t{decomposed}\t1\nis it open\tx\t0\n")
    with pytest.raises(InputError, match=r"^1 training rows .*row 42 \(in test 2\)") as caught:
        read_material(config)
    assert "on_leak" in str(caught.value)
    material = read_material(replace(config, on_leak="drop"))
    assert material.dropped == ("row 42 (in test 2)",)
    assert 42 not in material.train.rows
    assert 43 in material.train.rows


def test_without_a_dev_a_share_is_held_out_with_its_doubles(tmp_path):
    """The seed holds out a tenth, the same each time; no double of it stays in training."""
    config = pairs_config(tmp_path, dev=None)
    doubled = write_pairs(tmp_path / "train.tsv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "train.tsv").write_text("\n".join(doubled + doubled[1:]), encoding="utf-8")
    material = read_material(config)
    again = read_material(config)
    dev, train = material.held["dev"], material.train
    assert isinstance(dev, PairSet)
    assert isinstance(train, PairSet)
    assert len(dev.rows) == 8
    assert dev == again.held["dev"]
    assert not set(zip(dev.first, dev.second, strict=True)) & set(
        zip(train.first, train.second, strict=True)
    )
    assert len(train.rows) + len(dev.rows) + len(material.dropped) == 80


def test_a_sign_in_a_path_is_no_split(tmp_path):
    """FOLDER#SPLIT is a split where FOLDER is a folder; files of a folder "C#" are files."""
    (tmp_path / "C#").mkdir()
    files = {name: str(write_pairs(tmp_path / "C#" / f"{name}.tsv")) for name in ("train", "dev")}
    write_pairs(tmp_path / "C#" / "dev.tsv", start=100)
    config = pairs_config(tmp_path, **files)
    assert {*read_material(config).hashes} == {*files.values()}
    with pytest.raises(InputError, match=r"C#/none.tsv is no file"):
        read_material(replace(config, dev=str(tmp_path / "C#" / "none.tsv")))


def test_a_query_of_dev_in_training_is_named(tmp_path):
    """In retrieval, queries leak: documents may be shared."""
    config = retrieval_config(tmp_path)
    with (tmp_path / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n" + (tmp_path / "dev.jsonl").read_text(encoding="utf-8").splitlines()[3])
    with pytest.raises(InputError, match=r"query 25 \(in dev 4\)"):
        read_material(config)


def test_mined_negatives_lie_below_every_answer(tmp_path):
    """Mined are the nearest documents, but none that is judged or as near as an answer."""
    rng = np.random.default_rng(5)
    documents = rng.normal(size=(60, 8)).astype(np.float32)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    queries = rng.normal(size=(6, 8)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    cosines = queries @ documents.T
    best = np.argsort(-cosines, axis=1)
    relevant = {
        f"q{n}": {f"d{best[n, 2]}": 1, f"d{best[n, 4]}": 2, f"d{best[n, 9]}": 0} for n in range(6)
    }
    dataset = RetrievalSet(
        "set",
        {f"d{n}": f"document {n}" for n in range(60)},
        {f"q{n}": f"query {n}" for n in range(6)},
        relevant,
    )
    config = retrieval_config(tmp_path, negatives=4, mining_margin=0.1)
    chosen = choose_negatives(config, dataset, queries, documents)
    for n in range(6):
        limit = 0.9 * cosines[n, best[n, 4]]
        expected = [m for m in best[n] if cosines[n, m] < limit and m != best[n, 9]][:3]
        assert chosen[f"q{n}"] == [f"d{best[n, 9]}", *(f"d{m}" for m in expected)]
    with pytest.raises(InputError, match="lower it"):
        few = RetrievalSet("set", {"d0": "a", "d1": "b"}, {"q0": "a"}, {"q0": {"d0": 1}})
        choose_negatives(config, few, queries[:1], documents[:2])
