"""What an encoder promises: the Encoder protocol, the EmbeddingContract kept beside its vectors."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from .core.prompts import DOCUMENT_TEMPLATE, END_TOKEN
from .errors import ContractMismatchError

logger = logging.getLogger(__name__)

Vectors = npt.NDArray[np.float32]

# Facts that change a document's vector: stored and given must agree.
HARD_FACTS = (
    "revision",
    "lora",
    "dimensions",
    "document_template",
    "end_token",
    "pooling",
    "normalization",
)
# Facts that change it by a rounding, or only some of them: noted once, never refused.
SOFT_FACTS = (
    "dtype",
    "quantization",
    "instruction",
    "max_length",
    "on_too_long",
    "package_version",
)


class Encoder(Protocol):
    """Texts to unit vectors: what the doors need, whoever computes them."""

    @property
    def dimensions(self) -> int: ...
    @property
    def contract(self) -> EmbeddingContract: ...
    def encode_queries(
        self, queries: Sequence[str], *, instruction: str | None = None
    ) -> Vectors: ...
    def encode_documents(self, documents: Sequence[str]) -> Vectors: ...
    async def aencode_queries(
        self, queries: Sequence[str], *, instruction: str | None = None
    ) -> Vectors: ...
    async def aencode_documents(self, documents: Sequence[str]) -> Vectors: ...
    def stream_documents(
        self, documents: Iterable[str], *, window: int = ...
    ) -> Iterator[Vectors]: ...


class EncoderStats(NamedTuple):
    """What an encoder has done since it was made; forwards and retries count the whole engine."""

    texts: int
    tokens: int
    truncated: int
    forwards: int
    retries: int


class Difference(NamedTuple):
    """One fact in which two contracts differ."""

    field: str
    stored: Any
    given: Any
    is_hard: bool  # the vectors cannot be compared with each other


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingContract:
    """The facts that made a vector; kept beside it, compared when an index is opened.

    `revision` is a hash of the model's files, so that the same files are the same model under
    whatever name or path; `model` is for the reader.
    """

    model: str
    revision: str
    dimensions: int
    instruction: str
    max_length: int
    on_too_long: str
    dtype: str
    package_version: str
    lora: str | None = None
    quantization: str | None = None
    document_template: str = DOCUMENT_TEMPLATE
    end_token: str = END_TOKEN
    pooling: str = "last token"
    normalization: str = "L2"

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits, equal exactly where vectors may stand in one index."""
        facts = {name: getattr(self, name) for name in HARD_FACTS}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]

    def difference(self, stored: EmbeddingContract) -> list[Difference]:
        """Return the facts in which `stored` differs from this contract, hard ones first."""
        return [
            Difference(name, getattr(stored, name), getattr(self, name), name in HARD_FACTS)
            for name in HARD_FACTS + SOFT_FACTS
            if getattr(stored, name) != getattr(self, name)
        ]

    def require_match(
        self, stored: EmbeddingContract, *, index: str, allow_mismatch: bool = False
    ) -> None:
        """Raise ContractMismatchError if vectors made under `stored` cannot be compared with ours.

        `index` names what is being opened. Soft differences are logged once per process, as a
        warning, or as information if only the package's version differs: an upgrade is no fault.
        """
        differences = self.difference(stored)
        hard = [difference for difference in differences if difference.is_hard]
        if hard and not allow_mismatch:
            names = f" (stored: {stored.model}, yours: {self.model})"
            is_unseen = "remote:" in f"{self.revision}{stored.revision}"
            hint = " (if a server's weights are the same, give revision=)" if is_unseen else ""
            raise ContractMismatchError(
                f"{index} was made under another contract{names}: {_describe(hard)}{hint}. Open it "
                "with the options it was made with, index again under another name, or pass "
                "allow_mismatch=True to compare vectors that do not belong together",
                differences=[(one.field, one.stored, one.given) for one in hard],
            )
        if differences:
            is_upgrade = [difference.field for difference in differences] == ["package_version"]
            level = logging.INFO if is_upgrade else logging.WARNING
            _log_once(level, f"{index} was made with {_describe(differences)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON-able values, the fingerprint among them."""
        return {**asdict(self), "fingerprint": self.fingerprint}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any] | str) -> EmbeddingContract:
        """Return the contract of `to_dict`, or of its JSON; refuse facts this version knows not."""
        try:
            facts = json.loads(facts) if isinstance(facts, str) else facts
        except ValueError as error:
            raise ContractMismatchError(f"the stored contract is damaged: {error}") from error
        if not isinstance(facts, Mapping):
            raise ContractMismatchError(f"the stored contract is damaged: {facts!r:.80}")
        known = {field.name for field in fields(cls)}
        given = {name: value for name, value in facts.items() if name != "fingerprint"}
        if unknown := sorted(set(given) - known):
            raise ContractMismatchError(
                f"the stored contract has facts this version does not know "
                f"({', '.join(unknown)}); upgrade qwen3-embedding-integrations"
            )
        try:
            return cls(**given)
        except TypeError as error:
            raise ContractMismatchError(f"the stored contract is incomplete: {error}") from error


def _describe(differences: Sequence[Difference]) -> str:
    return "; ".join(f"{d.field}: stored {d.stored!r}, yours {d.given!r}" for d in differences)


_logged: set[str] = set()


def _log_once(level: int, message: str) -> None:
    if message not in _logged:
        _logged.add(message)
        logger.log(level, message)
