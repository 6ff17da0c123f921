"""Files and folders to documents, long ones to pieces, each with source and position."""

from __future__ import annotations

import csv
import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from .core.config import check_range
from .errors import InputError, MissingDependencyError

Metadata = dict[str, str | int | float | bool]

MARKDOWN = (".md", ".markdown", ".html", ".htm", ".docx")  # read as, or rendered to, Markdown
SUFFIXES = (".txt", *MARKDOWN, ".pdf", ".csv", ".jsonl")
HIDDEN = (".", "~$")  # "~$" begins the lock file of a document that is open in Word
TEXT_FIELDS = ("text", "document", "content", "body")
MIN_TOKENS = 16  # one character in decomposed form takes up to 13 tokens with the end token
WINDOW = 50_000  # characters per call: without sentence ends the splitter's time grows as a square
MAX_SENTENCE = 600  # characters: longer without a full stop is a list or a log, not a sentence
WRAP = "\v"  # a line break inside a sentence: the splitter takes it for a space, we turn it back

ENDS = ".!?…。！？；;:："
FENCE = r"^ {0,3}(?:```|~~~)[\s\S]*?^ {0,3}(?:```|~~~)"
WRAPPED = re.compile(
    rf"{FENCE}|^[ \t]*[#|>].*|^.* \| .*"  # code, headings, table rows and quotes keep their lines
    rf"|(?P<prose>[^\s{ENDS}]"
    rf"(?:[^{ENDS}\n]|\n(?=[^\W_]|[\"'“‘(（《「])(?!\d+[.)、])(?!.* \| ))*)",
    re.MULTILINE,
)
HEADING = re.compile(
    rf"{FENCE}|\A---\n[\s\S]*?\n---$"  # a # in code or in the front matter is no heading
    r"|^ {0,3}#{1,6}[ \t]+(?P<marked>\S.*?)(?:[ \t]+#+)?[ \t]*$"
    r"|^(?P<underlined>[^\s>|#-].*)\n(?:=+|--+)[ \t]*$",
    re.MULTILINE,
)
DOCX_HEADING = re.compile(r"(?:heading|标题) ?([1-9])|title", re.IGNORECASE)
DOCX_BLOCKS = "(. | .//w:sdtContent[not(ancestor::w:p or ancestor::w:tbl)])/*[self::w:p or self::w:tbl]"
# Not Paragraph.text: it leaves out tracked insertions and form fields (python-docx 1.2).
DOCX_RUNS = ".//w:r[not(ancestor::w:txbxContent or ancestor::w:moveFrom)]"
HTML_DROPPED = ["script", "style", "nav", "noscript", "template", "svg"]
HTML_HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6"]
HTML_BLOCKS = HTML_HEADINGS + (
    "p div ul ol dl dt dd table caption pre blockquote section article main header footer aside "
    "figure figcaption form fieldset address details summary hr body"
).split()
BLOCK, LEVEL, LINE, SPACE, TAB = "\0\1\2\3\4"  # marks in the text of a page being rendered


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of a file, with where it came from."""

    text: str
    source: str  # the path as given, with forward slashes
    position: int  # 0 for the first piece of the source
    title: str | None = None  # the nearest heading before it; of HTML at least the page's title
    metadata: Metadata = field(default_factory=dict[str, str | int | float | bool])


class _Part(NamedTuple):
    """A text that is split on its own: a file, a page, a row."""

    text: str
    metadata: Metadata = {}
    title: str | None = None
    headings: Sequence[tuple[int, str]] = ()  # where each begins in the text


def find_files(paths: Iterable[str | Path]) -> list[Path]:
    """Return the files to read: those given, and all supported ones in the folders given, sorted.

    Hidden files and folders and links to folders are passed over, repeated files named once.
    Raises InputError for a path that does not exist and for a given file of another kind.
    """
    if isinstance(paths, str | Path):
        raise TypeError("paths is a single path; pass a list: [path]")
    found = (_walk(path) if path.is_dir() else [_check(path)] for path in map(Path, paths))
    return list(dict.fromkeys(file for files in found for file in files))


def read_documents(
    path: str | Path,
    *,
    count_tokens: Callable[[str], int],
    max_tokens: int = 512,
    text_field: str | None = None,
) -> Iterator[Document]:
    """Yield a file's documents, in order, none longer than `max_tokens` by `count_tokens`.

    Prose and PDF pages are split where a section, a paragraph or a sentence ends, inside a
    sentence only if it alone is too long. CSV and JSONL give a document per row, of the column
    or field `text_field`; without it, CSV gives "column: value" lines and JSONL the first of text,
    document, content and body. Raises InputError for a file that cannot be read, ConfigError,
    and MissingDependencyError without the extra "files".
    """
    path = _check(Path(path))
    check_range("max_tokens", max_tokens, MIN_TOKENS, 1_000_000)
    library = _import("semantic_text_splitter", "semantic-text-splitter")
    is_markdown = path.suffix.lower() in MARKDOWN
    kind = library.MarkdownSplitter if is_markdown else library.TextSplitter
    # Not from_huggingface_tokenizer: it leaves out the end token, and builds a copy per file.
    splitter = kind.from_callback(lambda text: count_tokens(text.replace(WRAP, "\n")), max_tokens)
    return _split(path.as_posix(), _read(path, text_field), splitter)


def _split(source: str, parts: Iterator[_Part], splitter: Any) -> Iterator[Document]:
    position = 0
    for part in parts:
        starts = [start for start, _ in part.headings]
        for offset, window in _windows(WRAPPED.sub(_join_lines, part.text)):
            for start, piece in splitter.chunk_indices(window):
                if text := piece.replace(WRAP, "\n").strip():
                    nearest = bisect_right(starts, offset + start) - 1
                    title = part.headings[nearest][1] if nearest >= 0 else part.title
                    yield Document(text, source, position, title, dict(part.metadata))
                    position += 1


def _join_lines(match: re.Match[str]) -> str:
    is_sentence = match["prose"] and len(match[0]) <= MAX_SENTENCE
    return match[0].replace("\n", WRAP) if is_sentence else match[0]


def _windows(text: str) -> Iterator[tuple[int, str]]:
    """Yield the text in parts the splitter is fast on, each with its offset."""
    start = 0
    while len(text) - start > WINDOW:
        stop = start + WINDOW
        ends = (text.rfind(mark, start + WINDOW // 2, stop) for mark in ("\n\n", "\n", "。", ". ", " "))
        stop = next((end + 1 for end in ends if end >= 0), stop)
        yield start, text[start:stop]
        start = stop
    yield start, text[start:]


def _check(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"{path} does not exist; give files ({' '.join(SUFFIXES)}) or folders")
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        raise InputError(f"{path} cannot be read; supported are files ending in {' '.join(SUFFIXES)}")
    return path


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(HIDDEN):
            continue
        if path.is_dir():
            if not path.is_symlink():  # it may lead back to where we came from
                yield from _walk(path)
        elif path.suffix.lower() in SUFFIXES and path.is_file():
            yield path


def _import(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(package, extra="files") from error


def _read(path: Path, text_field: str | None) -> Iterator[_Part]:
    if not path.stat().st_size:
        return
    match path.suffix.lower():
        case ".csv":
            yield from _csv_rows(path, text_field)
        case ".jsonl":
            yield from _jsonl_rows(path, text_field)
        case ".pdf":
            yield from _pdf_pages(path)
        case ".docx":
            yield _docx_part(path)
        case ".html" | ".htm":
            yield _html_part(path)
        case ".txt":
            yield _Part(path.read_text(_encoding(path)))
        case _:
            text = path.read_text(_encoding(path))
            found = [(m.start(), m["marked"] or m["underlined"]) for m in HEADING.finditer(text)]
            yield _Part(text, headings=[(start, title) for start, title in found if title])


def _encoding(path: Path, *declared: str) -> str:
    """Return the first encoding that reads the whole file."""
    for encoding in ("utf-8-sig", *declared, "gb18030"):
        try:
            with path.open(encoding=encoding) as file:
                while file.read(1 << 20):
                    pass
        except (UnicodeDecodeError, LookupError):
            continue
        return encoding
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is neither UTF-8 nor GB18030 text: byte 0x{error.object[error.start]:02X} at "
            f"{error.start}; save it as UTF-8"
        ) from error
    raise AssertionError


