"""Ids and payloads of points, checked before anything is encoded."""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError

DOCUMENT_KEY = "document"  # of a point's payload
NAMESPACE = uuid.UUID("6e1d4d3c-3f9e-5a53-9c3e-2f6b6a1c7d10")  # of our uuid5 ids: never change it


def point_ids(
    documents: Sequence[str], ids: Sequence[int | str | uuid.UUID] | None
) -> list[int | str]:
    """Return the id of each document's point. Raises InputError where the lists do not fit."""
    if ids is None:
        seen: Counter[str] = Counter()
        point_ids: list[int | str] = []
        for document in documents:
            # surrogatepass: a damaged text gets its clear error from the encoder.
            text = hashlib.sha256(str(document).encode("utf-8", "surrogatepass")).hexdigest()
            point_ids.append(str(uuid.uuid5(NAMESPACE, f"document:{seen[text]}:{text}")))
            seen[text] += 1
        return point_ids
    _check_length("ids", ids, documents)
    point_ids = [_point_id(one, index) for index, one in enumerate(ids)]
    if repeated := [one for one, count in Counter(point_ids).items() if count > 1]:
        raise InputError(
            f"{len(repeated)} ids stand more than once (first: {repeated[0]!r}); the last document "
            "would overwrite the others: give each its own id"
        )
    return point_ids


def _point_id(given: object, index: int) -> int | str:
    if isinstance(given, uuid.UUID):
        return str(given)
    if isinstance(given, int | np.integer) and not isinstance(given, bool):
        if 0 <= given < 2**64:
            return int(given)
    elif isinstance(given, str) and given:
        try:
            return str(uuid.UUID(given))
        except ValueError:
            return str(uuid.uuid5(NAMESPACE, f"id:{given}"))
    raise InputError(
        f"ids[{index}] is {given!r}; give an int from 0 to 2**64 - 1, a UUID or a str", index=index
    )


def payloads_of(
    documents: Sequence[str], payloads: Sequence[Mapping[str, Any]] | None
) -> list[dict[str, Any]]:
    """Return each document's payload with the document in it."""
    if payloads is None:
        return [{DOCUMENT_KEY: document} for document in documents]
    _check_length("payloads", payloads, documents)
    for index, payload in enumerate(payloads):
        if payload.get(DOCUMENT_KEY, documents[index]) != documents[index]:
            raise InputError(
                f'payloads[{index}] has a "{DOCUMENT_KEY}" of its own, which would hide the '
                "document's text; name the field otherwise",
                index=index,
            )
    return [
        {**payload, DOCUMENT_KEY: document}
        for document, payload in zip(documents, payloads, strict=True)
    ]


def _check_length(word: str, given: Sequence[object], documents: Sequence[str]) -> None:
    if isinstance(given, str):
        raise TypeError(f"{word} is a str; pass a list with one for each document")
    if len(given) != len(documents):
        raise InputError(f"{len(given)} {word} for {len(documents)} documents; give one for each")
