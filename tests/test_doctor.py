"""The doctor: each fault, built into a real server, gets its name; what is right has none."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from qwen3_embedding_integrations import (
    ConfigError,
    Diagnosis,
    EncoderConfig,
    Fault,
    Qwen3Encoder,
    RemoteEncoder,
    RemoteError,
    diagnose,
    quantize_model,
    shared_encoder,
)
from qwen3_embedding_integrations.core.linear import has_packed_products
from qwen3_embedding_integrations.core.prompts import WEB_SEARCH, query_prompt
from qwen3_embedding_integrations.core.tokenizer import Tokenizer
from qwen3_embedding_integrations.doctor.faults import REMEDIES
from qwen3_embedding_integrations.doctor.golden import compare, find_golden
from qwen3_embedding_integrations.doctor.reference import TokenizedText, hidden_states
from qwen3_embedding_integrations.doctor.texts import DOCUMENTS, long_texts, query_strings
from tests.backends import (
    END,
    IM_END,
    TINY,
    TransformersBackend,
    of_encoder,
    says_nan_by_an_error,
    serving,
)
from tests.checkpoints import official_tokenizer, random_tensors
from tests.oracle import largest_difference, reference_vectors

MAX_TOKENS = 620  # above the cut of the server that cuts
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


def three_ways(url: str) -> tuple[Diagnosis, Diagnosis, Diagnosis]:
    """Return what is found with the weights at hand, with values alone, and with nothing known."""
    return (
        diagnose(url, model="tiny", max_tokens=MAX_TOKENS),
        diagnose(url, model="tiny", reference=None, max_tokens=MAX_TOKENS),
        diagnose(url, model="a-fine-tune", max_tokens=MAX_TOKENS),
    )


def problems(diagnosis: Diagnosis) -> list[str]:
    return [f"{c.name}: {c.detail}" for c in diagnosis.checks if c.verdict == "wrong"]


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


def write_like_tiny(folder: Path, shape: dict[str, Any]) -> Path:
    """Write random weights with tiny's tokenizer."""
    from safetensors.torch import save_file

    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((TINY / name).read_bytes())
    (folder / "config.json").write_text(json.dumps(shape))
    save_file(random_tensors(shape), folder / "model.safetensors", {"format": "pt"})
    return folder


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


ENCODERS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "cut": {"dtype": "float32", "dimensions": 96},
    "another instruction": {"dtype": "float32", "instruction": "Retrieve parallel sentences"},
    "int8": {"quantization": "int8"},
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


def test_the_reference_is_transformers(small_checkpoint: Path) -> None:
    """The doctor's own plain forward gives Qwen3Model's vectors, in two shapes."""
    texts = [*DOCUMENTS, *query_strings()]
    for folder in (TINY, small_checkpoint):
        ids = [TokenizedText(tuple(map(int, row))) for row in Tokenizer(folder).encode(texts)]
        ours = torch.stack([h[-1] for h in hidden_states(folder, ids)])
        ours = torch.nn.functional.normalize(ours, dim=1).numpy()
        difference = largest_difference(ours, reference_vectors(folder, texts))
        assert difference < 2e-6, f"{folder}: {difference:.1e}"


def test_recorded_values_are_transformers() -> None:
    """The values shipped for tiny are those of Qwen3Model, to the digits they are written with."""
    golden = find_golden("tiny")
    assert golden is not None
    assert golden.content_hash == shared_encoder("tiny").contract.revision
    texts = [one["text"] for one in golden.vectors]
    recorded = np.array([one["values"] for one in golden.vectors])
    difference = largest_difference(recorded, reference_vectors(TINY, texts))
    assert difference < 1e-6, f"{difference:.1e}"
    deviation = compare(golden, lambda some: reference_vectors(TINY, some).astype(np.float64))
    assert deviation is not None
    assert deviation.precision == "float32"


def test_published_values_have_sources_and_names(tmp_path: Path) -> None:
    """Every value names its source; token ids are the official tokenizer's; names are found."""
    (tmp_path / "tokenizer.json").write_bytes(official_tokenizer())
    tokenizer = Tokenizer(tmp_path)
    for size, width in (("0.6B", 1024), ("4B", 2560), ("8B", 4096)):
        golden = find_golden(f"Qwen/Qwen3-Embedding-{size}")
        assert golden is not None
        assert golden.width == width
        assert {*golden.texts} >= {name for *pair, _ in golden.pairs for name in pair}
        for one in golden.vectors:
            assert one["source"] in golden.sources
            if "token_ids" in one:
                assert tokenizer.encode([one["text"]])[0].tolist() == one["token_ids"]
    for name in ("qwen3-embedding:0.6b", "Qwen3-Embedding-0.6B-GGUF", "x/qwen3-embedding-0.6b"):
        assert find_golden(name) is find_golden("Qwen/Qwen3-Embedding-0.6B")
    for name in ("Qwen3-Embedding-0.6B-legal", "qwen3-reranker-0.6b", "bge-m3", ""):
        assert find_golden(name) is None


def test_published_values_agree_with_each_other() -> None:
    """A backend that answers with the published values is right, and one number away is not."""
    golden = find_golden("Qwen/Qwen3-Embedding-0.6B")
    assert golden is not None
    whole = [one for one in golden.vectors if len(one["values"]) == golden.width]
    known = {one["text"]: np.array(one["values"]) for one in whole}
    only = dataclasses.replace(golden, texts={}, pairs=[], vectors=whole)
    deviation = compare(only, lambda texts: np.stack([known[text] for text in texts]))
    assert deviation is not None
    assert deviation.precision == "float32"
    deviation = compare(only, lambda texts: np.stack([known[text][::-1] for text in texts]))
    assert deviation is not None
    assert deviation.precision is None


def test_long_texts_are_as_long_as_they_say(tmp_path: Path) -> None:
    """A word is a token, with tiny's tokenizer and with the official one, but for a few."""
    (tmp_path / "tokenizer.json").write_bytes(official_tokenizer())
    for folder in (TINY, tmp_path):
        for num_words in (18, 100, 2000):
            for row in Tokenizer(folder).encode(list(long_texts(num_words))):
                assert 1 <= len(row) - num_words <= 6


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
    done = run("--base-url", url, "--dtype", "float32", "--model", "tiny")
    assert done.returncode == 2
    assert "leave out dtype" in done.stderr


@pytest.mark.weights
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_real_weights_are_right(dtype: str) -> None:
    """The command finds nothing wrong with the official weights, and has values for them."""
    done = run("--model", os.environ["QWEN3_WEIGHTS"], "--dtype", dtype, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0, report["faults"]
    verdicts = {check["name"]: check["verdict"] for check in report["checks"]}
    assert verdicts["values of the weights"] == verdicts["published values"] == "right"
