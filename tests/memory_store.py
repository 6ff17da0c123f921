"""Texts and vectors in memory, compared one by one: what a retriever is checked against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen3_embedding_integrations import Hit, Qwen3Encoder


class MemoryStore:
    """A SearchStore by brute force."""

    def __init__(self, encoder: Qwen3Encoder, documents: Mapping[str, tuple[str, dict[str, Any]]]):
        self.documents = dict(documents)
        self.ids = list(documents)
        self.vectors = encoder.encode_documents([text for text, _ in documents.values()])

    def nearest(
        self, vector: npt.NDArray[np.float32], *, limit: int, where: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        scores = self.vectors @ vector
        order = [i for i in np.argsort(-scores, kind="stable") if self.allows(self.ids[i], where)]
        return [self.hit(self.ids[i], float(scores[i])) for i in order[:limit]]

    def fetch(self, ids: Sequence[str], *, where: Mapping[str, Any] | None = None) -> list[Hit]:
        return [self.hit(id_, 0.0) for id_ in ids if self.allows(id_, where)]

    def hit(self, id_: str, score: float) -> Hit:
        text, facts = self.documents[id_]
        return Hit(id_, score, text, facts)

    def allows(self, id_: str, where: Mapping[str, Any] | None) -> bool:
        if id_ not in self.documents:
            return False
        facts = self.documents[id_][1]
        return all(
            facts.get(field) in (value if isinstance(value, list) else [value])
            for field, value in (where or {}).items()
        )
