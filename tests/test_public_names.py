"""What the package shows: its names, its options, its tree; and that showing them costs nothing."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import qwen3_embedding_integrations as package
from qwen3_embedding_integrations import EncoderConfig, RerankerConfig
from qwen3_embedding_integrations.core.config import EncoderOptions, RerankerOptions

ROOT = Path(__file__).parent.parent
DOCUMENTED = {
    "CacheStats",
    "CachedEncoder",
    "DiskStore",
    "MemoryStore",
    "RedisStore",
    "EncoderConfig",
    "EncoderStats",
    "Qwen3Encoder",
    "shared_encoder",
    "Qwen3Reranker",
    "RerankerConfig",
    "RerankerStats",
    "RankedDocument",
    "shared_reranker",
    "merge_lora",
    "quantize_model",
    "QuantizedModel",
    "export_model",
    "ExportedModel",
    "Qwen3Retriever",
    "KeywordIndex",
    "Hit",
    "HybridStore",
    "SearchStore",
    "Reranker",
    "EncoderReranker",
    "EmbeddingContract",
    "Encoder",
    "Qwen3EmbeddingError",
    "ConfigError",
    "ContractMismatchError",
    "DeviceOutOfMemoryError",
    "EngineClosedError",
    "EngineError",
    "IndexReport",
    "IndexingError",
    "InputError",
    "MissingDependencyError",
    "ModelError",
    "ModelLoadError",
    "QueueFullError",
    "NonFiniteOutputError",
    "RemoteEncoder",
    "RemoteError",
    "StoreError",
    "TextTooLongError",
    "index_documents",
    "Check",
    "Diagnosis",
    "Fault",
    "diagnose",
    "Comparison",
    "compare",
    "Evaluation",
    "evaluate",
}
HOSTS = [
    "chromadb", "langchain_core", "llama_index", "qdrant_client", "redis", "mteb", "datasets",
    "ray",
]  # fmt: skip
HEAVY = ["torch", "transformers", "numpy", "tokenizers", "huggingface_hub", "safetensors", "rich"]


def imported_by(code: str) -> set[str]:
    """Return the top-level modules that a fresh process has imported after `code`."""
    report = "import sys; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(run.stdout.split())


def test_all_is_the_documented_list():
    """`__all__` holds exactly the documented names, sorted, each once, and each resolves."""
    assert set(package.__all__) == DOCUMENTED
    assert package.__all__ == sorted(package.__all__)
    assert len(package.__all__) == len(DOCUMENTED)
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    assert set(dir(package)) >= DOCUMENTED


def test_star_import_gives_every_name():
    """`from … import *` brings the documented names and nothing else."""
    names: dict[str, object] = {}
    exec(f"from {package.__name__} import *", names)
    assert set(names) - {"__builtins__"} == DOCUMENTED


def test_an_unknown_name_is_an_attribute_error():
    """A name the package does not have is an AttributeError that says so."""
    with pytest.raises(AttributeError, match="has no attribute 'Qwen3Decoder'"):
        _ = package.Qwen3Decoder


def test_importing_the_package_imports_nothing():
    """`import qwen3_embedding_integrations` loads neither torch nor a host nor numpy."""
    found = imported_by(f"import {package.__name__}")
    assert package.__name__ in found
    assert not found & {*HOSTS, *HEAVY}


def test_options_and_errors_need_no_torch():
    """Writing a config, or catching an error, loads no library."""
    found = imported_by(
        f"from {package.__name__} import EncoderConfig, InputError; EncoderConfig()"
    )
    assert not found & {*HOSTS, *HEAVY}


def test_the_encoder_needs_no_host_and_no_transformers():
    """Encoding loads torch, and neither transformers nor any host."""
    code = (
        f"from {package.__name__} import Qwen3Encoder\nQwen3Encoder('tiny').encode_queries(['a'])"
    )
    found = imported_by(code)
    assert "torch" in found
    assert not found & {*HOSTS, "transformers", "sentence_transformers"}


def test_a_cache_needs_no_torch_and_no_redis():
    """Stores and the cache around another encoder load numpy alone; redis with its own store."""
    found = imported_by(
        f"from {package.__name__} import CachedEncoder, DiskStore, MemoryStore, RedisStore"
    )
    assert not found & {*HOSTS, *HEAVY} - {"numpy"}


@pytest.mark.parametrize(
    ("config", "options"), [(EncoderConfig, EncoderOptions), (RerankerConfig, RerankerOptions)]
)
def test_option_names_and_types_are_the_configs(config, options):
    """EncoderOptions, which types the doors' keywords, has EncoderConfig's fields and types.

    All but the model, which every door takes under its host's own name; a reranker's likewise.
    """
    fields = {field.name for field in dataclasses.fields(config)} - {"model"}
    assert set(options.__annotations__) == fields
    has, takes = typing.get_type_hints(config), typing.get_type_hints(options)
    assert {name: takes[name] for name in fields} == {name: has[name] for name in fields}
    assert options.__required_keys__ == frozenset()


def tree_in_the_readme() -> set[str]:
    """Return the paths of README's tree, folders with a final slash."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    blocks = [block for block in blocks if block.startswith(f"{package.__name__}/")]
    assert len(blocks) == 1, f"README.md has {len(blocks)} trees that start with the package's name"
    paths: set[str] = set()
    parents: list[tuple[int, str]] = []
    for line in blocks[0].splitlines()[1:]:
        bare = re.sub("[│├└─]", " ", line)
        if not bare.strip():
            continue
        indent, name = len(bare) - len(bare.lstrip()), bare.split()[0]
        while parents and parents[-1][0] >= indent:
            parents.pop()
        path = "".join(parent for _, parent in parents) + name
        paths.add(path)
        if name.endswith("/"):
            parents.append((indent, name))
    return paths


def test_the_readmes_tree_is_the_tree():
    """README lists every module of the package, and nothing that is not there."""
    folder, listed = ROOT / package.__name__, tree_in_the_readme()
    missing = sorted(path for path in listed if not (folder / path).exists())
    assert not missing, f"README lists what is not there: {missing}"
    files = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    unlisted = sorted(files - listed)
    assert not unlisted, f"README does not list {unlisted}"
    data = {
        path.name if path.parent == folder else f"{path.relative_to(folder).parts[0]}/"
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc", ".typed"}
    }
    assert not data - listed, f"README does not list the data in {sorted(data - listed)}"
