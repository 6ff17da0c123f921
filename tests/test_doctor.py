"""The doctor on servers: each fault, built into a real one, gets its name; a right one has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from qwen3_embedding_integrations import (
    ConfigError,
    Fault,
    RemoteError,
    diagnose,
    shared_encoder,
)
from qwen3_embedding_integrations.core.prompts import WEB_SEARCH, query_prompt
from qwen3_embedding_integrations.doctor.report import REMEDIES
from tests.backends import (
    END,
    IM_END,
    MAX_TOKENS,
    TINY,
    TransformersBackend,
    of_encoder,
    problems,
    says_nan_by_an_error,
    serving,
    three_ways,
    write_like_tiny,
)

NOTHING: set[Fault] = set()

# What is built in; what must be named with the weights at hand, with recorded values alone, and
# with nothing known of the model. Without its values another model, or one that reads another
# string, is a model like any other: that is the honest answer there.
FAULTS: dict[str, tuple[dict[str, Any], set[Fault], set[Fault], set[Fault]]] = {
    "no end token": (
        {"change_ids": lambda ids: ids[:-1]},
        {Fault.END_MISSING}, {Fault.END_MISSING}, NOTHING,
    ),
    "no end token, texts only": (
        {"change_ids": lambda ids: ids[:-1], "takes_ids": False},
        {Fault.END_MISSING}, {Fault.END_MISSING}, NOTHING,
    ),
    "two end tokens": (
        {"change_ids": lambda ids: [*ids, END]},
        {Fault.END_DOUBLED}, {Fault.END_DOUBLED}, NOTHING,
    ),
    "two end tokens, texts only": (
        {"change_ids": lambda ids: [*ids, END], "takes_ids": False},
        {Fault.END_DOUBLED}, {Fault.END_DOUBLED}, NOTHING,
    ),
    "eos_token appended": (
        {"change_ids": lambda ids: [*ids, IM_END]},
        {Fault.END_WRONG}, {Fault.END_WRONG}, NOTHING,
    ),
    "eos_token instead": (
        {"change_ids": lambda ids: [*ids[:-1], IM_END]},
        {Fault.END_WRONG}, {Fault.END_WRONG}, NOTHING,
    ),
    "mean": (
        {"pool": "mean"},
        {Fault.MEAN_POOLING}, {Fault.MEAN_POOLING}, NOTHING,
    ),
    "first token": (
        {"pool": "first"},
        {Fault.FIRST_TOKEN_POOLING}, {Fault.FIRST_TOKEN_POOLING}, {Fault.FIRST_TOKEN_POOLING},
    ),
    "first token, bfloat16": (
        {"pool": "first", "dtype": torch.bfloat16},
        {Fault.FIRST_TOKEN_POOLING}, {Fault.FIRST_TOKEN_POOLING}, {Fault.FIRST_TOKEN_POOLING},
    ),
    "a space in the server's query template": (
        {"query": "Instruct: {instruction}\nQuery: {text}"},
        {Fault.WRONG_TEMPLATE}, {Fault.WRONG_TEMPLATE}, {Fault.WRONG_TEMPLATE},
    ),
    "a space put into what clients send": (
        {"rewrite": lambda text: text.replace("Query:", "Query: ")},
        {Fault.WRONG_TEMPLATE}, {Fault.WRONG_TEMPLATE}, NOTHING,
    ),
    "newlines removed": (
        {"rewrite": lambda text: text.replace("\n", " ")},
        {Fault.WRONG_TEMPLATE}, {Fault.OTHER_WEIGHTS}, NOTHING,
    ),
    "a prompt before documents too": (
        {"rewrite": lambda text: query_prompt(WEB_SEARCH) + text},
        {Fault.WRONG_TEMPLATE}, {Fault.WRONG_TEMPLATE}, NOTHING,
    ),
    "E5's prefix": (
        {"rewrite": lambda text: "passage: " + text},
        {Fault.WRONG_TEMPLATE}, {Fault.WRONG_TEMPLATE}, NOTHING,
    ),
    "prompts stripped": (
        {"rewrite": lambda text: text.rpartition("\nQuery:")[2]},
        {Fault.WRONG_TEMPLATE}, {Fault.WRONG_TEMPLATE}, {Fault.WRONG_TEMPLATE},
    ),
    "not normalised": (
        {"is_normalized": False},
        {Fault.NOT_NORMALIZED}, {Fault.NOT_NORMALIZED}, {Fault.NOT_NORMALIZED},
    ),
    "cut on request, not normalised again": (
        {"cuts": "raw"},
        {Fault.CUT_WITHOUT_RENORMALIZING},
        {Fault.CUT_WITHOUT_RENORMALIZING},
        {Fault.CUT_WITHOUT_RENORMALIZING},
    ),
    "the last dimensions": (
        {"cuts": "last"},
        {Fault.CUT_ELSEWHERE}, {Fault.CUT_ELSEWHERE}, {Fault.CUT_ELSEWHERE},
    ),
    "cut always, not normalised again": (
        {"width": 128},
        {Fault.CUT_WITHOUT_RENORMALIZING},
        {Fault.CUT_WITHOUT_RENORMALIZING},
        {Fault.CUT_WITHOUT_RENORMALIZING},
    ),
    "truncated": (
        {"max_length": 512},
        {Fault.TRUNCATED}, {Fault.TRUNCATED}, {Fault.TRUNCATED},
    ),
    "padded right, pooled at -1": (
        {"pool": "end"},
        {Fault.WRONG_PADDING}, {Fault.WRONG_PADDING}, {Fault.WRONG_PADDING},
    ),
    "padded left, pooled by counting": (
        {"padding_side": "left"},
        {Fault.WRONG_PADDING}, {Fault.WRONG_PADDING}, {Fault.WRONG_PADDING},
    ),
    "rows of a batch swapped": (
        {"scramble": True},
        {Fault.ORDER_LOST}, {Fault.ORDER_LOST}, {Fault.ORDER_LOST},
    ),
    "float16": (
        {"dtype": torch.float16, "blow_up": 2.0**14},
        {Fault.NON_FINITE}, {Fault.NON_FINITE}, {Fault.NON_FINITE},
    ),
    "looks ahead": (
        {"is_causal": False},
        {Fault.NOT_CAUSAL}, {Fault.OTHER_WEIGHTS}, NOTHING,
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_gets_its_name(fault: str) -> None:
    """A server with one fault is wrong by that name and by no other, as far as it can be known."""
    options, *expected = FAULTS[fault]
    with serving(TransformersBackend(**options)) as url:
        diagnoses = three_ways(url)
    assert [one.known for one in diagnoses] == ["weights", "values", "nothing"]
    for diagnosis, names in zip(diagnoses, expected, strict=True):
        assert set(diagnosis.faults) == names, (diagnosis.known, problems(diagnosis))
        assert diagnosis.is_right == (not names), diagnosis.known


def test_two_faults_get_two_names() -> None:
    """Faults at different stages are found beside each other."""
    backend = TransformersBackend(
        change_ids=lambda ids: ids[:-1], is_normalized=False, max_length=300
    )
    with serving(backend) as url:
        found = diagnose(url, model="tiny", max_tokens=MAX_TOKENS).faults
    assert set(found) == {Fault.END_MISSING, Fault.NOT_NORMALIZED, Fault.TRUNCATED}


def test_other_weights(tmp_path: Path) -> None:
    """A server of another model is named so, whatever it counts and whatever its width."""
    shape = json.loads((TINY / "config.json").read_text())
    same_width = write_like_tiny(tmp_path / "same", shape)
    wider = write_like_tiny(tmp_path / "wider", shape | {"hidden_size": 320})
    narrower = write_like_tiny(tmp_path / "narrower", shape | {"hidden_size": 192})
    for backend in (
        TransformersBackend(folder=same_width),
        TransformersBackend(folder=same_width, change_ids=lambda ids: [END, *ids]),
        TransformersBackend(folder=wider),
        TransformersBackend(folder=narrower),
    ):
        with serving(backend) as url:
            weights, values, nothing = three_ways(url)
        assert weights.faults == values.faults == (Fault.OTHER_WEIGHTS,)
        assert nothing.is_right, problems(nothing)


@pytest.mark.parametrize("limit", [100, 128, 512])
def test_the_cut_is_measured(limit: int) -> None:
    """Where a server cuts is said to a few tokens; tiny's tokens are nearly words."""
    with serving(TransformersBackend(max_length=limit)) as url:
        diagnosis = diagnose(url, model="a-fine-tune", max_tokens=MAX_TOKENS)
    (check,) = (c for c in diagnosis.checks if c.fault is Fault.TRUNCATED)
    found = int(check.detail.partition("about ")[2].split()[0])
    assert abs(found - limit) <= max(6, limit // 32), check.detail


def test_a_cut_of_the_beginning_is_found() -> None:
    """A server that keeps only a text's last tokens is found too."""
    with serving(TransformersBackend(change_ids=lambda ids: ids[-200:])) as url:
        diagnosis = diagnose(url, model="a-fine-tune", max_tokens=400)
    assert diagnosis.faults == (Fault.TRUNCATED,)
    assert "beginning" in problems(diagnosis)[0]


@pytest.mark.parametrize("says", ["NaN", "bytes", "500"])
def test_nan_in_every_dress(says: str) -> None:
    """NaN is found as JSON's NaN, in base64, and behind a 500 that says so."""
    backend: Any = TransformersBackend(dtype=torch.float16, blow_up=2.0**14)
    embed = says_nan_by_an_error(backend) if says == "500" else backend
    with serving(embed, takes_base64=says == "bytes") as url:
        assert diagnose(url, model="tiny").faults == (Fault.NON_FINITE,)


RIGHT: dict[str, Any] = {
    "transformers, float32": TransformersBackend,
    "transformers, bfloat16": lambda: TransformersBackend(dtype=torch.bfloat16),
    "transformers, padded left": lambda: TransformersBackend(padding_side="left", pool="end"),
    "our encoder": lambda: of_encoder(shared_encoder("tiny").encode_documents),
    "sentence-transformers, float32": lambda: of_encoder(sentence_transformer(torch.float32)),
    "sentence-transformers, bfloat16": lambda: of_encoder(sentence_transformer(torch.bfloat16)),
    "a template for queries": lambda: TransformersBackend(
        query="Instruct: {instruction}\nQuery:{text}"
    ),
    "one instruction for all": lambda: TransformersBackend(
        query=query_prompt(WEB_SEARCH).replace("{", "{{") + "{text}"
    ),
    "refuses long texts, dimensions and ids": lambda: TransformersBackend(
        max_length=512, refuses_long=True, cuts="refused", takes_ids=False
    ),
    "ignores dimensions": lambda: TransformersBackend(cuts="ignored"),
}


def sentence_transformer(dtype: torch.dtype) -> Any:
    model = SentenceTransformer(str(TINY), device="cpu", model_kwargs={"dtype": dtype})
    return lambda texts: model.encode(texts, convert_to_tensor=True).float().numpy()


@pytest.mark.parametrize("backend", RIGHT)
def test_what_is_right_is_called_right(backend: str) -> None:
    """A right server has no fault, whatever can be known of its model."""
    with serving(RIGHT[backend]()) as url:
        for diagnosis in three_ways(url):
            assert diagnosis.is_right, (diagnosis.known, problems(diagnosis))
            assert diagnosis.faults == ()


def test_server_limits_are_noted() -> None:
    """What a server refuses aloud is a note, with its words."""
    with serving(RIGHT["refuses long texts, dimensions and ids"]()) as url:
        diagnosis = diagnose(url, model="tiny", max_tokens=MAX_TOKENS)
    notes = {c.name: c.detail for c in diagnosis.checks if c.verdict == "note"}
    assert "maximum context length is 512" in notes["long text"]
    assert "matryoshka" in notes["dimensions"]


def test_coarse_weights_are_noted() -> None:
    """A server of weights in eight bits is right, with a note of how far off it is."""
    with serving(TransformersBackend(levels=127)) as url:
        for diagnosis in three_ways(url)[:2]:
            assert diagnosis.is_right, problems(diagnosis)
            notes = [check.detail for check in diagnosis.checks if check.verdict == "note"]
            assert any("quantised weights" in note for note in notes), notes


def test_every_fault_has_a_remedy() -> None:
    """Whatever is named, the report says what to do."""
    assert set(REMEDIES) == set(Fault)


def test_a_server_that_cannot_be_asked_is_an_error() -> None:
    """No server, no model by that name, no vectors: an error, never a diagnosis."""
    with serving(of_encoder(lambda texts: np.zeros((len(texts), 8)))) as url:
        wrong = url.removesuffix("/v1") + "/v2"
    with pytest.raises(RemoteError, match="cannot be reached"):
        diagnose(wrong, model="tiny")
    with pytest.raises(ConfigError, match="model is missing"):
        diagnose(wrong)
    with pytest.raises(ConfigError, match="an encoder has its own"):
        diagnose(shared_encoder("tiny"), model="tiny")
    with pytest.raises(ConfigError, match="max_tokens is 8"):
        diagnose(wrong, model="tiny", max_tokens=8)
