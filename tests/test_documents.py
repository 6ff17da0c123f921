"""Files to documents: real files of every kind, in Chinese and English, sound and damaged."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import docx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from docx.oxml import OxmlElement
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pypdf import PdfWriter
from tokenizers import Tokenizer

import qwen3_embedding_integrations
from qwen3_embedding_integrations.documents import (
    SUFFIXES,
    Document,
    find_files,
    read_documents,
)
from qwen3_embedding_integrations.errors import ConfigError, InputError

PACKAGE = Path(qwen3_embedding_integrations.__file__).parent
TOKENIZER = Tokenizer.from_file(str(PACKAGE / "tiny" / "tokenizer.json"))
SENTENCES = (
    "The river runs past the old mill and the quiet village of stone houses.",
    "Nobody had crossed the bridge since the flood, said Mr. Brown in 3.5 words.",
    "自然人从出生时起到死亡时止，具有民事权利能力，依法享有民事权利，承担民事义务。",
    "十八周岁以上的自然人为成年人；不满十八周岁的自然人为未成年人。",
    "Is the 合同 (contract) written in two languages?",
)


def count_tokens(text: str) -> int:
    return len(TOKENIZER.encode(text).ids)


def read(path: Path, max_tokens: int = 512, text_field: str | None = None) -> list[Document]:
    documents = read_documents(
        path, count_tokens=count_tokens, max_tokens=max_tokens, text_field=text_field
    )
    return list(documents)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """Return what writes a file, a str as UTF-8, and returns its path."""

    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


Write = Callable[[str, str | bytes], Path]


def make_pdf(*pages: Sequence[str]) -> bytes:
    """Return a PDF with these lines on its pages, in a font every reader of PDF knows."""
    font = (
        "<< /Type /Font /Subtype /Type0 /BaseFont /STSong-Light /Encoding /UniGB-UCS2-H "
        "/DescendantFonts [<< /Type /Font /Subtype /CIDFontType0 /BaseFont /STSong-Light "
        "/CIDSystemInfo << /Registry (Adobe) /Ordering (GB1) /Supplement 2 >> >>] >>"
    )
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    tree = f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>"
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", tree, font]
    for i, lines in enumerate(pages):
        shown = " ".join(f"<{line.encode('utf-16-be').hex()}> Tj T*" for line in lines)
        content = f"BT /F1 12 Tf 14 TL 50 800 Td {shown} ET"
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {5 + 2 * i} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>",
            f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        ]
    data, offsets = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    return (
        f"{data}xref\n0 {size}\n0000000000 65535 f \n{table}trailer << /Size {size} /Root 1 0 R >>"
        f"\nstartxref\n{len(data)}\n%%EOF\n"
    ).encode()


def encrypt(pdf: bytes, user: str, owner: str) -> bytes:
    writer, out = PdfWriter(clone_from=io.BytesIO(pdf)), io.BytesIO()
    writer.encrypt(user, owner, algorithm="RC4-128")  # AES needs a package that is no dependency
    writer.write(out)
    return out.getvalue()


# Finding


def test_folders_are_walked_in_sorted_order(tmp_path: Path, write: Write) -> None:
    """A folder gives its supported files, sorted, without hidden ones, other kinds and links."""
    wanted = ["a.md", "b/c/deep.TXT", "b/d.jsonl", "z.pdf"]
    unwanted = [".hidden.txt", ".git/config.txt", "b/~$d.docx", "b/image.png", "b/noext"]
    for name in [*wanted, *unwanted]:
        write(f"folder/{name}", "x")
    (tmp_path / "folder" / "b" / "loop").symlink_to(tmp_path / "folder")
    (tmp_path / "folder" / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    found = find_files([tmp_path / "folder"])
    assert [path.relative_to(tmp_path / "folder").as_posix() for path in found] == wanted


def test_files_keep_the_order_given_and_come_once(write: Write) -> None:
    """Files given by name come first to last, hidden or not, and a repeated one only once."""
    second, first = write("f/b.txt", "x"), write("f/a.txt", "x")
    hidden = write(".notes.md", "x")
    assert find_files([second, str(hidden), second.parent]) == [second, hidden, first]
    assert find_files(iter([first])) == [first]


def test_a_single_path_is_no_list(tmp_path: Path) -> None:
    """A str or Path where a list belongs is a TypeError, not a search through its letters."""
    for path in ("notes.txt", tmp_path):
        with pytest.raises(TypeError, match=r"pass a list: \[path\]"):
            find_files(path)  # pyright: ignore[reportArgumentType]


def test_unusable_paths_are_refused(tmp_path: Path, write: Write) -> None:
    """A missing path and a named file of another kind are errors that list what is supported."""
    image = write("image.png", "x")
    for path, fault in ((tmp_path / "nowhere.md", "does not exist"), (image, "not a file that")):
        for use in (lambda path: find_files([path]), read):
            with pytest.raises(InputError, match=fault) as caught:
                use(path)
            message = str(caught.value)
            assert str(path) in message
            assert all(suffix in message for suffix in SUFFIXES), message
    with pytest.raises(InputError, match="not a file that"):
        read(tmp_path)


# Splitting


@pytest.mark.parametrize("suffix", [".txt", ".md", ".html", ".docx", ".pdf"])
@pytest.mark.parametrize("max_tokens", [48, 128])
def test_pieces_end_with_a_sentence(tmp_path: Path, suffix: str, max_tokens: int) -> None:
    """In every format a piece fits the budget and ends where a sentence ends, also across lines."""
    sentences = [SENTENCES[i % 5] for i in range(40)]
    path = tmp_path / f"long{suffix}"
    wrapped = re.sub(r"(.{30,}?) (?=[a-z])", r"\1\n", " ".join(sentences))
    if suffix == ".docx":
        document = docx.Document()
        document.add_paragraph(" ".join(sentences))
        document.save(str(path))
    elif suffix == ".pdf":
        path.write_bytes(make_pdf(wrapped.split("\n")))
    else:
        path.write_text(f"<p>{wrapped}</p>" if suffix == ".html" else wrapped, "utf-8")
    documents = read(path, max_tokens=max_tokens)
    assert [document.position for document in documents] == list(range(len(documents)))
    assert len(documents) > 5
    for document in documents:
        assert document.source == path.as_posix()
        assert count_tokens(document.text) <= max_tokens
        assert document.text[-1] in ".?。", document.text
        assert len(document.text) > 30, "sentences that fit together stay together"
    words = "".join("".join(document.text.split()) for document in documents)
    assert words == "".join("".join(sentences).split())


def test_a_sentence_too_long_is_split_between_words(write: Write) -> None:
    """A sentence longer than the budget is the only thing cut inside, and then between words."""
    words = ["Endless", *(f"word{i}" for i in range(300)), "word."]
    path = write("endless.txt", f"{' '.join(words)} A short one.")
    documents = read(path, max_tokens=64)
    assert " ".join(document.text for document in documents) == path.read_text()
    assert max(count_tokens(document.text) for document in documents) <= 64


def test_paragraphs_stay_whole(write: Write) -> None:
    """Paragraphs are put together while they fit, and none is cut that fits alone."""
    paragraphs = [f"{number}. {SENTENCES[number % 5]} {SENTENCES[2]}" for number in range(12)]
    documents = read(write("law.txt", "\n\n".join(paragraphs)), max_tokens=100)
    assert [part for document in documents for part in document.text.split("\n\n")] == paragraphs
    assert 1 < len(documents) < 12


def test_lines_of_a_list_stay_whole(write: Write) -> None:
    """Lines that are no wrapped sentence (a list, a log, a table) are not cut in the middle."""
    lines = [f"| item {i} | a cell with several words | {i * 7} |" for i in range(60)]
    documents = read(write("table.md", "\n".join(lines)), max_tokens=64)
    assert [line for document in documents for line in document.text.split("\n")] == lines


ALPHABET = st.sampled_from([*"ab Z9.!?#|->`~=*_[]()\n\n\t,;:\"'", *"中文句。！？，；：“”（）、", "\r\n", "😀", "é", "e\u0301", "\u3000", "\u200b", "\v"])  # fmt: skip  # noqa: E501


@settings(max_examples=150)
@example([*"😀𐀀𐀀𐀀"], 16)  # as many tokens as bytes
@given(st.lists(ALPHABET | st.characters(codec="utf-8"), max_size=200), st.sampled_from([16, 40]))
def test_nothing_is_lost_whatever_the_text(
    tmp_path_factory: pytest.TempPathFactory, characters: list[str], max_tokens: int
) -> None:
    """Any text: every character but white space comes out once, in order, within the budget."""
    text = "".join(characters).lstrip("\ufeff")
    folder = tmp_path_factory.mktemp("any")
    for name in ("any.txt", "any.md"):
        path = folder / name
        path.write_bytes(text.encode())
        documents = read(path, max_tokens=max_tokens)
        assert "".join("".join(d.text.split()) for d in documents) == "".join(text.split())
        assert max((count_tokens(d.text) for d in documents), default=0) <= max_tokens
        assert all(d.text.strip() for d in documents)


def test_max_tokens_has_a_range(write: Write) -> None:
    """A budget that no character fits in is refused."""
    with pytest.raises(ConfigError, match="max_tokens is 3"):
        read(write("a.txt", "x"), max_tokens=3)


# Text


def test_encodings_of_text_files(write: Write) -> None:
    """UTF-8 with or without its mark, and GB18030, give the same text, whatever the line ends."""
    text = "第一条 合同\nPaid in € by 张三。"
    for data in (
        text.encode(),
        text.encode("utf-8-sig"),
        text.encode("gb18030"),
        text.replace("\n", "\r\n").encode(),
    ):
        assert [document.text for document in read(write("law.txt", data))] == [text]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html", "a.csv", "a.jsonl"])
def test_other_encodings_are_refused(write: Write, name: str) -> None:
    """A file in neither encoding is an error with the file and the byte; nothing is dropped."""
    path = write(name, "好\ncaf".encode() + b"\xe9 au lait \xff\xff")
    with pytest.raises(InputError, match="byte 7 is neither UTF-8 nor GB18030") as caught:
        read(path)
    assert str(path) in str(caught.value)
    with pytest.raises(InputError, match="byte 0 is neither"):
        read(write(name, "text".encode("utf-16")))


@pytest.mark.parametrize("name", [f"empty{suffix}" for suffix in SUFFIXES])
def test_empty_files_have_no_documents(write: Write, name: str) -> None:
    """A file of no bytes gives no document, in every format."""
    assert read(write(name, b"")) == []


def test_blank_files_have_no_documents(write: Write) -> None:
    """A file of white space gives no document."""
    for name in ("a.txt", "a.md", "a.html", "a.jsonl", "a.csv"):
        assert read(write(name, " \n\n\t\n")) == [], name


def test_source_is_the_path_as_given(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source is the path that was passed, relative if it was, with forward slashes."""
    write("sub/a.txt", "x")
    monkeypatch.chdir(tmp_path)
    assert read(Path("sub/a.txt"))[0].source == "sub/a.txt"
    assert next(read_documents("sub/a.txt", count_tokens=count_tokens)).source == "sub/a.txt"


# Markdown, HTML, Word


def test_markdown_sections_have_their_headings(write: Write) -> None:
    """A piece has one section's text and its heading; # in code and front matter is none."""
    path = write(
        "guide.md",
        "---\ntags: x\n---\nBefore.\n\n# 指南 #\n\n## Install\n\nRun:\n\n```sh\n# as root\nmake\n"
        "```\n\n### Using C#\nText.\n\nOld style\n=========\n\nMore.\n",
    )
    assert [(document.title, document.text) for document in read(path)] == [
        (None, "---\ntags: x\n---\nBefore."),
        ("Install", "# 指南 #\n\n## Install\n\nRun:\n\n```sh\n# as root\nmake\n```"),
        ("Using C#", "### Using C#\nText."),
        ("Old style", "Old style\n=========\n\nMore."),
    ]


def test_a_long_section_keeps_its_title_and_its_sentences(write: Write) -> None:
    """No heading stands alone, and links and emphasis do not cut the sentence around them."""
    body = " ".join("See the [old mill](http://x.y) and *this* `house` of mine." for _ in range(30))
    documents = read(write("a.md", f"# Walks\n\n{body}\n\n# End\n\nBye."), max_tokens=64)
    assert [document.title for document in documents[:-1]] == ["Walks"] * (len(documents) - 1)
    assert documents[0].text.startswith("# Walks\n\nSee the")
    assert all(document.text.endswith("mine.") for document in documents[:-1])
    assert (documents[-1].title, documents[-1].text) == ("End", "# End\n\nBye.")


def test_html_is_read_as_seen(write: Write) -> None:
    """A page gives its text by block, without script, style, navigation and comments."""
    path = write(
        "page.html",
        """<?xml version="1.0"?><!DOCTYPE html><html><head><title> My
        page </title><style>p { color: red }</style></head><body>
        <nav><a href="/">Home</a></nav><script>var x = "</p>";</script>
        <p>Hello <b>wor</b>ld &amp;
        all<br>second line</p><!-- secret -->
        <h2>第一章 <a href="#">总则</a></h2><div>Loose<p>Inner</div>
        <ul><li>one<li>two</ul>
        <table><tr><th>Name</th><th>Age</th></tr><tr><td><p>张三</p></td><td>42</td></tr></table>
        </body></html>""",
    )
    assert [(document.title, document.text) for document in read(path)] == [
        ("My page", "Hello world & all\n\nsecond line"),
        (
            "第一章 总则",
            "## 第一章 总则\n\nLoose\n\nInner\n\none\n\ntwo\n\nName | Age\n\n张三 | 42",
        ),
    ]


def test_html_in_gb18030_and_without_tags(write: Write) -> None:
    """A Chinese page of before Unicode is read, and one that is a bare word is no file name."""
    page = '<meta charset="gb2312"><p>合同自成立时生效。</p>'.encode("gb18030")
    assert read(write("a.htm", page))[0].text == "合同自成立时生效。"
    assert read(write("b.html", "notes.txt"))[0] == Document(
        "notes.txt", write("b.html", "notes.txt").as_posix(), 0
    )


def test_docx_headings_paragraphs_and_tables(tmp_path: Path) -> None:
    """A Word file gives its headings, its paragraphs and its tables row by row, in their order."""
    document = docx.Document()
    document.add_heading("民法典", 0)
    document.add_paragraph("  ")
    document.add_heading("Persons", 2)
    document.add_paragraph("First line").add_run("\nsecond line")
    table = document.add_table(2, 3)
    for row, texts in zip(table.rows, (("Name", "Age", ""), ("张三", "42", "x")), strict=True):
        for cell, text in zip(row.cells, texts, strict=True):
            cell.text = text
    table.cell(0, 1).merge(table.cell(0, 2))
    document.add_heading("End", 1)
    document.add_paragraph("Bye.")
    document.save(str(tmp_path / "law.docx"))
    assert [(document.title, document.text) for document in read(tmp_path / "law.docx")] == [
        (
            "Persons",
            "# 民法典\n\n## Persons\n\nFirst line\nsecond line\n\nName | Age\n\n张三 | 42 | x",
        ),
        ("End", "# End\n\nBye."),
    ]


def test_docx_tracked_insertions_and_controls_are_read(tmp_path: Path) -> None:
    """Text inserted under review or standing in a form field counts; deleted text does not."""
    document = docx.Document()
    for tag in ("w:ins", "w:moveFrom"):
        paragraph = document.add_paragraph("The price is ")
        change = OxmlElement(tag)
        change.append(paragraph.add_run("900 yuan")._r)
        paragraph._p.append(change)
    control, content = OxmlElement("w:sdt"), OxmlElement("w:sdtContent")
    content.append(document.add_paragraph("In a field.")._p)
    control.append(content)
    document.element.body.insert(2, control)
    document.save(str(tmp_path / "contract.docx"))
    expected = "The price is 900 yuan\n\nThe price is\n\nIn a field."
    assert [document.text for document in read(tmp_path / "contract.docx")] == [expected]


# PDF


def test_pdf_pages_are_numbered(write: Write) -> None:
    """A PDF is read page by page, each piece with its page; a blank page is passed over."""
    data = make_pdf(["Hello world", "again"], [], ["自然人从出生时起", "到死亡时止。"])
    documents = read(write("book.pdf", data))
    assert [(d.text, d.position, d.metadata) for d in documents] == [
        ("Hello world\nagain", 0, {"page": 1}),
        ("自然人从出生时起\n到死亡时止。", 1, {"page": 3}),
    ]


def test_pdf_that_cannot_be_read(write: Write) -> None:
    """An encrypted, a damaged and a scanned PDF are errors that name the file and the reason."""
    sound = make_pdf(["Hello world"])
    for name, data, fault in (
        ("locked.pdf", encrypt(sound, "secret", "secret"), "has not been decrypted"),
        ("noise.pdf", b"%PDF-1.4\n" + bytes(range(256)), "is damaged"),
        ("cut.pdf", sound[:300], "is damaged"),
        ("scan.pdf", make_pdf([], []), "run OCR"),
    ):
        path = write(name, data)
        with pytest.raises(InputError, match=fault) as caught:
            read(path)
        assert str(path) in str(caught.value)


def test_pdf_without_a_user_password_is_read(write: Write) -> None:
    """A PDF that only restricts its owner's rights opens as in any viewer."""
    data = encrypt(make_pdf(["Hello world"]), "", "owner")
    assert [document.text for document in read(write("a.pdf", data))] == ["Hello world"]


def test_damaged_docx(write: Write) -> None:
    """A Word file that is none is an error that names it."""
    with pytest.raises(InputError, match=r"law\.docx is damaged"):
        read(write("law.docx", b"PK\x03\x04 no zip"))


# Rows

TABLE = 'id,text,note\r\n1,"Said ""yes"",\r\nthen no",x\r\n , ,\r\n2,你好,\r\n'


def test_csv_rows(write: Write) -> None:
    """Each row is a document of "column: value" lines; quotes and line ends in cells are kept."""
    assert [(d.text, d.position, d.metadata) for d in read(write("a.csv", TABLE))] == [
        (
            'id: 1\ntext: Said "yes",\r\nthen no\nnote: x',
            0,
            {"row": 2, "id": "1", "text": 'Said "yes",\r\nthen no', "note": "x"},
        ),
        ("id: 2\ntext: 你好", 1, {"row": 4, "id": "2", "text": "你好", "note": ""}),
    ]


def test_csv_with_a_text_column(write: Write) -> None:
    """With `text_field` a row's document is that column, the others are its metadata."""
    path = write("a.csv", TABLE.encode("gb18030"))
    assert [(d.text, d.metadata) for d in read(path, text_field="text")] == [
        ('Said "yes",\r\nthen no', {"row": 2, "id": "1", "note": "x"}),
        ("你好", {"row": 4, "id": "2", "note": ""}),
    ]
    with pytest.raises(InputError, match=r"a\.csv:2 has no text in 'body', only \['id'"):
        read(path, text_field="body")


def test_csv_with_an_unquoted_comma(write: Write) -> None:
    """A row with more cells than the header is an error, or half a text would be lost."""
    with pytest.raises(InputError, match=r"a\.csv:2 has more cells"):
        read(write("a.csv", "id,text\n1,Hello, world\n"), text_field="text")


def test_jsonl_rows(write: Write) -> None:
    """Each line is a document of its first text field; its other scalars are metadata."""
    lines = [
        {"id": 7, "text": "a\u2028b", "ok": True, "score": 0.5, "tags": [1], "none": None},
        {"document": "d", "title": "t"},
        {"content": "c", "body": "b"},
        {"body": "b"},
        {"text": "  ", "id": 8},
    ]
    data = "\n\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    path = write("a.jsonl", "\ufeff" + data)
    assert [(d.text, d.position, d.metadata) for d in read(path)] == [
        ("a\u2028b", 0, {"row": 1, "id": 7, "ok": True, "score": 0.5}),
        ("d", 1, {"row": 3, "title": "t"}),
        ("c", 2, {"row": 5, "body": "b"}),
        ("b", 3, {"row": 7}),
    ]
    assert read(write("b.jsonl", '{"text": "t", "body": "b"}'), text_field="body")[0].text == "b"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"text": "cut', "is not a JSON object"),
        ('["a list"]', "is not a JSON object"),
        ("5", "is not a JSON object"),
        ('{"id": 3}', r"has no text in 'text', only \['id'\]"),
        ('{"text": 5}', "has no text in 'text'"),
        ('{"text": null}', "has no text in 'text'"),
    ],
)
def test_jsonl_with_a_bad_line(write: Write, line: str, fault: str) -> None:
    """A bad line is an error with file and line; the documents before it were delivered."""
    path = write("a.jsonl", f'{{"text": "good"}}\n\n{line}\n')
    documents = read_documents(path, count_tokens=count_tokens)
    assert next(documents).text == "good"
    with pytest.raises(InputError, match=f"{re.escape(str(path))}:3 {fault}"):
        next(documents)


def test_parquet_rows(write: Write, tmp_path: Path) -> None:
    """A Parquet row is the document that the same JSONL row is; a damaged file is refused."""
    rows = [{"text": "第一条", "year": 1}, {"text": "two", "year": 2}, {"text": "", "year": 3}]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    found, wanted = read(path), read(write("a.jsonl", lines))
    assert [(d.text, d.metadata, d.position) for d in found] == [
        ("第一条", {"row": 1, "year": 1}, 0),
        ("two", {"row": 2, "year": 2}, 1),
    ]
    assert [(d.text, d.metadata) for d in found] == [(d.text, d.metadata) for d in wanted]
    with pytest.raises(InputError, match=r"a\.parquet:1 has no text in 'body', only"):
        read(path, text_field="body")
    with pytest.raises(InputError, match="damaged"):
        read(write("b.parquet", b"PAR1 and nothing more"))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_long_rows_are_split(write: Write, name: str) -> None:
    """A row longer than the budget, even than the csv module's, becomes pieces with its facts."""
    text = " ".join(SENTENCES[i % 5] for i in range(3000))
    assert len(text) > 131_072
    row = json.dumps({"id": "7", "text": text}, ensure_ascii=False)
    path = write(name, f'id,text\n7,"{text}"\n' if name == "a.csv" else row)
    documents = read(path, max_tokens=256, text_field="text")
    assert max(count_tokens(document.text) for document in documents) <= 256
    assert [document.position for document in documents] == list(range(len(documents)))
    assert {str(document.metadata) for document in documents} == {
        "{'row': 2, 'id': '7'}" if name == "a.csv" else "{'row': 1, 'id': '7'}"
    }
    assert " ".join(document.text for document in documents) == text


def test_lone_surrogates_become_question_marks(write: Write) -> None:
    """Half of an emoji, which JSON can spell and no tokenizer reads, does not stop the import."""
    assert read(write("a.jsonl", '{"text": "a\\ud83d b \\ud83d\\ude00"}'))[0].text == "a? b 😀"


# Dependencies


def test_libraries_are_loaded_when_needed(tmp_path: Path) -> None:
    """Importing loads no library; a missing one is named with its extra, in the kinds it reads."""
    code = f"""
import sys
from pathlib import Path
from qwen3_embedding_integrations.documents import read_documents
from qwen3_embedding_integrations.errors import MissingDependencyError

libraries = {{"a.pdf": "pypdf", "a.docx": "docx", "a.html": "bs4"}}
libraries["a.txt"] = "semantic_text_splitter"
assert not {{"torch", *libraries.values()}} & set(sys.modules)
for name, library in libraries.items():
    path = Path({str(tmp_path)!r}, name)
    path.write_text("x")
    sys.modules[library] = None  # as if it were not installed
    try:
        list(read_documents(path, count_tokens=len))
    except MissingDependencyError as error:
        assert (error.package, error.extra) == (library, "files"), error
    else:
        raise SystemExit(f"{{library}} was not missed")
    del sys.modules[library]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
