"""The error tree: drawn as it is, caught by built-ins, carried between processes."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

from qwen3_embedding_integrations import errors
from qwen3_embedding_integrations.errors import (
    ConfigError,
    ContractMismatchError,
    DeviceOutOfMemoryError,
    EngineClosedError,
    InputError,
    MissingDependencyError,
    ModelLoadError,
    NonFiniteOutputError,
    Qwen3EmbeddingError,
    TextTooLongError,
)

ALL = {
    name: one
    for name, one in vars(errors).items()
    if inspect.isclass(one) and issubclass(one, Exception)
}
EXAMPLES = [
    ConfigError("dimensions is 0"),
    InputError("queries[3] is empty", index=3),
    TextTooLongError(index=2, num_tokens=9000, max_length=8192),
    ContractMismatchError("another", differences=[("dimensions", 32, 64)]),
    ModelLoadError("no folder"),
    NonFiniteOutputError("NaN"),
    DeviceOutOfMemoryError(num_tokens=9000, device="cuda:0"),
    EngineClosedError("closed"),
    MissingDependencyError("chromadb", extra="chroma"),
]


def test_the_drawn_tree_is_the_tree():
    """The tree at the top of errors.py names every class under its true parent."""
    assert errors.__doc__ is not None
    drawn: dict[str, str] = {}
    path: list[str] = []
    for indent, name in re.findall(r"^( *)(\w+Error)\b", errors.__doc__, re.MULTILINE):
        depth = len(indent) // 2
        path[depth:] = [name]
        drawn[name] = path[depth - 1] if depth else "Exception"
    assert drawn == {name: one.__mro__[1].__name__ for name, one in ALL.items()}
    assert all(issubclass(one, Qwen3EmbeddingError) for one in ALL.values())


def test_the_builtin_bases():
    """Each error is also the built-in error that callers without this package's names catch."""
    assert issubclass(ConfigError, ValueError)
    assert issubclass(InputError, ValueError)
    assert issubclass(ContractMismatchError, ValueError)
    assert issubclass(ModelLoadError, RuntimeError)
    assert issubclass(EngineClosedError, RuntimeError)
    assert issubclass(MissingDependencyError, ImportError)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_travels_between_processes(error):
    """Pickled by a worker and read by its parent, an error keeps its message and its facts."""
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_messages_say_what_to_do():
    """Errors that make their own message hold the numbers and the remedy."""
    assert str(EXAMPLES[2]).startswith("text 2 has 9000 tokens, max_length is 8192")
    assert "lower max_length below 9000" in str(EXAMPLES[6])
    assert "pip install 'qwen3-embedding-integrations[chroma]'" in str(EXAMPLES[8])
