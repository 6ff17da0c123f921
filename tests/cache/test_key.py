"""Two inputs share a key only if they have the same vector."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_embedding_integrations import EmbeddingContract
from qwen3_embedding_integrations.cache.entry import key_space, text_key
from tests.cache.encoders import CONTRACT

# Short strings of few letters, JSON's own among them: neighbours that a careless key would join.
words = st.text('ab"\\,{}[]:\n\0 é', max_size=4)
contracts = st.builds(
    EmbeddingContract,
    model=words,
    revision=words,
    dimensions=st.just(64),
    instruction=st.just("x"),
    max_length=st.integers(4, 6),
    on_too_long=st.sampled_from(["truncate", "error", "chunk_mean"]),
    dtype=words,
    package_version=st.just("0"),
    lora=st.none() | words,
    quantization=st.none() | words,
    document_template=words,
    end_token=words,
    pooling=words,
    normalization=words,
)
inputs = st.tuples(contracts, st.none() | words, words)


@given(st.lists(inputs, min_size=2, max_size=20, unique=True))
def test_no_two_different_inputs_share_a_key(some: list[tuple]) -> None:
    """Contract, role, prompt and text: whatever differs, the key differs."""
    keys = {text_key(key_space(contract, prompt), text) for contract, prompt, text in some}
    assert len(keys) == len(some)


@given(words, words, words)
def test_a_prompt_and_a_text_never_run_together(prompt: str, middle: str, text: str) -> None:
    """A part moved from the instruction into the query makes another key."""
    one = text_key(key_space(CONTRACT, prompt + middle), text)
    other = text_key(key_space(CONTRACT, prompt), middle + text)
    assert (one == other) == (middle == "")


@given(inputs)
def test_an_equal_input_has_the_equal_key(one: tuple) -> None:
    """Nothing but contract, prompt and text is in a key: other processes find it again."""
    contract, prompt, text = one
    again = EmbeddingContract.from_dict(contract.to_dict())
    assert text_key(key_space(contract, prompt), text) == text_key(key_space(again, prompt), text)


def test_keys_never_change() -> None:
    """A known key keeps its bytes: another would empty every user's cache in silence."""
    key = text_key(key_space(CONTRACT, "Instruct: a\nQuery:"), "b")
    assert key.hex() == "e3b4f729d95c0bd1f549519871c58dda4d0b8d8d9d94029bfc2d002bba5aa573"


ANOTHER = {
    "model": "other",
    "revision": "2",
    "max_length": 128,
    "on_too_long": "error",
    "dtype": "bfloat16",
    "lora": "a",
    "quantization": "int8",
    "document_template": "d: {document}",
    "end_token": "</s>",
    "pooling": "mean",
    "normalization": "none",
}
SHARED = {"dimensions": 64, "instruction": "Find the law", "package_version": "9"}


def test_every_fact_is_in_the_key_or_shared() -> None:
    """The tables of this test name all facts of a contract."""
    assert {f.name for f in dataclasses.fields(EmbeddingContract)} == {*ANOTHER, *SHARED}


@pytest.mark.parametrize("fact", ANOTHER)
def test_another_fact_is_another_key(fact: str) -> None:
    """Each fact that changes a vector is in the key of both roles."""
    changed = replace(CONTRACT, **{fact: ANOTHER[fact]})
    for prompt in (None, "a"):
        assert key_space(changed, prompt) != key_space(CONTRACT, prompt)


@pytest.mark.parametrize("fact", SHARED)
def test_other_facts_share_the_key(fact: str) -> None:
    """Width, default instruction and version of the package do not split a cache."""
    changed = replace(CONTRACT, **{fact: SHARED[fact]})
    for prompt in (None, "a"):
        assert key_space(changed, prompt) == key_space(CONTRACT, prompt)
