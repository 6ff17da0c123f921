"""Files and folders to documents, long ones to pieces, each with source and position."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from .core.config import check_range
from .errors import InputError, MissingDependencyError, Qwen3EmbeddingError

Metadata = dict[str, str | int | float | bool]
Part = tuple[str, Metadata, str | None]  # a text split by itself (a file, page, row), its title

MARKDOWN = (".md", ".markdown", ".html", ".htm", ".docx")  # read as, or rendered to, Markdown
SUFFIXES = (".txt", *MARKDOWN, ".pdf", ".csv", ".jsonl")
SUPPORTED = f"supported are folders and files ending in {' '.join(SUFFIXES)}"
TEXT_FIELDS = ("text", "document", "content", "body")
MIN_TOKENS = 16  # one character, decomposed, takes up to 13 with the end token

# A line break inside a sentence becomes WRAP, which the splitter takes for a space, and later a
# line break again. Short lines, table rows and lines after a full stop are no wrapped sentence.
WRAP = "\v"
ENDS = ".!?…。！？；;:："
WRAPPED = re.compile(rf"(?m)^(?!.* \| |[ \t]*[#|>])(.{{20,}}[^\s{ENDS}][ \t]*)\n(?=[^\W\d_])")
# The splitter's time grows as the square of the text where sentences have no end.
WINDOW = re.compile(r"(?s).{1,50000}(?=\n|\Z)|.{1,50000}(?<=[。！？. ])|.{1,50000}")
HEADING = re.compile(
    r"(?m)^ {0,3}(```|~~~)[\s\S]*?^ {0,3}\1|\A---\n[\s\S]*?\n---$"  # a # in code is no heading
    r"|^ {0,3}#{1,6}[ \t]+(\S.*?)(?:[ \t]+#+)?[ \t]*$|^([^\s>|#-].*)\n(?:=+|--+)[ \t]*$"
)
HTML_INLINE = (
    "html|a|abbr|b|bdi|bdo|big|cite|code|data|del|dfn|em|font|i|img|ins|kbd|label|mark|q|s|samp|"
    "small|span|strong|sub|sup|td|th|time|tt|u|var|wbr"
)
DOCX_HEADING = re.compile(r"(?i)(?:heading|标题) ?([1-6])|title")
DOCX_BLOCKS = "(.|.//w:sdtContent[not(ancestor::w:p|ancestor::w:tbl)])/*[self::w:p|self::w:tbl]"
# Not Paragraph.text: it leaves out tracked insertions and form fields (python-docx 1.2).
DOCX_RUNS = ".//w:r[not(ancestor::w:txbxContent|ancestor::w:moveFrom)]"


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of a file, with where it came from."""

    text: str
    source: str  # the path as given, with forward slashes
    position: int  # 0 for the source's first piece
    title: str | None = None  # the nearest heading above, or an HTML page's title
    metadata: Metadata = field(default_factory=dict[str, str | int | float | bool])


def find_files(paths: Iterable[str | Path]) -> list[Path]:
    """Return the files given and, in sorted order, the supported ones in the folders given.

    Hidden files, hidden folders and links to folders are passed over; each file comes once. Raises
    InputError for a path that does not exist and for a file given by name that is not supported.
    """
    if isinstance(paths, str | Path):
        raise TypeError("paths is a single path; pass a list: [path]")
    found = (_walk(path) if path.is_dir() else [_checked(path)] for path in map(Path, paths))
    return list(dict.fromkeys(file for files in found for file in files))


def read_documents(
    path: str | Path,
    *,
    count_tokens: Callable[[str], int],
    max_tokens: int = 512,
    text_field: str | None = None,
) -> Iterator[Document]:
    """Yield a file's documents in order, none longer than `max_tokens` as `count_tokens` counts.

    A text is split where a section, a paragraph or a sentence ends, elsewhere only where one
    sentence alone is too long. Each CSV or JSONL row is a document: the column or field
    `text_field`, else all columns as "column: value" lines, or the first of the fields text,
    document, content and body. Raises InputError when a file cannot be read, ConfigError, and
    MissingDependencyError without the extra "files".
    """
    path = _checked(Path(path))
    check_range("max_tokens", max_tokens, MIN_TOKENS, 1_000_000)
    library = _import("semantic_text_splitter", "semantic-text-splitter")
    is_markdown = path.suffix.lower() in MARKDOWN
    kind = library.MarkdownSplitter if is_markdown else library.TextSplitter
    # Not from_huggingface_tokenizer: it leaves out the end token and copies the tokenizer per file.
    splitter = kind.from_callback(lambda text: count_tokens(text.replace(WRAP, "\n")), max_tokens)
    return _split(path, _parts(path, text_field), splitter, is_markdown)


def _split(path: Path, parts: Iterator[Part], splitter: Any, is_markdown: bool) -> Iterator[Document]:
    position = 0
    for text, metadata, page_title in parts:
        matches = HEADING.finditer(text) if is_markdown else ()
        headings = [(m.start(), m[2] or m[3]) for m in matches if m[2] or m[3]][::-1]
        title = page_title
        for window in WINDOW.finditer(WRAPPED.sub(rf"\1{WRAP}", text)):
            for start, chunk in splitter.chunk_indices(window[0]):
                while headings and headings[-1][0] <= window.start() + start:
                    title = headings.pop()[1]
                if piece := chunk.replace(WRAP, "\n").strip():
                    yield Document(piece, path.as_posix(), position, title, dict(metadata))
                    position += 1


def _checked(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"{path} does not exist; {SUPPORTED}")
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        raise InputError(f"{path} cannot be read; {SUPPORTED}")
    return path


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "~$")):  # "~$": the lock file of a document open in Word
            continue
        if path.is_dir() and not path.is_symlink():  # a link may lead back to where we came from
            yield from _walk(path)
        elif path.suffix.lower() in SUFFIXES and path.is_file():
            yield path


def _import(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(package, extra="files") from error


def _parts(path: Path, text_field: str | None) -> Iterator[Part]:
    suffix = path.suffix.lower()
    try:
        if not path.stat().st_size:
            return
        if suffix in (".csv", ".jsonl"):
            yield from _rows(path, text_field, is_csv=suffix == ".csv")
        elif suffix == ".pdf":
            yield from _pdf_pages(path)
        elif suffix == ".docx":
            yield _docx(path)
        else:
            text = path.read_text(_encoding(path))
            yield _html(text) if suffix in (".html", ".htm") else (text, {}, None)
    except Qwen3EmbeddingError:
        raise
    except Exception as error:  # on damaged files the libraries raise whatever they stumble over
        raise InputError(
            f"{path} cannot be read as {suffix[1:].upper()} ({type(error).__name__}: {error}); it "
            "is damaged, protected by a password, or of another kind than its name says"
        ) from error


def _encoding(path: Path) -> str:
    failures: list[str] = []
    for encoding in ("utf-8-sig", "gb18030"):
        number = 0
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    line.decode(encoding)
            return encoding
        except UnicodeDecodeError as error:
            failures.append(f"{path}:{number}: byte 0x{error.object[error.start]:02X}")
    raise InputError(f"{failures[0]} is neither UTF-8 nor GB18030; save the file as UTF-8")


def _html(page: str) -> Part:
    library = _import("bs4", "beautifulsoup4")
    # Our <html> keeps it from warning of pages that look like XML or like a file's name.
    soup = library.BeautifulSoup("<html>" + page.replace("\0", ""), "html.parser")
    for tag in soup(["script", "style", "nav", "noscript", "template", "svg"]):
        tag.decompose()
    title = soup.title.extract().get_text().strip() if soup.title else None
    for tag in soup(re.compile("^h[1-6]$")):
        tag.string = "#" * int(tag.name[1]) + " " + " ".join(tag.get_text().split())
    for tag in soup("pre"):
        tag.string = tag.get_text().replace("\n", "\0")
    for tag in soup(["td", "th"]):
        if tag.find_next_sibling(["td", "th"]):
            tag.insert_after(" | ")
    for tag in soup(re.compile(f"^(?!(?:{HTML_INLINE})$)")):
        tag.insert_before("\0")
        tag.insert_after("\0")
    blocks = (" ".join(block.split()) for block in soup.get_text().split("\0"))
    return "\n\n".join(block for block in blocks if block.strip("#| ")), {}, title or None


def _docx(path: Path) -> Part:
    document = _import("docx", "python-docx").Document(str(path))
    names = ((style.style_id, DOCX_HEADING.fullmatch(style.name or "")) for style in document.styles)
    marks = {style: "#" * int(match[1] or 1) + " " for style, match in names if match}
    blocks: list[str] = []
    for element in document.element.body.xpath(DOCX_BLOCKS):
        if rows := element.xpath("./w:tr"):
            cells = ([_docx_text(cell) for cell in row.xpath("./w:tc")] for row in rows)
            blocks += [" | ".join(row) for row in cells if any(row)]
        elif text := _docx_text(element):
            blocks.append(marks.get(element.style, "") + text)
    return "\n\n".join(blocks), {}, None


def _docx_text(element: Any) -> str:
    paragraphs = element.xpath("self::w:p|.//w:p")
    texts = ("".join(run.text for run in paragraph.xpath(DOCX_RUNS)) for paragraph in paragraphs)
    return " ".join(" ".join(texts).split())


def _pdf_pages(path: Path) -> Iterator[Part]:
    reader = _import("pypdf", "pypdf").PdfReader(path)
    if reader.is_encrypted and not reader.decrypt(""):
        raise InputError(f"{path} is encrypted; save a copy without the password")
    is_blank = True
    for number, page in enumerate(reader.pages, 1):
        # A damaged font table gives lone surrogates, which no encoder takes: U+FFFD instead.
        text = page.extract_text().encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if text.strip():
            is_blank = False
            yield text, {"page": number}, None
    if is_blank:
        raise InputError(f"{path} holds no text, only images; run OCR on it first (ocrmypdf)")


def _rows(path: Path, text_field: str | None, *, is_csv: bool) -> Iterator[Part]:
    csv.field_size_limit(max(csv.field_size_limit(), path.stat().st_size))  # 131,072 is too short
    with path.open(encoding=_encoding(path), newline="") as file:
        for number, row in enumerate(csv.DictReader(file, restval="") if is_csv else file, 1):
            if isinstance(row, str):
                if not row.strip():
                    continue
                record = _json_object(row, f"{path}:{number}")
            ...
