"""The error tree: every error this package raises on purpose, each with what to do about it.

Qwen3EmbeddingError
  ConfigError(ValueError)                an option has a value it cannot have
  InputError(ValueError)                 a text cannot be encoded                .index
    TextTooLongError                     longer than max_length                  .num_tokens
  ContractMismatchError(ValueError)      the index was made otherwise            .differences
  ModelError(RuntimeError)
    ModelLoadError                       files missing, or not a Qwen3 embedding model
    NonFiniteOutputError                 NaN or inf came out of the model
  EngineError(RuntimeError)
    DeviceOutOfMemoryError               one text alone does not fit             .num_tokens .device
    QueueFullError                       more tokens wait than allowed           .num_waiting_tokens
    EngineClosedError                    closed before it could answer
  RemoteError(RuntimeError)              the server failed or answered wrongly   .url .status
  StoreError(RuntimeError)               a store cannot be reached or opened
  IndexingError(RuntimeError)            an indexing job ended early
  MissingDependencyError(ImportError)    an extra is not installed               .package .extra
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any


class Qwen3EmbeddingError(Exception):
    """Base of every error this package raises on purpose; all of them survive pickling."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class ConfigError(Qwen3EmbeddingError, ValueError):
    """An option has a name or a value it cannot have."""


class InputError(Qwen3EmbeddingError, ValueError):
    """A text cannot be encoded; `index` is its place in the list that was passed, if known."""

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class TextTooLongError(InputError):
    """A text is longer than `max_length` and `on_too_long` is "error"."""

    def __init__(
        self,
        *,
        index: int,
        num_tokens: int,
        max_length: int,
        remedies: Sequence[str] = ("truncate", "chunk_mean"),
    ) -> None:
        choices = " or ".join(f'"{remedy}"' for remedy in remedies)
        super().__init__(
            f"text {index} has {num_tokens} tokens, max_length is {max_length}; shorten it, raise "
            f"max_length, or set on_too_long={choices}",
            index=index,
        )
        self.num_tokens = num_tokens


class ContractMismatchError(Qwen3EmbeddingError, ValueError):
    """Stored vectors were made otherwise than the encoder at hand would make them.

    `differences` holds (field, stored value, given value) for each fact that differs.
    """

    def __init__(
        self, message: str, *, differences: Sequence[tuple[str, object, object]] = ()
    ) -> None:
        super().__init__(message)
        self.differences = tuple(differences)


class ModelError(Qwen3EmbeddingError, RuntimeError):
    """The model cannot be loaded or does not compute."""


class ModelLoadError(ModelError):
    """The checkpoint is missing, damaged, or not a Qwen3 embedding model."""


class NonFiniteOutputError(ModelError):
    """NaN or inf came out of the model."""


class EngineError(Qwen3EmbeddingError, RuntimeError):
    """The engine could not answer a call."""


class DeviceOutOfMemoryError(EngineError):
    """One text alone does not fit on the device."""

    def __init__(self, *, num_tokens: int, device: str) -> None:
        super().__init__(
            f"a text of {num_tokens} tokens does not fit in the memory of {device}, even alone; "
            f"lower max_length below {num_tokens}, or use a smaller model or dtype"
        )
        self.num_tokens = num_tokens
        self.device = device


class QueueFullError(EngineError):
    """So many tokens wait that a call is refused; `num_waiting_tokens` were waiting."""

    def __init__(self, *, num_tokens: int, num_waiting_tokens: int, max_queue_tokens: int) -> None:
        super().__init__(
            f"a call of {num_tokens} tokens is refused: {num_waiting_tokens} wait already, "
            f"max_queue_tokens is {max_queue_tokens}; try again in a moment, or raise it"
        )
        self.num_waiting_tokens = num_waiting_tokens


class EngineClosedError(EngineError):
    """The encoder was closed before it could answer."""


class RemoteError(Qwen3EmbeddingError, RuntimeError):
    """A server could not be reached, refused, or answered what is no answer.

    `status` is that of the HTTP answer, None where there was none; `retry_after_s` is how long
    the server wants not to be asked, if it said so.
    """

    def __init__(
        self,
        message: str,
        *,
        url: str,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.url = url
        self.status = status
        self.retry_after_s = retry_after_s


class StoreError(Qwen3EmbeddingError, RuntimeError):
    """A vector store cannot be reached or opened."""


class IndexingError(Qwen3EmbeddingError, RuntimeError):
    """An indexing job ended early; what it committed stays, and the next run goes on from there."""


class MissingDependencyError(Qwen3EmbeddingError, ImportError):
    """A package that an extra installs is not there."""

    def __init__(self, package: str, *, extra: str, reason: object = "not installed") -> None:
        super().__init__(
            f"{package} cannot be imported ({reason}); run: "
            f"pip install 'qwen3-embedding-integrations[{extra}]'"
        )
        self.package = package
        self.extra = extra


@contextmanager
def needs(package: str, *, extra: str) -> Generator[None]:
    """Raise MissingDependencyError where an import within fails."""
    try:
        yield
    except MissingDependencyError:  # of something that was imported within
        raise
    except ImportError as error:
        raise MissingDependencyError(package, extra=extra, reason=error) from error


def _rebuild(
    kind: type[Qwen3EmbeddingError], args: tuple[Any, ...], facts: dict[str, Any]
) -> Qwen3EmbeddingError:
    error = kind.__new__(kind, *args)  # not __init__, which would make the message anew
    error.__dict__.update(facts)
    return error
