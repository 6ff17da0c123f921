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
from .errors import InputError, Qwen3EmbeddingError, needs

Part = tuple[str, dict[str, Any], str | None]  # a section, page or row; its facts; its title
SUFFIXES = (
    ".txt", ".md", ".markdown", ".html", ".htm", ".pdf", ".docx", ".csv", ".jsonl", ".parquet",
)  # fmt: skip
TEXT_FIELDS = ("text", "document", "content", "body")
# A line break inside a sentence becomes \v, which the splitter takes for a space, and later a line
# break again. Short lines, table rows and lines after a full stop are no wrapped sentence.
WRAPPED = re.compile(r"(?m)^(?!.* \| |[#|>])(.{20,}[^\s.!?…。！？；;:：][ \t]*)\n(?=[^\W\d_])")
HEADING = re.compile(r"(?m)^(```|~~~)[\s\S]*?^\1|^#+ +(\S.*?)(?: #+)?\s*?$\s*|^(\S.*)\n===+$\s*")
HTML_INLINE = "a,abbr,b,cite,code,del,em,font,i,img,ins,kbd,mark,q,s,small,span,strong,sub,sup,u"
# Not Paragraph.text: it leaves out tracked insertions and form fields (python-docx 1.2).
DOCX_TEXT = ".//w:p|.//w:r[not(ancestor::w:txbxContent|ancestor::w:moveFrom)]"


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of a file, with where it came from."""

    text: str
    source: str  # the path as given, with forward slashes
    position: int  # 0 for the source's first piece
    title: str | None = None  # the nearest heading above, or an HTML page's title
    metadata: dict[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Known:
    """A source whose rows stand as they are: it is not read again."""

    source: str
    num_pieces: int


@dataclass(frozen=True, slots=True)
class Gone:
    """A source that is no more: its rows are to be deleted."""

    source: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A source that could not be read, or not to its end: its rows are left alone."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file that was read to its end; while its stamp stays the same, so do its documents."""

    source: str
    stamp: str


Item = Document | Known | Gone | Unreadable | Stamp


def find_files(paths: Iterable[str | Path]) -> list[Path]:
    """Return the files given and, sorted, the supported ones in the folders given, each once.

    Passes over hidden files and links to folders; raises InputError for a path it cannot use.
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

    Pieces end where a section, paragraph or sentence ends; only a sentence too long is cut inside.
    A CSV, JSONL or Parquet row is a document: its `text_field`, else (CSV) "column: value" lines or
    the first field of text, document, content and body. Raises InputError if the file cannot be
    read.
    """
    path = _checked(Path(path))
    split = make_splitter(count_tokens, max_tokens)
    position = 0
    for text, metadata, title in _parts(path, text_field):
        for piece in split(text):
            yield Document(piece, path.as_posix(), position, title, dict(metadata))
            position += 1


def make_splitter(
    count_tokens: Callable[[str], int], max_tokens: int
) -> Callable[[str], list[str]]:
    """Return what cuts a text into pieces, in order, as `read_documents` does."""
    check_range("max_tokens", max_tokens, 16, 1_000_000)  # a rare character alone takes 13
    # MarkdownSplitter cuts sentences at links; from_huggingface_tokenizer copies the tokenizer.
    num_end = count_tokens("")  # not for the splitter: it relies on no more tokens than bytes
    splitter = _import("semantic_text_splitter").TextSplitter.from_callback(
        lambda text: count_tokens(text.replace("\v", "\n")) - num_end, max_tokens - num_end
    )

    def split(text: str) -> list[str]:
        clean = text.encode(errors="replace").decode()  # damaged PDFs hold lone surrogates
        chunks = splitter.chunks(WRAPPED.sub(r"\1\v", clean))
        return [piece for chunk in chunks if (piece := chunk.replace("\v", "\n").strip())]

    return split


def _checked(path: Path) -> Path:
    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        fault = "is not a file that can be read" if path.exists() else "does not exist"
        raise InputError(f"{path} {fault}; supported: folders, and files in {' '.join(SUFFIXES)}")
    return path


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        is_hidden = path.name.startswith((".", "~$"))  # "~$": Word's mark of an open document
        if path.is_dir() and not (is_hidden or path.is_symlink()):  # a link may lead back here
            yield from _walk(path)
        elif path.is_file() and not is_hidden and path.suffix.lower() in SUFFIXES:
            yield path


def _import(module: str) -> Any:
    with needs(module, extra="files"):
        return import_module(module)


def _parts(path: Path, text_field: str | None) -> Iterator[Part]:
    suffix = path.suffix.lower()
    try:
        if suffix in (".csv", ".jsonl", ".parquet"):
            yield from _rows(path, text_field)
        elif suffix == ".pdf":
            yield from _pdf_pages(path)
        else:
            text = _docx(path) if suffix == ".docx" else path.read_text(_encoding(path))
            text, title = _html(text) if suffix in (".html", ".htm") else (text, None)
            yield from _sections(text, title) if suffix != ".txt" else [(text, {}, title)]
    except Qwen3EmbeddingError:
        raise
    except Exception as error:  # on damaged files the libraries raise what they stumble over
        if path.stat().st_size:  # an empty file has no documents
            raise InputError(f"{path} is damaged or encrypted; save it anew ({error!r})") from error


def _encoding(path: Path) -> str:
    failures: list[int] = []
    for encoding in ("utf-8-sig", "gb18030"):
        with path.open("rb") as file:
            try:
                for line in file:  # not the whole at once: rows may not fit in memory
                    line.decode(encoding)
                return encoding
            except UnicodeDecodeError as error:
                failures.append(file.tell() - len(error.object) + error.start)
    raise InputError(f"{path}: byte {failures[0]} is neither UTF-8 nor GB18030; save it as UTF-8")


def _sections(text: str, title: str | None) -> Iterator[Part]:
    start = end = 0
    for heading in (match for match in HEADING.finditer(text) if not match[1]):  # [1] is code
        if heading.start() > end:  # else one heading under another, which stay together
            yield text[start:end].replace("\n", "\v") + text[end : heading.start()], {}, title
            start = heading.start()
        title, end = heading[2] or heading[3], heading.end()
    yield text[start:end].replace("\n", "\v") + text[end:], {}, title


def _html(page: str) -> tuple[str, str | None]:
    # Our <html> keeps the library from warning of pages that look like XML or like a file's name.
    soup = _import("bs4").BeautifulSoup("<html>" + page.replace("\0", ""), "html.parser")
    for tag in soup(["script", "style", "nav", "noscript", "template", "svg"]):
        tag.decompose()
    title = " ".join(soup.title.extract().get_text().split()) if soup.title else None
    for tag in soup(re.compile("^h[1-6]$")):
        tag.string = "#" * int(tag.name[1]) + " " + " ".join(tag.get_text().split())
    for tag in soup.select(":is(td, th) > :is(p, div):only-child"):
        tag.unwrap()
    for tag in soup.select(":is(td, th) + :is(td, th)"):
        tag.insert_before(" | ")
    for tag in soup.select(f":not({HTML_INLINE},td,th)"):
        tag.insert_before("\0")
        tag.insert_after("\0")
    blocks = (" ".join(block.split()) for block in soup.get_text().split("\0"))
    return "\n\n".join(block for block in blocks if block.strip("#| ")), title or None


def _docx(path: Path) -> str:
    document = _import("docx").Document(str(path))
    names = ((s.style_id, re.match("Heading ([1-6])|Title", s.name or "")) for s in document.styles)
    marks = {style: "#" * int(match[1] or 1) + " " for style, match in names if match}
    blocks: list[str] = []
    for element in document.element.body.xpath("w:p|w:tbl|w:sdt//w:p"):
        mark = marks.get(element.xpath("string(w:pPr/w:pStyle/@w:val)"), "")
        for row in element.xpath("w:tr") or [element]:
            cells = [cell.xpath(DOCX_TEXT) for cell in row.xpath("w:tc") or [row]]
            texts = ["".join(n.text if n.tag[-1] == "r" else " " for n in cell) for cell in cells]
            blocks.append(mark + " | ".join(map(str.strip, texts)))
    return "\n\n".join(block for block in blocks if block.strip("#| "))


def _pdf_pages(path: Path) -> Iterator[Part]:
    texts = [page.extract_text() for page in _import("pypdf").PdfReader(path).pages]
    if not any(map(str.strip, texts)):
        raise InputError(f"{path} holds no text, only images; run OCR on it first (ocrmypdf)")
    yield from ((text, {"page": number}, None) for number, text in enumerate(texts, 1))


def _rows(path: Path, text_field: str | None) -> Iterator[Part]:
    suffix = path.suffix.lower()
    records = _parquet_records(path) if suffix == ".parquet" else _line_records(path, suffix)
    for number, record in records:
        if suffix == ".csv" and text_field is None:
            text = "\n".join(f"{k}: {v}" for k, v in record.items() if v.strip())
        else:
            name = text_field or next((n for n in TEXT_FIELDS if n in record), "text")
            text = record.pop(name, None if record else "")
            if not isinstance(text, str):
                raise InputError(f"{path}:{number} has no text in {name!r}, only {[*record]}")
        scalars = {k: v for k, v in record.items() if isinstance(v, str | int | float)}
        yield text, {"row": number, **scalars}, None


def _line_records(path: Path, suffix: str) -> Iterator[tuple[int, dict[Any, Any]]]:
    is_csv = suffix == ".csv"
    csv.field_size_limit(max(csv.field_size_limit(), path.stat().st_size))  # 131,072 is too short
    with path.open(encoding=_encoding(path), newline="") as file:
        rows = csv.DictReader(file, restval="") if is_csv else file
        for number, row in enumerate[Any](rows, 1 + is_csv):  # the header is row 1
            try:
                record: dict[Any, Any] = dict(row if is_csv else json.loads(row.strip() or "{}"))
            except (TypeError, ValueError) as error:
                raise InputError(f"{path}:{number} is not a JSON object: {error}") from error
            if any(record.pop(None, ())):
                raise InputError(f"{path}:{number} has more cells than the header; quote commas")
            yield number, record


def _parquet_records(path: Path) -> Iterator[tuple[int, dict[Any, Any]]]:
    with _import("pyarrow.parquet").ParquetFile(path) as file:
        batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=1000))
        yield from enumerate((record for batch in batches for record in batch), 1)
