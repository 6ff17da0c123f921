"""KeywordIndex and what it reads: numerals, references, terms, BM25, crashes, threads."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_embedding_integrations import ConfigError, InputError, KeywordIndex, StoreError
from qwen3_embedding_integrations.demo import load_texts
from qwen3_embedding_integrations.references import find_references, fold, read_number
from qwen3_embedding_integrations.terms import split_text

DIGITS = "零一二三四五六七八九"
FORMAL = "零壹贰叁肆伍陆柒捌玖"


def say(number: int, digits: str = DIGITS, units: str = "千百十", myriad: str = "万亿") -> str:
    """Return a number below 10^12 in Chinese: written apart from what reads it."""
    text, is_gap = "", False
    for power in range(11, -1, -1):
        digit = number // 10**power % 10
        place = power % 4
        if digit:
            text += ("零" if is_gap and text else "") + digits[digit]
            text += ("", units[2], units[1], units[0])[place]
            is_gap = False
        else:
            is_gap = True
        if power in (4, 8) and number // 10**power % 10**4:
            text += myriad[0] if power == 4 else myriad[1]
    return text or "零"


def ids_of(found: list[tuple[str, float]]) -> list[str]:
    return [id_ for id_, _ in found]


@given(st.integers(0, 10**12 - 1))
def test_chinese_numerals_are_read_back(number: int) -> None:
    """A number written in Chinese, plain or as on a cheque, is read as that number."""
    assert read_number(say(number)) == number
    assert read_number(say(number, FORMAL, "仟佰拾", "萬億")) == number


@given(st.integers(1, 99_999))
def test_digits_in_any_width_and_one_by_one_are_read(number: int) -> None:
    """1079, １０７９, 一〇七九 and 1,079 are the same number."""
    wide = "".join(chr(ord(digit) + 0xFEE0) for digit in str(number))
    one_by_one = "".join(DIGITS[int(digit)] for digit in str(number)).replace("零", "〇")
    for text in (str(number), fold(wide), one_by_one, f"{number:,}"):
        assert read_number(text) == number, text


@pytest.mark.parametrize(
    ("numeral", "number"),
    [
        ("十", 10),
        ("十二", 12),
        ("两百", 200),
        ("廿三", 23),
        ("卅", 30),
        ("百千", None),
        ("万", None),
    ],
)
def test_short_forms_and_nonsense(numeral: str, number: int | None) -> None:
    """Ten without its one, twenty and thirty as one sign; what is no number is None."""
    assert read_number(numeral) == number


@pytest.mark.parametrize(
    "notation",
    [
        "民法典第一千零七十九条",
        "《中华人民共和国民法典》第１０７９条",
        "民法典第 1079 条第二款",
        "民法典 § 1079",
        "民法典 Article 1079",
        "民法典Art. 1079(3)",
        "民法典1079条",
        "民法典1079",
        "民法典（2020年）第一千零七十九條",
    ],
)
def test_one_article_has_one_key(notation: str) -> None:
    """However an article is written, it is the same article of the same law."""
    found = [one for one in find_references(fold(notation)) if one.kind == "条"]
    assert [(one.key, one.name) for one in found] == [("条1079", "民法典")]


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("刑法第十七条之一", ["条17之1"]),
        ("Section 12.3 and § 7a", ["条12之3", "条7a"]),
        ("E1234-X, E-1234-X and e1234–x", ["e1234x"] * 3),
        ("GB/T 7714-2015, CVE-2021-44228", ["77142015", "cve202144228"]),
        ("1st of 10 mm in 2020-01-01, 3.5kg, 500,000, 三条建议, state of the art", []),
    ],
)
def test_what_is_a_reference(text: str, keys: list[str]) -> None:
    """Articles and codes are references; units, ordinals, dates and counts are not."""
    assert [one.key for one in split_text(text).references] == keys


def test_only_a_heading_names_an_article() -> None:
    """The article's own text is told apart from texts that cite it."""
    own = "民法典第十条\n处理民事纠纷，应当依照法律，比照第九条。"
    citing = "民法典第十一条\n依照民法典第十条的规定。"
    assert [one.is_heading for one in find_references(fold(own))] == [True, False]
    assert [(one.key, one.is_heading) for one in find_references(fold(citing))] == [
        ("条11", True),
        ("条10", False),
    ]


def test_terms_are_words_pairs_and_parts() -> None:
    """Words without accents, Chinese characters and pairs, a code whole and in parts."""
    assert set(split_text("Café E-1042 民法典").terms) == set(
        ["cafe", "e1042", "e", "1042", "民", "法", "典", "民法", "法典"]
    )


def test_ranking_is_bm25() -> None:
    """The order and the scores are those of the formula, computed here by itself."""
    texts = [text.document for text in load_texts()][:120]
    bags = [Counter(split_text(text).terms) for text in texts]
    query = "承租人可以转租房屋吗"
    mean = sum(bag.total() for bag in bags) / len(bags)

    def score(bag: Counter[str]) -> float:
        total = 0.0
        for term in dict.fromkeys(split_text(query).terms):
            holders = sum(term in other for other in bags)
            idf = max(math.log((len(bags) - holders + 0.5) / (holders + 0.5)), 1e-6)
            tf = bag[term]
            total += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * bag.total() / mean))
        return total

    expected = sorted(((str(n), score(bag)) for n, bag in enumerate(bags)), key=lambda x: -x[1])
    with KeywordIndex(":memory:") as index:
        index.write([str(n) for n in range(len(texts))], texts)
        found = index.search(query, 10)
    assert ids_of(found) == ids_of(expected[:10])
    assert [s for _, s in found] == pytest.approx([s for _, s in expected[:10]], rel=1e-6)


def test_endings_cases_and_accents_do_not_matter() -> None:
    """Running finds run, RÉSUMÉ finds resume."""
    with KeywordIndex(":memory:") as index:
        index.write(["a", "b", "c"], ["He runs daily", "my résumé", "unlike both"])
        assert ids_of(index.search("RUNNING", 5)) == ["a"]
        assert ids_of(index.search("Ｒesume", 5)) == ["b"]


@settings(max_examples=40)
@given(st.text(max_size=60))
def test_no_query_is_an_operator(query: str) -> None:
    """Any text is a query: quotes, operators and control characters are never syntax."""
    with KeywordIndex(":memory:") as index:
        index.write(["a"], ["plain text AND more"])
        for text in (query, f'" OR terms:* NOT ({query}', f"text {query} \x00 NEAR(a b) ^"):
            assert set(ids_of(index.search(text, 3))) <= {"a"}
            index.find_references(text)


def test_a_long_query_is_answered() -> None:
    """A query of 5,000 different words finds the text that has the rare one."""
    with KeywordIndex(":memory:") as index:
        index.write(["a", "b"], ["needle", "hay"])
        words = " ".join(f"w{n}w" for n in range(5000))
        assert ids_of(index.search(f"{words} needle", 3)) == ["a"]


def test_common_words_are_left_out_and_rare_ones_found() -> None:
    """Where a word stands in very many texts, the rare words of the query decide."""
    with KeywordIndex(":memory:") as index:
        count = 30_000
        texts = [f"common usual {n}q" for n in range(count)]
        index.write([str(n) for n in range(count)], texts)
        assert ids_of(index.search("common usual 777q", 3))[0] == "777"
        assert len(index.search("common", 3)) == 3


def test_writing_replaces_and_deleting_removes() -> None:
    """A text written again stands for the one before; a deleted one is found no more."""
    with KeywordIndex(":memory:") as index:
        index.write(["a", "b"], ["red apple 第1条", "green pear"])
        index.write(["a"], ["blue plum"])
        assert not index.search("apple", 5)
        assert not index.find_references("第1条")
        assert ids_of(index.search("plum", 5)) == ["a"]
        index.delete(["a", "nobody"])
        assert (len(index), index.search("plum", 5)) == (1, [])


def test_pages_continue_each_other() -> None:
    """Pages of any size are cuts of one order, ties included."""
    with KeywordIndex(":memory:") as index:
        index.write([str(n) for n in range(50)], ["same words"] * 50)
        whole = index.search("words", 50)
        pages = [hit for start in range(0, 50, 7) for hit in index.search("words", 7, offset=start)]
        assert pages == whole


def test_references_put_the_law_asked_for_first() -> None:
    """The law's name decides; short, long and abbreviated names fit; another law does not."""
    laws = ["民法典", "刑法", "劳动合同法", "刑事诉讼法"]
    with KeywordIndex(":memory:") as index:
        index.write(laws, [f"中华人民共和国{law}第十条\n某某规定。" for law in laws])
        index.write(["citing"], ["依照刑法第十条的规定"])
        for query, found in [
            ("刑法第10条", ["刑法"]),
            ("请问《中华人民共和国刑法》第十条怎么规定？", ["刑法"]),
            ("劳动合同法 § 10", ["劳动合同法"]),
            ("合同法第十条", ["劳动合同法"]),
            ("刑诉法第十条", ["刑事诉讼法"]),
            ("《劳动合同法》第十条", ["劳动合同法"]),
            ("专利法第十条", []),
            ("第十条", laws),
            ("第十条第二款", laws),
            ("请问第十条", laws),
            ("Article 10 of the Civil Code", laws),  # a name in another language fits any
            ("第十一条", []),
        ]:
            assert ids_of(index.find_references(query)) == found, query


def test_codes_are_found_in_every_notation() -> None:
    """An error code or part number is found with other hyphens, spaces and case."""
    with KeywordIndex(":memory:") as index:
        index.write(["e", "p"], ["Error E1234-X: no connection", "part BD–4711/2"])
        for query in ("E1234-X", "what is e-1234-x?", "Ｅ1234X"):
            assert ids_of(index.find_references(query)) == ["e"], query
        assert ids_of(index.search("bd 4711", 5)) == ["p"]
        index.write([f"c{n}" for n in range(30)], [f"covid-19 case {n}" for n in range(30)])
        assert index.find_references("covid-19") == []


def test_demo_articles_are_found_by_number_in_five_notations() -> None:
    """Each of the shipped articles of the Civil Code comes first by its number."""
    texts = [text for text in load_texts() if text.id.startswith("民法典")]
    with KeywordIndex(":memory:") as index:
        index.write([text.id for text in texts], [f"{text.id}\n{text.document}" for text in texts])
        for text in texts:
            (reference,) = find_references(fold(text.id))
            number = reference.key.removeprefix("条")
            for query in (
                text.id,
                f"民法典第{number}条",
                f"《中华人民共和国民法典》第{number}条",
                f"民法典 § {number}",
                f"民法典 Article {number}",
            ):
                assert ids_of(index.find_references(query)) == [text.id], query


@pytest.mark.parametrize(
    ("ids", "texts", "message"),
    [
        (["a"], [], "1 ids for 0 texts"),
        (["a", "a"], ["x", "y"], "'a' is given twice"),
        (["a"], [1], "texts holds a int"),
        ([2], ["x"], "ids holds a int"),
    ],
)
def test_bad_input_is_refused_whole(ids: list[str], texts: list[str], message: str) -> None:
    """What cannot be written is refused by name, and nothing is written."""
    with KeywordIndex(":memory:") as index:
        with pytest.raises(InputError, match=message):
            index.write(ids, texts)
        assert len(index) == 0


def test_impossible_pages_and_strings_for_lists_are_refused() -> None:
    """limit and offset have ranges; a str is no list."""
    with KeywordIndex(":memory:") as index:
        with pytest.raises(ConfigError, match="limit is 0"):
            index.search("a", 0)
        with pytest.raises(TypeError, match="ids is a str"):
            index.delete("abc")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """An id that cannot be stored fails the whole call, and the index goes on."""
    with KeywordIndex(tmp_path / "k.db") as index:
        with pytest.raises(StoreError, match="no valid Unicode"):
            index.write(["good", "bad\ud800"], ["one", "two"])
        assert len(index) == 0
        index.write(["good"], ["text with \ud800 inside"])
        assert ids_of(index.search("inside", 1)) == ["good"]


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    """Another database, a file of another kind and a closed index say so."""
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE t (x)")
    other.commit()
    other.close()
    with pytest.raises(StoreError, match="no keyword index of this version"):
        KeywordIndex(tmp_path / "other.db")
    (tmp_path / "text.db").write_text("not a database at all, but long enough to be read as one")
    with pytest.raises(StoreError, match=r"text\.db failed"):
        KeywordIndex(tmp_path / "text.db")
    index = KeywordIndex(tmp_path / "k.db")
    index.close()
    with pytest.raises(StoreError, match="closed"):
        index.search("a", 1)


def test_eight_threads_search_while_one_writes(tmp_path: Path) -> None:
    """Every search sees whole batches only: both texts of a pair, or neither."""
    stop = threading.Event()
    with KeywordIndex(tmp_path / "k.db") as index:

        def search() -> int:
            count = 0
            while not stop.is_set():
                found = ids_of(index.search("pair", 1000))
                assert len(found) % 2 == 0, "half a batch was seen"
                count += 1
            return count

        with ThreadPoolExecutor(8) as pool:
            searches = [pool.submit(search) for _ in range(8)]
            for n in range(40):
                index.write([f"{n}a", f"{n}b"], [f"pair left {n}", f"pair right {n}"])
            stop.set()
            assert all(one.result() > 0 for one in searches)
        assert len(index) == 80


WRITER = """
import sys
from qwen3_embedding_integrations.keywords import KeywordIndex
with KeywordIndex(sys.argv[1]) as index:
    for batch in range(int(sys.argv[2]), int(sys.argv[3])):
        ids = [f"{batch}-{n}" for n in range(20)]
        index.write(ids, [f"batch number b{batch}b text {n} 第{n}条" for n in range(20)])
        print(batch, flush=True)
"""


def writer(path: Path, first: int, last: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), str(first), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize("num_batches", [1, 5, 17])
def test_a_killed_writer_leaves_whole_batches(tmp_path: Path, num_batches: int) -> None:
    """After kill -9 the file opens, holds all that was said to be written, and nothing by half."""
    process = writer(tmp_path / "k.db", 0, 100_000)
    assert process.stdout is not None
    told = [process.stdout.readline() for _ in range(num_batches)]
    time.sleep(0.003 * num_batches)  # into the next batch
    process.send_signal(signal.SIGKILL)
    told += process.communicate()[0].splitlines()
    with KeywordIndex(tmp_path / "k.db") as index:
        batches = len(index) / 20
        assert batches.is_integer()
        assert len(told) <= batches <= len(told) + 1
        for batch in range(int(batches)):
            assert len(index.search(f"b{batch}b", 50)) == 20
        index.write(["new"], ["after the crash"])
        assert ids_of(index.search("crash", 1)) == ["new"]


def test_two_processes_write_one_file(tmp_path: Path) -> None:
    """Processes that open and write the same file at once wait for each other."""
    processes = [writer(tmp_path / "k.db", start, start + 30) for start in (0, 100)]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    with KeywordIndex(tmp_path / "k.db") as index:
        assert len(index) == 2 * 30 * 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_opens_the_file_anew(tmp_path: Path) -> None:
    """An index carried through a fork works on both sides; one in memory says that it cannot."""
    index = KeywordIndex(tmp_path / "k.db")
    index.write(["a"], ["before"])
    in_memory = KeywordIndex(":memory:")
    child = os.fork()
    if child == 0:
        try:
            with pytest.raises(StoreError, match="does not cross a fork"):
                in_memory.search("a", 1)
            index.write(["b"], ["in the child"])
            os._exit(0 if len(index) == 2 else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ids_of(index.search("child", 1)) == ["b"]
    index.close()
    in_memory.close()
