"""Which texts can be encoded: a list of str, none blank unless told so, none damaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import InputError
from .config import check_choice

MAX_NAMED = 20  # indices listed in a message


@dataclass(frozen=True, slots=True)
class InputRules:
    """What is done with texts that are too long or blank."""

    max_length: int
    on_too_long: str
    on_empty: str

    def with_too_long(self, on_too_long: str | None, allowed: tuple[str, ...]) -> InputRules:
        """Return these rules with another word for long texts, if any. Raises ConfigError."""
        if on_too_long is None:
            return self
        check_choice("on_too_long", on_too_long, allowed)
        return replace(self, on_too_long=on_too_long)


def check_texts(texts: Sequence[str], word: str, rules: InputRules, first_index: int = 0) -> None:
    """Raise TypeError or InputError unless every text can be encoded; `word` is what they are."""
    if isinstance(texts, str):
        singular = {"queries": "query", "documents": "document"}[word]
        raise TypeError(f"{word} is a str; pass a list: [{singular}]")
    if not isinstance(texts, Sequence) or isinstance(texts, bytes | bytearray):
        remedy = "; stream_documents takes any iterable" if word == "documents" else ""
        raise TypeError(f"{word} is a {type(texts).__name__}; pass a list of str{remedy}")
    for index, text in enumerate(texts, first_index):
        check_text(text, f"{word}[{index}]", index)
        if rules.on_empty == "error" and not text.strip():
            kind = "blank" if text else "empty"
            raise InputError(
                f'{word}[{index}] is {kind}; leave it out, or set on_empty="embed" to encode it '
                "as it is",
                index=index,
            )


def check_text(text: object, name: str, index: int | None = None) -> None:
    """Raise InputError unless `text` is a str that can be written down; `name` is what it is."""
    if not isinstance(text, str):
        raise InputError(
            f"{name} is {text!r:.80}, a {type(text).__name__}; it must be a str", index=index
        )
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} holds a lone surrogate (U+{ord(text[error.start]):04X} at character "
            f"{error.start}), which no Unicode encoding can carry; read the source with "
            'errors="replace"',
            index=index,
        ) from error
