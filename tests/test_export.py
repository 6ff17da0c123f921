"""Exported graphs: the core's vectors by another runtime, without torch, behind every door."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from qwen3_embedding_integrations import (
    ConfigError,
    EncoderConfig,
    ModelLoadError,
    Qwen3Encoder,
    TextTooLongError,
    export_model,
    quantize_model,
    shared_encoder,
)
from qwen3_embedding_integrations.cli import app
from qwen3_embedding_integrations.core.exported import run_onnx
from tests.core.test_quantization import plant_outliers
from tests.texts import mixed_text

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return tiny, exported in float32."""
    out = tmp_path_factory.mktemp("exported") / "tiny-onnx"
    export_model("tiny", out)
    return out


@pytest.fixture(scope="module")
def exported(folder: Path):
    with Qwen3Encoder(EncoderConfig(model=str(folder), on_empty="embed")) as encoder:
        yield encoder


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Texts of one token to some 2,000."""
    rng = random.Random(0)
    return ["", "x", "🚀", *(mixed_text(rng, 3 * 2**n) for n in range(12)), "中", "a b"]


def test_the_graph_gives_the_cores_vectors(exported, texts):
    """Alone or in one call, in any order, fp32 vectors are the core's to 1e-4."""
    with Qwen3Encoder(EncoderConfig(model="tiny", dtype="float32", on_empty="embed")) as core:
        expected = core.encode_documents(texts)
        queries = core.encode_queries(texts[:8], instruction="Find the law.")
    alone = np.concatenate([exported.encode_documents([text]) for text in texts])
    assert np.abs(alone - expected).max() <= 1e-4
    assert np.abs(exported.encode_documents(texts) - expected).max() <= 1e-4
    assert np.abs(exported.encode_documents(texts[::-1]) - expected[::-1]).max() <= 1e-4
    found = exported.encode_queries(texts[:8], instruction="Find the law.")
    assert np.abs(found - queries).max() <= 1e-4
    assert exported.encode_documents([]).shape == (0, 256)


def test_another_shape_is_exported_as_well(small, small_checkpoint, texts, tmp_path):
    """Four layers of random weights, other widths and the official tokenizer: equal to 1e-4."""
    made = export_model(str(small_checkpoint), tmp_path / "small")
    assert made.max_difference <= 1e-4
    with Qwen3Encoder(str(made.folder)) as encoder:
        found = encoder.encode_documents(texts[3:])
    assert np.abs(found - small.encode_documents(texts[3:])).max() <= 1e-4


def test_any_runtime_gets_unit_vectors_of_padded_ids(folder, tiny):
    """The graph by itself: ids padded with anything and lengths in, unit vectors out."""
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert [one.name for one in session.get_inputs()] == ["input_ids", "lengths"]
    documents = ["Paris is in France.", "水在一百摄氏度沸腾。", "a"]
    ids = tiny._loaded.tokenizer.encode(documents)
    lengths = np.array([len(one) for one in ids])
    padded = np.full((3, lengths.max() + 5), 77)
    for row, one in zip(padded, ids, strict=True):
        row[: len(one)] = one
    (vectors,) = session.run(None, {"input_ids": padded, "lengths": lengths})
    assert np.abs(vectors - tiny.encode_documents(documents)).max() <= 1e-4


@pytest.mark.parametrize(
    ("precision", "mean", "least"),
    [("fp16", 0.99999, 0.9999), ("int8", 0.999, 0.995), ("int4", 0.95, 0.9)],
)
@pytest.mark.parametrize("model", ["tiny", "planted"])
def test_fewer_bits_keep_the_vectors(precision, mean, least, model, tiny, texts, tmp_path):
    """Cosines to float32 hold, with channels 5,000 times as large as well; the file shrinks."""
    source = "tiny" if model == "tiny" else str(plant_outliers(tmp_path / "planted"))
    made = export_model(source, tmp_path / "out", precision=precision)
    with Qwen3Encoder(str(made.folder)) as encoder:
        vectors, contract = encoder.encode_documents(texts[1:]), encoder.contract
    cosines = (vectors * tiny.encode_documents(texts[1:])).sum(1)
    assert cosines.mean() >= mean, f"mean cosine {cosines.mean():.5f}"
    assert cosines.min() >= least, f"worst cosine {cosines.min():.5f}"
    assert made.mean_cosine >= mean
    assert made.num_bytes < {"fp16": 0.51, "int8": 0.3, "int4": 0.3}[precision] * 36_500_000
    assert contract.quantization == {"int8": "onnx-int8", "int4": "onnx-int4"}.get(precision)


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.999999), ("int8", 0.999)])
def test_openvino_runs_it_as_well(precision, least, tiny, texts, tmp_path):
    """The same class runs an OpenVINO folder, to 1e-4 in float32 and near it in int8."""
    pytest.importorskip("openvino")
    made = export_model("tiny", tmp_path / "out", format="openvino", precision=precision)
    config = EncoderConfig(model=str(made.folder), backend="openvino")
    with Qwen3Encoder(config) as encoder:
        found, contract = encoder.encode_documents(texts[1:]), encoder.contract
    expected = tiny.encode_documents(texts[1:])
    assert (found * expected).sum(1).min() >= least
    assert precision != "fp32" or np.abs(found - expected).max() <= 1e-4
    assert contract.quantization == {"int8": "openvino-int8"}.get(precision)
    assert contract.fingerprint == tiny.contract.fingerprint


def test_the_verb_says_how_exact_it_is(tmp_path):
    """`export` writes the folder and prints what stays in floats and the parity."""
    arguments = ["export", "tiny", str(tmp_path / "out"), "--precision", "int8"]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    assert "kept in floats: layers.0.qkv" in done.output
    assert "15 texts" in done.output
    assert "cosine 0.9999" in done.output
    note = json.loads((tmp_path / "out" / "export.json").read_text())
    assert note["min_cosine"] >= 0.995


def test_a_processor_without_vnni_rounds_to_fewer_levels(tiny, texts, tmp_path):
    """With activations of 7 bits, whose products no processor overflows, cosines still hold."""
    made = export_model("tiny", tmp_path / "out", precision="int8")
    documents = texts[1:10]
    ids = [np.array([one], np.int64) for one in tiny._loaded.tokenizer.encode(documents)]
    expected, means = tiny.encode_documents(documents), []
    for levels in (63, 127):
        run = run_onnx(made.folder / "model.onnx", levels)
        found = np.concatenate([run({"input_ids": one, "lengths": [one.size]}) for one in ids])
        cosines = (found * expected).sum(1)
        assert cosines.min() >= 0.999
        means.append(cosines.mean())
    assert means[0] < means[1]


def test_a_batch_does_not_change_an_int8_vector(texts, tmp_path):
    """int8 rounds row by row: alone or beside others, a text has one vector."""
    with Qwen3Encoder(
        str(export_model("tiny", tmp_path / "o", precision="int8").folder)
    ) as encoder:
        together = encoder.encode_documents(texts[1:])
        alone = np.concatenate([encoder.encode_documents([text]) for text in texts[1:]])
    assert np.abs(together - alone).max() <= 1e-5


def test_the_contract_travels(folder, exported, tiny):
    """Its vectors stand in the source's index, and the folder says how near they are."""
    assert exported.contract.fingerprint == tiny.contract.fingerprint
    assert {one.field for one in exported.contract.difference(tiny.contract)} <= {"on_empty"}
    note = json.loads((folder / "export.json").read_text())
    assert note["contract"]["revision"] == tiny.contract.revision
    assert note["max_difference"] <= 1e-4
    assert note["mean_cosine"] >= 0.99999


def test_options_of_reading_hold(folder, tiny):
    """dimensions, max_length, on_too_long, streams and sharing are the encoder's, as ever."""
    config = EncoderConfig(model=str(folder), dimensions=64, backend="onnx")
    encoder = shared_encoder(config)
    assert shared_encoder(config) is encoder
    documents = ["Paris is in France.", "水在一百摄氏度沸腾。"] * 300
    expected = tiny.encode_documents(documents)[:, :64]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = np.concatenate(list(encoder.stream_documents(iter(documents), window=256)))
    assert np.abs(found - expected).max() <= 1e-4
    strict = shared_encoder(EncoderConfig(model=str(folder), max_length=8, on_too_long="error"))
    with pytest.raises(TextTooLongError):
        strict.encode_documents(["one two three four five six seven eight nine ten eleven"])
    assert strict._loaded is encoder._loaded
    encoder.close()
    assert strict.is_closed


@pytest.mark.parametrize(
    "options",
    [{"device": "cuda"}, {"dtype": "bfloat16"}, {"quantization": "int8"}, {"attention": "sdpa"}],
    ids=repr,
)
def test_what_an_export_decided_is_no_option(folder, options):
    """An option that a graph cannot follow is refused, with its value."""
    with pytest.raises(ConfigError, match=f"{next(iter(options))} is '.*leave"):
        Qwen3Encoder(EncoderConfig(model=str(folder), backend="onnx", **options))


def test_a_folder_is_of_one_backend(folder, tmp_path):
    """What is no export, is one for another runtime, or is damaged, is refused; so is a rewrite."""
    with pytest.raises(ConfigError, match=r"tiny is for 'torch'.*qwen3-embedding export"):
        Qwen3Encoder(EncoderConfig(model="tiny", backend="onnx"))
    for backend in ("torch", "openvino"):
        with pytest.raises(ConfigError, match=f"backend is '{backend}'.* is for 'onnx'"):
            Qwen3Encoder(EncoderConfig(model=str(folder), backend=backend))
    with pytest.raises(ConfigError, match="exists already"):
        export_model("tiny", folder)
    quantized = quantize_model("tiny", tmp_path / "int8").folder
    with pytest.raises(ConfigError, match="int8 weights already"):
        export_model(str(quantized), tmp_path / "x")
    with pytest.raises(ConfigError, match="precision is 'fp8'"):
        export_model("tiny", tmp_path / "x", precision="fp8")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in folder.iterdir():
        (damaged / path.name).write_bytes(
            path.read_bytes()[: 1000 if "onnx" in path.name else None]
        )
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        Qwen3Encoder(str(damaged))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("reference", ["auto", "tiny"])
def test_the_doctor_examines_an_export(folder, tmp_path, precision, reference):
    """An export has no weights: it is compared with published values, or with weights at hand."""
    out = tmp_path / "out"  # a folder of its own: the verb tells how it was loaded
    if precision == "fp32":
        shutil.copytree(folder, out)
    else:
        export_model("tiny", out, precision=precision)
    arguments = ["doctor", "--model", str(out), "--reference", reference, "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["known"] == ("values" if reference == "auto" else "weights")
    assert {check["verdict"] for check in report["checks"]} == {"right"}, report["checks"]
    machine = report["machine"]
    assert machine["encoder"]["quantization"] == {"int8": "onnx-int8"}.get(precision)
    assert any(f"onnx, {precision}" in line for line in machine["choices"]), machine["choices"]


def test_the_doctor_knows_a_wrong_export(small_checkpoint, tiny, tmp_path):
    """A graph of other weights that says it is `tiny` is found out."""
    note = export_model(str(small_checkpoint), tmp_path / "out").folder / "export.json"
    written = json.loads(note.read_text())
    written["contract"]["revision"] = tiny.contract.revision
    note.write_text(json.dumps(written))
    done = CliRunner().invoke(app, ["doctor", "--model", str(note.parent), "--json"])
    assert done.exit_code == 1, done.output
    assert [one["name"] for one in json.loads(done.stdout)["faults"]] == ["other weights"]


FORK = """
import multiprocessing, os, sys, threading
import numpy as np
from qwen3_embedding_integrations import EngineClosedError, shared_encoder

MODEL, TEXTS = sys.argv[1], ["The capital of China is Beijing.", "中国的首都是北京。"] * 40
encoder = shared_encoder(MODEL)
expected = encoder.encode_documents(TEXTS)

def child():
    try:
        encoder.encode_documents(["a"])
        return 1
    except EngineClosedError as error:
        if "does not survive a fork" not in str(error):
            return 2
    own = shared_encoder(MODEL)
    if np.abs(own.encode_documents(TEXTS) - expected).max() > 1e-6:
        return 3
    encoder.close()  # closes nothing of the parent's
    own.close()
    return 0

def encode(travelled):
    return travelled.encode_documents(TEXTS)

def load():
    while not stop.is_set():
        encoder.encode_documents(TEXTS[:3])

stop = threading.Event()
busy = [threading.Thread(target=load) for _ in range(3)]
for thread in busy:
    thread.start()
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            code = child()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, f"child ended with {code}"
with multiprocessing.get_context("fork").Pool(2) as pool:
    for found in pool.map(encode, [encoder] * 4):
        assert np.abs(found - expected).max() < 1e-6
stop.set()
for thread in busy:
    thread.join()
assert np.abs(encoder.encode_documents(TEXTS) - expected).max() < 1e-6, "the parent's is harmed"
assert "torch" not in sys.modules
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_runs_its_own_graph(folder):
    """Forked while the graph runs, by os.fork or a pool, a child's own encoder works."""
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


DOORS = {
    "encoder": """
        from qwen3_embedding_integrations import Qwen3Encoder, shared_encoder
        with Qwen3Encoder(model) as encoder:
            vector = encoder.encode_queries([query])[0]
        assert (shared_encoder(model).encode_queries([query])[0] == vector).all()
        """,
    "chroma": """
        import chromadb
        from qwen3_embedding_integrations.chroma import open_collection
        articles = open_collection(chromadb.EphemeralClient(), "articles", model=model)
        articles.add(ids=["1"], documents=["Paris is in France."])
        articles.query(query_texts=[query])
        vector = articles._embedding_function.embed_query([query])[0]
        """,
    "langchain": """
        from qwen3_embedding_integrations.langchain import Qwen3Embeddings
        vector = Qwen3Embeddings(model).embed_query(query)
        """,
    "llama_index": """
        from qwen3_embedding_integrations.llama_index import Qwen3Embedding
        vector = Qwen3Embedding(model_name=model).get_query_embedding(query)
        """,
    "qdrant": """
        from qwen3_embedding_integrations.qdrant import Qwen3Collection
        with Qwen3Collection(":memory:", "articles", model=model) as articles:
            articles.upsert(["Paris is in France."])
            assert len(articles.query(query)) == 1
            vector = articles.encoder.encode_queries([query])[0]
        """,
}


@pytest.mark.parametrize("door", DOORS)
def test_no_door_imports_torch(door, folder, tiny):
    """In a process of its own each door gives the core's vector, and torch is never imported."""
    code = (
        "import sys, json\nmodel, query = sys.argv[1:]\n"
        + textwrap.dedent(DOORS[door])
        + "\nheavy = {'torch', 'transformers', 'onnx', 'safetensors'} & set(sys.modules)\n"
        "print(json.dumps([sorted(heavy), [float(x) for x in vector]]))"
    )
    query = "What is the capital of France?"
    command = [sys.executable, "-W", "ignore", "-c", code, str(folder), query]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    heavy, vector = json.loads(done.stdout.splitlines()[-1])
    assert not heavy, heavy
    assert np.abs(np.array(vector) - tiny.encode_queries([query])[0]).max() <= 1e-4
