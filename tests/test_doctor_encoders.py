"""The doctor on encoders: ours in every dtype, adapters with strings of their own, remote ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwen3_embedding_integrations import (
    ConfigError,
    EncoderConfig,
    Fault,
    Qwen3Encoder,
    RemoteEncoder,
    diagnose,
    quantize_model,
    shared_encoder,
)
from qwen3_embedding_integrations.core.linear import has_packed_products
from qwen3_embedding_integrations.core.prompts import WEB_SEARCH, query_prompt
from tests.backends import TINY, TransformersBackend, problems, serving, write_like_tiny

ENCODERS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "cut": {"dtype": "float32", "dimensions": 96},
    "another instruction": {"dtype": "float32", "instruction": "Retrieve parallel sentences"},
    "int8": {"quantization": "int8"},
    "float16": {"dtype": "float16"},
    "short texts": {"dtype": "float32", "max_length": 128, "on_too_long": "error"},
}


@pytest.mark.parametrize("name", ENCODERS)
def test_our_encoder_is_right(name: str) -> None:
    """Our encoder is right in every dtype, at every width, beside its weights and the values."""
    if name == "int8" and not has_packed_products():
        pytest.skip("needs oneDNN on x86")
    encoder = shared_encoder(EncoderConfig(model="tiny", **ENCODERS[name]))
    diagnosis = diagnose(encoder)
    assert diagnosis.is_right, problems(diagnosis)
    verdicts = {check.name: check.verdict for check in diagnosis.checks}
    assert verdicts["values of the weights"] == verdicts["published values"] == "right"
    assert diagnosis.machine["encoder"]["dtype"] == encoder._loaded.config.dtype


def test_a_stored_int8_model_is_compared_with_recorded_values(tmp_path: Path) -> None:
    """A folder of int8 weights has no float weights to compare with, but its source's values."""
    if not has_packed_products():
        pytest.skip("needs oneDNN on x86")
    folder = quantize_model("tiny", tmp_path / "int8").folder
    with Qwen3Encoder(str(folder)) as encoder:
        diagnosis = diagnose(encoder)
    assert diagnosis.known == "values"
    assert diagnosis.is_right, problems(diagnosis)
    assert {c.name: c.verdict for c in diagnosis.checks}["published values"] == "right"
    with pytest.raises(ConfigError, match="int8 weights; give their source"):
        diagnose(shared_encoder("tiny"), reference=str(folder))


class Adapter:
    """An encoder as adapters make it: strings of its own, over the model."""

    def __init__(self, query: str, document: str = "{text}") -> None:
        self._encoder = shared_encoder(EncoderConfig(model="tiny", dtype="float32"))
        self.contract = self._encoder.contract
        self.dimensions = self._encoder.dimensions
        self._query, self._document = query, document

    def encode_queries(
        self, queries: Sequence[str], *, instruction: str | None = None
    ) -> np.ndarray:
        instruction = instruction or WEB_SEARCH
        texts = [self._query.format(instruction=instruction, text=text) for text in queries]
        return self._encoder.encode_documents(texts)

    def encode_documents(self, documents: Sequence[str]) -> np.ndarray:
        return self._encoder.encode_documents([self._document.format(text=t) for t in documents])


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("Instruct: {instruction}\nQuery: {text}", 'a space after "Query:"'),
        ("Instruct: {instruction} Query:{text}", "a space instead of the newline"),
        ("{text}", "no instruction"),
        ("query: {text}", "E5"),
        ("Represent this: {text}", "no known form"),
    ],
)
def test_an_adapters_template(query: str, said: str) -> None:
    """An encoder that gives queries another form is told which."""
    diagnosis = diagnose(Adapter(query), max_tokens=200)  # type: ignore[arg-type]
    assert diagnosis.faults == (Fault.WRONG_TEMPLATE,)
    assert said in problems(diagnosis)[0]


def test_a_remote_encoders_server_is_examined() -> None:
    """Of a RemoteEncoder the server's raw vectors count, with the end token that it writes."""
    forgets = TransformersBackend(change_ids=lambda ids: ids[:-1], is_normalized=False)
    with serving(forgets) as url:
        for end_token, expected in (
            ("server", {Fault.END_MISSING, Fault.NOT_NORMALIZED}),
            ("client", {Fault.NOT_NORMALIZED}),
        ):
            with RemoteEncoder(url, model="tiny", end_token=end_token) as encoder:
                assert set(diagnose(encoder, max_tokens=200).faults) == expected


def test_an_ignored_instruction_is_found() -> None:
    """An encoder that reads its own instruction whatever a call says is told so."""
    diagnosis = diagnose(Adapter(query_prompt(WEB_SEARCH) + "{text}"), max_tokens=200)  # type: ignore[arg-type]
    assert diagnosis.faults == (Fault.INSTRUCTION_IGNORED,)


def test_instructed_documents_are_found() -> None:
    """An encoder that gives documents the query's prompt is told so, weights at hand."""
    adapter = Adapter(query_prompt(WEB_SEARCH) + "{text}", query_prompt(WEB_SEARCH) + "{text}")
    diagnosis = diagnose(adapter, reference="tiny", max_tokens=200)  # type: ignore[arg-type]
    assert Fault.WRONG_TEMPLATE in diagnosis.faults
    assert any("before every text" in problem for problem in problems(diagnosis))
    diagnosis = diagnose(adapter, reference=None, max_tokens=200)  # type: ignore[arg-type]
    assert any("documents are given" in problem for problem in problems(diagnosis))


def test_an_inexact_encoder_is_found() -> None:
    """float32 that is only as good as bfloat16 is not called right, where float32 is claimed."""
    adapter = Adapter(query_prompt("{instruction}") + "{text}")
    adapter._encoder = shared_encoder(
        EncoderConfig(model="tiny", quantization="int8" if has_packed_products() else None)
    )
    diagnosis = diagnose(adapter, reference="tiny", max_tokens=200)  # type: ignore[arg-type]
    if has_packed_products():
        assert diagnosis.faults == (Fault.INEXACT,), problems(diagnosis)


def test_float16_overflow_of_our_own_encoder(tmp_path: Path) -> None:
    """NonFiniteOutputError is a diagnosis, not an error."""
    folder = write_like_tiny(tmp_path / "huge", json.loads((TINY / "config.json").read_text()))
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["norm.weight"] = torch.full_like(tensors["norm.weight"], float("inf"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with Qwen3Encoder(str(folder)) as encoder:
        assert diagnose(encoder, reference=None).faults == (Fault.NON_FINITE,)
