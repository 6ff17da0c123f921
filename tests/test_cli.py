"""The command, run as a user runs it: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from qwen3_embedding_integrations import ContractMismatchError, Qwen3Encoder
from qwen3_embedding_integrations.cli import app
from qwen3_embedding_integrations.core.linear import has_packed_products
from tests.checkpoints import write_adapter

HELP = "# Password\n\nForgot your password? We send a link that works once.\n"
LAW = "出租人出卖租赁房屋的，承租人享有以同等条件优先购买的权利。\n"
ROWS = '{"text": "Water boils at 100 °C at sea level.", "topic": "physics"}\n'


def run(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run `qwen3-embedding` with these arguments."""
    command = [sys.executable, "-m", "qwen3_embedding_integrations", *map(str, arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1", "COLUMNS": "120"}
    return subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files in two languages, and one that is damaged."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "help.md").write_text(HELP, encoding="utf-8")
    (folder / "law.txt").write_text(LAW, encoding="utf-8")
    (folder / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    (folder / "damaged.pdf").write_bytes(b"%PDF-1.7 and nothing more")
    return folder


@pytest.mark.parametrize("store", ["chroma", "qdrant"])
def test_index_then_search(store: str, folder: Path, tmp_path: Path) -> None:
    """What was indexed is found with the stored options; a damaged file is named, others kept."""
    place = ["--store", store, "--location", str(tmp_path / "vectors")]
    indexed = run("index", folder, *place, "--model", "tiny", "--dimensions", 128)
    assert indexed.returncode == 1, indexed.stderr
    assert "damaged.pdf" in indexed.stderr
    assert "3 pieces added" in indexed.stdout
    assert "1 failed; 3 rows" in indexed.stdout

    found = run("search", "房东卖房，租客能优先买吗？", *place, "--json")
    assert found.returncode == 0, found.stderr
    hits = json.loads(found.stdout)
    assert hits[0]["text"] == LAW.strip()
    assert hits[0]["source"].endswith("law.txt")
    assert [hit["score"] for hit in hits] == sorted((h["score"] for h in hits), reverse=True)
    assert {hit.get("topic") for hit in hits} == {None, "physics"}

    # The same command, in this process: one start-up of torch less for each line.
    again = CliRunner().invoke(app, ["index", str(folder / "law.txt"), *place])
    assert again.exit_code == 0, again.output
    assert "0 pieces added, 0 changed, 1 unchanged" in again.output
    assert "3 rows" in again.output, "the same file indexed again must change nothing"

    (folder / "shrinks.jsonl").write_text(ROWS.replace("\n", "") + "\n" + ROWS, encoding="utf-8")
    longer = CliRunner().invoke(app, ["index", str(folder / "shrinks.jsonl"), *place])
    assert "5 rows" in longer.output
    (folder / "shrinks.jsonl").write_text('{"text": "[/INST] in [brackets]", "score": 7}\n')
    shorter = CliRunner().invoke(app, ["index", str(folder / "shrinks.jsonl"), *place])
    assert "4 rows" in shorter.output, "what a file no longer holds must go"
    marked = CliRunner().invoke(app, ["search", "[/INST]", *place])
    assert marked.exit_code == 0, marked.output
    assert "[/INST] in [brackets]" in marked.output
    rows = json.loads(CliRunner().invoke(app, ["search", "[/INST]", *place, "--json"]).output)
    assert [row["score_"] for row in rows if "score_" in row] == [7]
    (folder / "shrinks.jsonl").unlink()

    table = CliRunner().invoke(app, ["search", "forgot password", *place, "--limit", "1"])
    assert "help.md #0" in table.output, table.output
    assert "Forgot your password?" in table.output

    other_width = [*place, "--dimensions", "64"]
    refused = CliRunner().invoke(app, ["index", str(folder / "law.txt"), *other_width])
    assert isinstance(refused.exception, ContractMismatchError), refused.output
    assert [field for field, _, _ in refused.exception.differences] == ["dimensions"]

    model = ["--model", "tiny"]
    same = CliRunner().invoke(app, ["contract", "diff", *place, *model, "--dimensions", "128"])
    assert (same.exit_code, same.output[:13]) == (0, "no difference")
    other = CliRunner().invoke(app, ["contract", "diff", *place, *model, "--json"])
    assert other.exit_code == 1
    assert json.loads(other.output) == [
        {"field": "dimensions", "stored": 128, "given": 256, "is_hard": True}
    ]
    shown = json.loads(CliRunner().invoke(app, ["contract", "show", *place]).output)
    assert (shown["model"], shown["dimensions"]) == ("tiny", 128)


def test_encode(tmp_path: Path) -> None:
    """Lines become the rows that the encoder makes of them, as .npy and as JSON lines."""
    lines = ["Paris is the capital of France.", "房东要卖房", "one\u2028line"]
    stdin = "\n".join(lines) + "\n"
    with Qwen3Encoder("tiny") as encoder:
        documents, queries = encoder.encode_documents(lines), encoder.encode_queries(lines)

    done = run("encode", "--model", "tiny", "--output", tmp_path / "v.npy", stdin=stdin)
    assert done.returncode == 0, done.stderr
    difference = np.abs(np.load(tmp_path / "v.npy") - documents).max()
    assert difference < 1e-6, difference

    arguments = ["--role", "query", "--output", tmp_path / "v.jsonl"]
    done = run("encode", "--model", "tiny", *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "v.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert [row["text"] for row in rows] == lines
    difference = np.abs(np.array([row["vector"] for row in rows]) - queries).max()
    assert difference < 1e-6, difference


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        (["encode", "--output", "v.npy", "--model", "./nowhere"], "a\n", "no folder './nowhere'"),
        (["encode", "--output", "v.txt", "--model", "tiny"], "a\n", "end it in .npy or .jsonl"),
        (["encode", "--output", "v.npy", "--model", "tiny"], "a\n\nb\n", "documents[1] is empty"),
        (["encode", "--output", "no/v.npy", "--model", "./nowhere"], "a\n", "stand in no, which"),
        (["encode", "--output", "v.npy", "--model", "tiny", "--dtype", "int3"], "a\n", "'int3'"),
        (["search", "x", "--location", "nowhere"], "", "run `qwen3-embedding index` first"),
        (["index", "nowhere.md", "--model", "tiny"], "", "nowhere.md does not exist"),
        (["contract", "show", "--location", "typo"], "", "no folder 'typo'"),
        (["search", "x", "--location", "http://127.0.0.1:9"], "", "does the server run?"),
        (
            ["search", "x", "--store", "qdrant", "--location", "http://127.0.0.1:9"],
            "",
            "StoreError",
        ),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], stdin: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake ends with status 2 and a line that says what to do, never with a traceback."""
    monkeypatch.chdir(tmp_path)
    done = run(*arguments, stdin=stdin)
    assert done.returncode == 2, done.stderr
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_demo() -> None:
    """The demo finds the expected text for each of its five questions through each door."""
    done = run("demo")
    assert done.returncode == 0, done.stderr
    for door in ("Chroma", "LangChain", "LlamaIndex", "Qdrant"):
        assert done.stdout.count(f"{door} ✓") == 5, done.stdout


@pytest.mark.skipif(not has_packed_products(), reason="int8 needs x86 and oneDNN")
def test_quantize_then_encode(tmp_path: Path) -> None:
    """quantize writes a model that encode takes, and names what it left in bfloat16."""
    folder = tmp_path / "tiny-int8"
    written = run("quantize", "tiny", folder)
    assert written.returncode == 0, written.stderr
    assert "--model" in written.stdout
    assert "kept in bfloat16: layers.0.qkv" in written.stdout, written.stdout
    arguments = {
        "folder": ["--model", folder],
        "flag": ["--model", "tiny", "--quantization", "int8"],
    }
    vectors = {}
    for name, options in arguments.items():
        done = run("encode", *options, "--output", tmp_path / f"{name}.npy", stdin=LAW + ROWS)
        assert done.returncode == 0, done.stderr
        vectors[name] = np.load(tmp_path / f"{name}.npy")
    assert np.array_equal(vectors["folder"], vectors["flag"])

    again = run("quantize", "tiny", folder)
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_merge_and_encode_with_an_adapter(
    tmp_path: Path, tiny: Qwen3Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """merge writes a model with the vectors of --lora, also where that is a hub's, by revision."""
    base = Path(str(files("qwen3_embedding_integrations") / "tiny"))
    hub = tmp_path / "home" / "hub" / "models--owner--adapter"
    adapter = write_adapter(hub / "snapshots" / ("ab" * 20), base, lora_alpha=2)
    (hub / "refs").mkdir()
    (hub / "refs" / "v2").write_text("ab" * 20)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    written = run("merge", "tiny", adapter, tmp_path / "merged", "--dtype", "float32")
    assert written.returncode == 0, written.stderr
    assert "use it as a model" in written.stdout
    vectors = {}
    options = {"merged": ["merged"], "hub": ["tiny", "--lora", "owner/adapter@v2"]}
    for name, (model, *lora) in options.items():
        place = tmp_path / model if model == "merged" else model
        output = tmp_path / f"{name}.npy"
        done = run(
            "encode", "--model", place, *lora, "--dtype", "float32", "--output", output, stdin=LAW
        )
        assert done.returncode == 0, done.stderr
        vectors[name] = np.load(output)
    assert np.abs(vectors["merged"] - vectors["hub"]).max() <= 1e-6
    assert np.abs(vectors["hub"] - tiny.encode_documents([LAW.rstrip()])).max() > 0.01


def test_rerank(reranker_checkpoint: Path) -> None:
    """rerank prints the lines best first, as text or JSON; without lines it says what to give."""
    options = ["--model", reranker_checkpoint, "--dtype", "float32"]
    lines = "first line\n二\n\n[/x] third\n"
    done = run("rerank", "a question", *options, "--json", stdin=lines)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {(row["index"], row["document"]) for row in rows} == {
        *enumerate(["first line", "二", "", "[/x] third"])
    }
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)

    plain = run("rerank", "a question", *options, "--top-n", 2, stdin=lines)
    assert plain.stdout.splitlines() == [f"{r['score']:.4f}\t{r['document']}" for r in rows[:2]]
    empty = run("rerank", "a question", *options)
    assert empty.returncode == 2
    assert "no documents on standard input" in empty.stderr
    wrong = run("rerank", "a question", "--model", "tiny", stdin=lines)
    assert wrong.returncode == 2
    assert "not a reranker" in " ".join(wrong.stderr.split())
