"""The verbs with --base-url: a real server of ours computes, and no weights are here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from qwen3_embedding_integrations import (
    ConfigError,
    ContractMismatchError,
    EncoderConfig,
    Qwen3Encoder,
    RemoteError,
)
from qwen3_embedding_integrations.cli import app
from qwen3_embedding_integrations.server import ServedModel, ServerConfig
from qwen3_embedding_integrations.stores import read_contract
from tests.evaluation.sets import DATA, write_help
from tests.server.serving import Running, serving

KEY = "sesame"
NOTE = "# Password\n\nForgot your password? We send a link that works once.\n"
LAW = "出租人出卖租赁房屋的，承租人享有以同等条件优先购买的权利。\n"


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    """Yield a server of `tiny` that wants a key."""
    model = ServedModel.embedding(EncoderConfig(model="tiny", dtype="float32"))
    with serving([model], ServerConfig(api_keys=(KEY,))) as running:
        yield running


@pytest.fixture
def remote(locked: Running, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the options of a user who has no weights, and the key in the environment."""
    monkeypatch.setenv("EMBEDDING_KEY", KEY)
    url = f"{locked.url}/v1"
    return ["--model", "tiny", "--base-url", url, "--api-key-env", "EMBEDDING_KEY"]


def run(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], input=stdin)


def answer(*arguments: object) -> Any:
    """Return what a verb prints as JSON."""
    done = run(*arguments, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


@pytest.mark.parametrize("store", ["chroma", "qdrant"])
def test_index_and_search(
    store: str, remote: list[str], locked: Running, tiny: Qwen3Encoder, tmp_path: Path
) -> None:
    """Files are indexed by the server's vectors; searching takes no option, and no key is kept."""
    files, where = tmp_path / "files", ["--store", store, "--location", tmp_path / "vectors"]
    files.mkdir()
    (files / "note.md").write_text(NOTE, encoding="utf-8")
    (files / "law.txt").write_text(LAW, encoding="utf-8")
    (files / "empty.md").write_text("", encoding="utf-8")
    assert answer("index", files, *where, *remote)["added"] == 2
    assert answer("index", files, *where)["unchanged"] == 2

    query = "房东卖房，租客能优先买吗？"
    (hit, *_) = answer("search", query, *where, "--dense-only")
    expected = (tiny.encode_queries([query]) @ tiny.encode_documents([LAW.strip()]).T).item()
    assert hit["text"] == LAW.strip()
    assert hit["score"] == pytest.approx(expected, abs=1e-4)

    contract = read_contract(store, str(tmp_path / "vectors"), "documents")
    assert contract is not None
    assert (contract.model, contract.revision) == ("tiny", "remote:tiny")
    kept = b"".join(one.read_bytes() for one in (tmp_path / "vectors").rglob("*") if one.is_file())
    assert locked.url.encode() in kept
    assert KEY.encode() not in kept
    other = run("index", files, *where, *remote, "--revision", tiny.contract.revision)
    assert isinstance(other.exception, ContractMismatchError), other.output


def test_a_local_index_is_searched_through_a_server(
    remote: list[str], tiny: Qwen3Encoder, tmp_path: Path
) -> None:
    """Made with the weights, searched without: where the user says that they are the same."""
    (tmp_path / "note.md").write_text(NOTE, encoding="utf-8")
    where = ["--location", tmp_path / "vectors"]
    answer("index", tmp_path / "note.md", *where, "--model", "tiny", "--dtype", "float32")
    refused = run("search", "lost my password", *where, *remote)
    assert isinstance(refused.exception, ContractMismatchError)
    same = ["--revision", tiny.contract.revision]
    (hit,) = answer("search", "lost my password", *where, *remote, *same)
    assert hit["source"].endswith("note.md")


@pytest.mark.parametrize("role", ["document", "query"])
def test_encode(role: str, remote: list[str], tiny: Qwen3Encoder, tmp_path: Path) -> None:
    """Lines become the vectors that the weights make of them."""
    out = tmp_path / "v.npy"
    done = run("encode", *remote, "--role", role, "--output", out, stdin="a line\n第二行\n")
    assert done.exit_code == 0, done.output
    encode = tiny.encode_queries if role == "query" else tiny.encode_documents
    difference = np.abs(np.load(out) - encode(["a line", "第二行"])).max()
    assert difference < 1e-6, difference


def test_evaluate_and_compare(remote: list[str], tmp_path: Path) -> None:
    """Both measure through the server what they measure with the weights."""
    data, local = write_help(tmp_path / "help"), ["--model", "tiny", "--dtype", "float32"]
    sets = [data, DATA / "pairs.tsv"]
    for there, here in zip(
        answer("evaluate", *sets, *remote), answer("evaluate", *sets, *local), strict=True
    ):
        assert there["settings"]["contract"]["revision"] == "remote:tiny"
        for name, metric in here["metrics"].items():
            assert there["metrics"][name]["value"] == pytest.approx(metric["value"], abs=1e-3)
    grid = ["--dimensions", "64,256", "--chunk-tokens", "64", "--chart", tmp_path / "chart"]
    there, here = (answer("compare", data, *options, *grid) for options in (remote, local))
    assert there["contract"]["revision"] == "remote:tiny"
    assert "base_url='http" in there["snippet"]
    assert KEY not in json.dumps(there)
    names = ("instruction", "dimensions")
    there, here = (
        {tuple(row[name] for name in names): row["ndcg@10"][0] for row in one["rows"]}
        for one in (there, here)
    )
    assert there == pytest.approx(here, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        (["--device", "cpu"], ConfigError, "device is 'cpu', which the server"),
        (["--api-key-env", "NO_SUCH_VARIABLE"], ConfigError, "'NO_SUCH_VARIABLE'"),
        (["--model", "another"], RemoteError, "404"),
    ],
)
def test_what_cannot_be(
    arguments: list[str], kind: type[Exception], says: str, remote: list[str], tmp_path: Path
) -> None:
    """What the server decides, a key that is not there and an unknown model are said to be so."""
    done = run("encode", *remote, *arguments, "--output", tmp_path / "v.npy", stdin="a\n")
    assert isinstance(done.exception, kind), done.output
    assert says in str(done.exception)


def test_a_server_has_one_quantization(remote: list[str], tmp_path: Path) -> None:
    """A grid of weights is for weights: a server's are what they are."""
    data = write_help(tmp_path / "help")
    done = run("compare", data, *remote, "--quantization", "none,int8")
    assert isinstance(done.exception, ConfigError)
    assert "which the server decides" in str(done.exception)
