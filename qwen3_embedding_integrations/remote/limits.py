"""How much a server takes in one request: told at first, learnt from what it refuses."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import InputError, NonFiniteOutputError, RemoteError
from .answers import BLANK, NOT_FINITE, TOO_LONG, Answer
from .client import ServerClient, is_of_a_text

REFUSALS = {400, 413, 422}  # statuses of a request that may pass in parts
MAX_BATCH_BYTES = 900_000  # nginx takes a megabyte unless told otherwise, TEI two

# How servers say how many texts they take: TEI 1.9 ("batch size 60 > maximum allowed batch size
# 32"), pydantic in Infinity 0.0.78 ("List should have at most 2048 items after validation"), OpenAI
# ("Expected an array with maximum length 2048"), our own ("give 1 to 2048 in a request").
MOST_TEXTS = re.compile(
    r"(?:maximum allowed batch size|at most|maximum length|give 1 to) (\d+)\b"
    r"(?! *(?:char|token|byte))",
    re.IGNORECASE,
)


@dataclass
class RequestLimits:
    """The most texts and bytes of one request; shared by threads."""

    max_texts: int
    max_length: int
    max_bytes: int = MAX_BATCH_BYTES
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def plan(self, texts: Sequence[str]) -> list[range]:
        """Return which texts go out together: neighbours, as many as the limits let.

        A text that may be longer than `max_length` (no token is shorter than a byte) goes alone,
        so that the server's count of tokens tells whether it was cut.
        """
        parts: list[range] = []
        start = num_bytes = 0
        was_alone = False
        for i, text in enumerate(texts):
            size = len(text.encode())
            is_alone = size >= self.max_length
            is_full = i - start >= self.max_texts or num_bytes + size > self.max_bytes
            if i > start and (is_full or is_alone or was_alone):
                parts.append(range(start, i))
                start, num_bytes = i, 0
            num_bytes += size
            was_alone = is_alone
        return [*parts, range(start, len(texts))] if texts else []

    def learn(self, refused: RemoteError, texts: Sequence[str]) -> None:
        """Lower what the refusal speaks of; one that speaks of no limit changes nothing yet."""
        told = MOST_TEXTS.search(str(refused))
        with self._lock:
            if told and 0 < int(told[1]) < len(texts):
                self.max_texts = min(self.max_texts, int(told[1]))
            elif refused.status == 413:
                num_bytes = sum(len(text.encode()) for text in texts)
                self.max_bytes = min(self.max_bytes, max(num_bytes // 2, 1))

    def learn_texts(self, num_texts: int) -> None:
        """Lower the number of texts to one that has passed where more were refused."""
        with self._lock:
            self.max_texts = min(self.max_texts, num_texts)


def ask(
    client: ServerClient, limits: RequestLimits, texts: Sequence[str], word: str, first_index: int
) -> list[Answer]:
    """Return the answers to these texts, in order; what is refused whole is asked in parts.

    Raises InputError or NonFiniteOutputError for a text that the server refuses alone.
    """
    try:
        return [client.embed(texts)]
    except RemoteError as error:
        if len(texts) == 1:
            _blame(error, f"{word}[{first_index}]", first_index)
            raise
        if error.status not in REFUSALS and not (error.status == 500 and is_of_a_text(error)):
            raise
        limits.learn(error, texts)
    parts = limits.plan(texts)
    is_told = len(parts) > 1
    if not is_told:
        middle = len(texts) // 2
        parts = [range(middle), range(middle, len(texts))]
    answers: list[Answer] = []
    for part in parts:
        some = texts[part.start : part.stop]
        answers += ask(client, limits, some, word, first_index + part.start)
    if not is_told:  # no text was at fault, or it would have been named
        limits.learn_texts(max(map(len, parts)))
    return answers


def _blame(error: RemoteError, name: str, index: int) -> None:
    """Raise what names the text, if the server refused it for what it is."""
    if error.status == 413 or TOO_LONG.search(str(error)):
        raise InputError(
            f"{name} is longer than the server takes ({error}); shorten it, or let the server "
            "read more",
            index=index,
        ) from error
    if BLANK.search(str(error)):
        raise InputError(
            f"the server takes no blank text: {name} ({error})", index=index
        ) from error
    if NOT_FINITE.search(str(error)):
        raise NonFiniteOutputError(
            f"the server cannot encode {name} ({error}); serve the model in bfloat16 or float32: "
            "float16 is too narrow for some texts"
        ) from error
