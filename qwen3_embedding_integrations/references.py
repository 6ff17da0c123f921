"""Exact references in a text, in whatever notation: statute numbers, error codes, part numbers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

HEADING_CHARS = 120  # a longer first line is a paragraph that cites, not a heading that names
NAME_CHARS = 80  # read before a reference
CODE_CHARS = 4, 40

_ZERO_TO_NINE = ("零〇○", "一壹幺", "二贰貳两兩", "三叁參叄", "四肆", "五伍", "六陆陸", "七柒")
_DIGITS = {
    sign: value for value, signs in enumerate((*_ZERO_TO_NINE, "八捌", "九玖")) for sign in signs
}
_TENS = {"廿": 20, "卅": 30, "卌": 40}
_UNITS = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000}
_MYRIADS = "万萬亿億"

_NUMERAL = f"[{''.join((*_DIGITS, *_TENS, *_UNITS, *_MYRIADS))}]+"
NUMBER = rf"(?:\d{{1,3}}(?:,\d{{3}})+|\d+|{_NUMERAL})"
_KINDS = "条條款章节節项項编編篇号號回届屆卷页頁课課期版"
_SIMPLE_KINDS = dict(zip("條節項編篇號屆頁課", "条节项编编号届页课", strict=True))
_ENGLISH_KINDS = {"chapter": "章", "paragraph": "款", "para.": "款"}  # the rest are articles

_CHINESE = re.compile(
    rf"第\s*({NUMBER})\s*([{_KINDS}])(?:之({NUMBER}))?"
    # Without 第 only behind what ends a law's name: 三条 alone is "three of them".
    rf"|(?<=[法典例定则程约释令》])\s*({NUMBER})\s*条(?:之({NUMBER}))?"
    r"|(?<=[法典例》])\s*(\d{1,4})(?![\d年月日.,%条]|\w)"
)
_ENGLISH = re.compile(
    r"(?:(?<![a-z])(articles?|art\.|sections?|sec\.|chapter|paragraph|para\.)|§{1,2})\s*"
    r"(\d{1,6})([a-z]?)(?:[.\-](\d{1,4}))?(?!\w)"
)
_OF = re.compile(r"\s*(?:\([^)]*\)\s*)*of\s+(?:the\s+)?([a-z][a-z ]+)")
_CODE = re.compile(r"(?<![a-z0-9])[a-z0-9]+(?:[-_./:#][a-z0-9]+)*(?![a-z0-9])", re.ASCII)
_UNIT_OR_ORDINAL = re.compile(r"\d+(?:[-./:]\d+)*[a-z]{0,3}")  # 10mm, 1st, 3.5, 2020-01-01
_STANDARD = re.compile(r"\d+(?:-\d+)+")  # 7714-2015
_YEAR = re.compile(r"(?:1[89]|20)\d\d-")

_HYPHENS = dict.fromkeys(map(ord, "‐‑‒–—−"), "-")
_ACCENTS = re.compile("[\u0300-\u036f]")
_SENTENCE_END = re.compile(r"[。,;:!?、\n]|\.\s")
_BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
_LAW_ENDS = (*"法典例定则程约释令", "act", "code", "law", "laws", "regulation", "constitution")
_STATE = "中华人民共和国"
_LEADS = re.compile(
    "^(?:请问|请|解释|根据|依照|按照|依据|查询|查找|查|关于|违反|适用|什么是|我想知道|whatdoes|whatis|the)+"
)
# 依照刑法第十条的规定, 第十条第二款, 第十条至第十二条: cited, not a heading.
_CITED = re.compile("[ ]*(?:的|规定|所|至|、|和|或|及|与|第|中)")


class Reference(NamedTuple):
    """One reference: `key` is equal for all notations of the same number ("条1079").

    `kind` is "条" for articles and sections, "章", "款" and so on for other parts of a law, "code"
    for error codes and part numbers. `name` is what an article is a part of, as far as the text
    says so ("民法典"), without spaces. `start` and `end` are places in the folded text.
    """

    key: str
    kind: str
    name: str
    is_heading: bool
    start: int
    end: int

    @property
    def is_exact(self) -> bool:
        """Whether it names one thing by itself: 第二款 does not."""
        return self.kind in ("条", "code")


def fold(text: str) -> str:
    """Return the text in lower case, without accents, full-width forms and odd hyphens.

    NFKC, but for the accents of Latin, Greek and Cyrillic letters.
    """
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text.lower()).translate(_HYPHENS)
    return unicodedata.normalize("NFKC", _ACCENTS.sub("", decomposed))


def read_number(numeral: str) -> int | None:
    """Return the number that digits or a Chinese numeral say; None if they say none.

    一千零七十九, 一〇七九, 壹仟零柒拾玖, 两百, 廿一 and 1,079 are numbers; 百千 is none.
    """
    if numeral.replace(",", "").isdecimal():
        return int(numeral.replace(",", ""))
    if all(sign in _DIGITS for sign in numeral):
        return int("".join(str(_DIGITS[sign]) for sign in numeral)) if numeral else None
    sections = re.split("([万萬亿億])", numeral)
    total = 0
    for section, myriad in zip(sections[::2], [*sections[1::2], ""], strict=True):
        value = _read_section(section)
        if value is None or (myriad and not value and not total):
            return None
        if myriad in ("亿", "億"):
            total = (total + value) * 10**8
        else:
            total += value * 10**4 if myriad else value
    return total


def find_references(folded: str) -> Iterator[Reference]:
    """Yield the references of a folded text: articles in any notation, then codes."""
    first_line = folded.find("\n") % (len(folded) + 1)
    has_heading = False
    for start, end, kind, number in _numbered(folded):
        name = _name(folded, start, end) if kind == "条" else ""
        is_heading = (
            kind == "条"
            and not has_heading
            and start < first_line
            and (first_line <= HEADING_CHARS or not folded[:start].strip())
            and not (_LEADS.match(name) or _CITED.match(folded, end))
        )
        has_heading = has_heading or is_heading
        yield Reference(f"{kind}{number}", kind, name, is_heading, start, end)
    for found in _CODE.finditer(folded):
        if key := _code_key(found.group()):
            yield Reference(key, "code", "", False, *found.span())


def agreement(asked: str, name: str) -> tuple[int, float]:
    """Return how well a law's name in a text fits the name asked for; (0, 0.0): not at all.

    The first number is how many characters agree, the second their share of the text's name.
    A name in the other script may be a translation: it fits as little as anything can.
    """
    if not asked or not name or asked.isascii() != name.isascii():
        return 1, 0.0
    if name in asked:
        return len(name), 1.0
    core = _LEADS.sub("", asked) or asked
    if core in name:
        return len(core), len(core) / len(name)
    if len(core) <= 6 and core[-1] == name[-1] and _is_subsequence(core, name):
        return 1, len(core) / len(name)  # 刑诉法 of 刑事诉讼法
    return 0, 0.0


def ends_with_law(name: str) -> bool:
    """Whether a name ends as laws' names do."""
    return name.endswith(_LAW_ENDS)


def _read_section(numeral: str) -> int | None:
    """Return what a numeral below 10,000 says; its units fall from the thousands to the tens."""
    section, digit, last_unit = 0, None, 10**4
    for sign in numeral:
        unit = 10 if sign in _TENS else _UNITS.get(sign)
        if unit is None:
            if digit or sign not in _DIGITS:
                return None
            digit = _DIGITS[sign]
        elif unit >= last_unit or (sign in _TENS and digit):
            return None
        else:
            section += _TENS.get(sign) or (digit or 1) * unit
            digit, last_unit = None, unit
    return section + (digit or 0)


def _numbered(folded: str) -> Iterator[tuple[int, int, str, str]]:
    for found in _CHINESE.finditer(folded):
        ordinal, kind, part, bare, bare_part, digits = found.groups()
        number, part = read_number(ordinal or bare or digits), part or bare_part
        if number is not None:
            kind = _SIMPLE_KINDS.get(kind, kind) if kind else "条"
            yield *found.span(), kind, f"{number}{_part(part and read_number(part))}"
    for found in _ENGLISH.finditer(folded):
        word, number, letter, part = found.groups()
        kind = _ENGLISH_KINDS.get(word, "条")
        yield *found.span(), kind, f"{int(number)}{letter}{_part(part and int(part))}"


def _part(part: int | str | None) -> str:
    return f"之{part}" if part else ""


def _name(folded: str, start: int, end: int) -> str:
    """Return the name of what a reference is an article of: before it, or after "of"."""
    if after := _OF.match(folded, end):
        return after.group(1).replace(" ", "")[:NAME_CHARS]
    before = folded[max(0, start - NAME_CHARS) : start]
    if "\n" in before or _SENTENCE_END.search(before):
        before = _SENTENCE_END.split(before)[-1]
    if before.rstrip().endswith("》") and "《" in before:
        before = before[before.rindex("《") :]
    while (shorter := _BRACKETS.sub("", before)) != before:
        before = shorter
    return "".join(c for c in before if c.isalnum()).replace(_STATE, "")


def _code_key(token: str) -> str | None:
    """Return a code without its separators; None for words, numbers, units, dates and years."""
    compact = "".join(c for c in token if c.isalnum())
    if not CODE_CHARS[0] <= len(compact) <= CODE_CHARS[1]:
        return None
    if _STANDARD.fullmatch(token):
        return compact if len(compact) >= 6 and not _YEAR.match(token) else None
    if token.isdecimal():
        return token if len(token) >= 6 and not token.endswith("000") else None
    if _UNIT_OR_ORDINAL.fullmatch(token) or compact.isalpha():
        return None
    return compact


def _is_subsequence(short: str, long: str) -> bool:
    rest = iter(long)
    return all(sign in rest for sign in short)
