"""From a call's answers to its vectors: one width, finite, cut, of unit length, counted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import numpy as np

from ..core.config import EncoderConfig
from ..core.texts import MAX_NAMED
from ..errors import ConfigError, InputError, NonFiniteOutputError, RemoteError
from .answers import Answer, Vectors

logger = logging.getLogger(__name__)

UNIT = 1e-5  # a length this near to 1 is a rounding of float32: the vector is left as it was sent


class Assembly:
    """Makes unit vectors of what a server answers, and keeps count; used by many threads."""

    def __init__(self, config: EncoderConfig) -> None:
        self._config = config
        self._url = str(config.base_url)
        self._lock = threading.Lock()
        self._num_texts = self._num_tokens = self._num_truncated = 0
        self.width: int | None = None  # of the server's vectors, once it is known

    @property
    def counts(self) -> tuple[int, int, int]:
        """Texts, tokens and texts that were probably cut, so far."""
        with self._lock:
            return self._num_texts, self._num_tokens, self._num_truncated

    def note_width(self, answer: Answer) -> int:
        """Return the width of the server's vectors. Raises where it is not what it was."""
        width = answer.vectors.shape[1]
        with self._lock:
            known = self.width = self.width or width
        if width != known:
            raise RemoteError(
                f"{self._url} answered with vectors of {width} dimensions, before of {known}; "
                "every server must serve the same model",
                url=self._url,
                status=200,
            )
        if self._config.dimensions is not None and self._config.dimensions > width:
            raise ConfigError(
                f"dimensions is {self._config.dimensions}, {self._url} makes {width}; choose a "
                "smaller number, or None"
            )
        return width

    def vectors(self, answers: Sequence[Answer], word: str, first_index: int) -> Vectors:
        """Return the unit vectors of a call's answers, (N, dimensions) float32.

        Raises NonFiniteOutputError, RemoteError; InputError for a text that was cut, where that is
        an error.
        """
        (width,) = {self.note_width(answer) for answer in answers}
        vectors = np.concatenate([answer.vectors for answer in answers])
        vectors = np.ascontiguousarray(vectors[:, : self._config.dimensions or width])
        lengths = np.linalg.norm(vectors, axis=1)
        is_good = np.isfinite(lengths) & (lengths > 0)
        if not is_good.all():
            raise NonFiniteOutputError(
                f"{self._url} answered {word}[{first_index + int(np.argmin(is_good))}] with NaN, "
                "inf or zeros; serve the model in bfloat16 or float32: float16 is too narrow for "
                "some texts"
            )
        is_off = np.abs(lengths - 1) > UNIT
        vectors[is_off] /= lengths[is_off, None]
        self._count(answers, word, first_index)
        return vectors

    def _count(self, answers: Sequence[Answer], word: str, first_index: int) -> None:
        """Count a call, and tell of texts that the server has probably cut."""
        cut: list[int] = []
        index, max_length = first_index, self._config.max_length
        for answer in answers:
            if len(answer.vectors) == 1 and (answer.num_tokens or 0) >= max_length:
                cut.append(index)
            index += len(answer.vectors)
        with self._lock:
            self._num_texts += index - first_index
            self._num_tokens += sum(answer.num_tokens or 0 for answer in answers)
            self._num_truncated += len(cut)
        if not cut:
            return
        named = ", ".join(map(str, cut[:MAX_NAMED])) + (", …" if len(cut) > MAX_NAMED else "")
        said = f"{word} {named}: the server read max_length={max_length} tokens or more"
        if self._config.on_too_long == "error":
            raise InputError(f"{said}; shorten what it may have cut", index=cut[0])
        logger.warning("%s, and may have cut the rest", said)
