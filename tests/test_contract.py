"""The contract: which facts made a vector, and which differences are refused."""

from __future__ import annotations

import json
import logging
from dataclasses import fields, replace

import pytest

from qwen3_embedding_integrations import ContractMismatchError, EmbeddingContract
from qwen3_embedding_integrations.contract import HARD_FACTS, SOFT_FACTS
from qwen3_embedding_integrations.core.prompts import WEB_SEARCH

LOGGER = "qwen3_embedding_integrations"
OURS = EmbeddingContract(
    model="Qwen/Qwen3-Embedding-0.6B",
    revision="0123456789abcdef",
    dimensions=1024,
    instruction=WEB_SEARCH,
    max_length=8192,
    on_too_long="truncate",
    dtype="float32",
    package_version="0.1.0",
)
HARD = {
    "revision": "fedcba9876543210",
    "lora": "adapter",
    "dimensions": 512,
    "document_template": "passage: {document}",
    "end_token": "<|im_end|>",
    "pooling": "mean",
    "normalization": "none",
}
SOFT = {
    "dtype": "bfloat16",
    "quantization": "int8",
    "instruction": "Retrieve parallel sentences",
    "max_length": 512,
    "on_too_long": "chunk_mean",
}


def test_every_fact_is_hard_or_soft_or_for_the_reader():
    """No fact is forgotten by the comparison but the model's name, which its files' hash covers."""
    names = {field.name for field in fields(EmbeddingContract)}
    assert names == {*HARD_FACTS, *SOFT_FACTS, "model"}
    assert set(HARD_FACTS) == set(HARD)
    assert set(SOFT_FACTS) == {*SOFT, "package_version"}


@pytest.mark.parametrize(("name", "value"), HARD.items())
def test_a_hard_difference_is_refused(name, value):
    """A fact that changes vectors is refused with field, both values and the ways out."""
    stored = replace(OURS, **{name: value})
    [difference] = OURS.difference(stored)
    assert difference == (name, value, getattr(OURS, name), True)
    with pytest.raises(ContractMismatchError) as caught:
        OURS.require_match(stored, index="collection 'articles'")
    for part in ("collection 'articles'", name, repr(value), repr(getattr(OURS, name))):
        assert part in str(caught.value)
    assert "allow_mismatch=True" in str(caught.value)
    assert caught.value.differences == ((name, value, getattr(OURS, name)),)
    assert stored.fingerprint != OURS.fingerprint


@pytest.mark.parametrize(("name", "value"), SOFT.items())
def test_a_soft_difference_warns_once(name, value, caplog):
    """A fact that changes vectors by a rounding, or only queries, is logged once and accepted."""
    stored = replace(OURS, **{name: value})
    [difference] = OURS.difference(stored)
    assert difference == (name, value, getattr(OURS, name), False)
    assert stored.fingerprint == OURS.fingerprint
    with caplog.at_level(logging.WARNING, LOGGER):
        for _ in range(3):
            OURS.require_match(stored, index=f"index of {name}")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1, messages
    for part in (f"index of {name}", name, repr(value), repr(getattr(OURS, name))):
        assert part in messages[0]


def test_another_name_is_no_difference():
    """The same files under another name are the same model."""
    stored = replace(OURS, model="/somewhere/else")
    assert OURS.difference(stored) == []
    assert stored.fingerprint == OURS.fingerprint


def test_an_upgrade_is_noted_without_a_warning(caplog):
    """Another package version is shown by difference() and told once, as information."""
    stored = replace(OURS, package_version="9.9.9")
    assert OURS.difference(stored) == [("package_version", "9.9.9", "0.1.0", False)]
    assert stored.fingerprint == OURS.fingerprint
    with caplog.at_level(logging.INFO, LOGGER):
        for _ in range(3):
            OURS.require_match(stored, index="upgraded index")
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "package_version: stored '9.9.9', yours '0.1.0'" in caplog.records[0].getMessage()


def test_several_differences_come_hard_ones_first():
    """difference() names every field; the error holds the hard ones alone."""
    stored = replace(OURS, dtype="bfloat16", dimensions=512, lora="a", max_length=100)
    names = [one.field for one in OURS.difference(stored)]
    assert sorted(names[:2]) == ["dimensions", "lora"]
    assert sorted(names[2:]) == ["dtype", "max_length"]
    with pytest.raises(ContractMismatchError) as caught:
        OURS.require_match(stored, index="index")
    assert [one[0] for one in caught.value.differences] == names[:2]


def test_allow_mismatch_warns_instead(caplog):
    """allow_mismatch=True opens the index all the same, and says what differs."""
    stored = replace(OURS, dimensions=32)
    with caplog.at_level(logging.WARNING, LOGGER):
        OURS.require_match(stored, index="old index", allow_mismatch=True)
    assert "dimensions: stored 32, yours 1024" in caplog.text


def test_a_contract_survives_json():
    """to_dict through JSON and from_dict gives the same contract and fingerprint."""
    data = json.loads(json.dumps(OURS.to_dict()))
    assert EmbeddingContract.from_dict(data) == OURS
    assert data["fingerprint"] == OURS.fingerprint
    assert len(OURS.fingerprint) == 12
    assert int(OURS.fingerprint, 16) >= 0


def test_unknown_facts_are_refused():
    """A contract of a later version, with facts unknown here, is refused by their names."""
    with pytest.raises(ContractMismatchError, match=r"layer_norm.*upgrade"):
        EmbeddingContract.from_dict({**OURS.to_dict(), "layer_norm": True})


def test_missing_facts_are_refused():
    """A stored contract that lacks a fact is refused by the fact's name."""
    data = OURS.to_dict()
    del data["dimensions"]
    with pytest.raises(ContractMismatchError, match=r"incomplete.*dimensions"):
        EmbeddingContract.from_dict(data)


def test_the_fingerprint_is_the_same_in_every_process():
    """The fingerprint is a fixed function of the facts: stored ones stay valid."""
    assert OURS.fingerprint == "d929a59b8b7c"
