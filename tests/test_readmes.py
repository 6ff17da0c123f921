"""The Chinese README says what the English one says: the same sections, commands and figures."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
# English section → Chinese section: what is added to one README is added to the other, and here.
SECTIONS = {
    "Try it: two commands, no GPU, no model download": "试一试：两条命令，不要 GPU，不下载模型",
    "Install": "安装",
    "Use it": "用法",
    "Index": "索引",
    "Search": "检索",
    "Remote": "远程",
    "Serve": "服务",
    "Cache": "缓存",
    "Doctor": "诊断",
    "Evaluate": "评测",
    "Benchmarks": "公开基准",
    "Options": "选项",
    "Fine-tuning": "微调",
    "LoRA adapters": "LoRA 适配器",
    "Reranking": "重排序的细节",
    "On a CPU": "在 CPU 上",
    "On a GPU": "在 GPU 上",
    "Without torch": "不用 torch",
    "The contract": "契约",
    "The road of a text": "一条文本的旅程",
    "Measured": "实测",
    "Development": "开发",
    "Licence": "许可",
}
FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"(^|\s)#.*$", re.MULTILINE)
NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?:e-?\d+)?")


def sections(name: str) -> dict[str, str]:
    """Return a README's sections by title, in order; a `#` in a code block is no title."""
    text = (ROOT / name).read_text(encoding="utf-8")
    outside = FENCED.sub(lambda block: re.sub("^#", " #", block[0], flags=re.MULTILINE), text)
    parts = re.split(r"^## (.+)\n", outside, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


ENGLISH, CHINESE = sections("README.md"), sections("README.zh-CN.md")


def code(text: str) -> list[str]:
    """Return a text's code blocks without comments and layout, which the formatter fits to them."""
    bare = ["".join(COMMENT.sub("", block).split()) for block in FENCED.findall(text)]
    return [re.sub(r",([)\]}])", r"\1", block) for block in bare]


def table_rows(text: str) -> list[list[str]]:
    """Return the numbers of each row of a text's tables, in one order."""
    rows = re.findall(r"^\|.*\|$", FENCED.sub("", text), re.MULTILINE)
    return [sorted(NUMBER.findall(row)) for row in rows]


def test_every_section_has_its_counterpart() -> None:
    """Both READMEs have the same sections in the same order, and lead to each other."""
    assert list(ENGLISH) == list(SECTIONS)
    assert list(CHINESE) == list(SECTIONS.values())
    for name, other in (("README.md", "README.zh-CN.md"), ("README.zh-CN.md", "README.md")):
        top = (ROOT / name).read_text(encoding="utf-8").splitlines()[:5]
        assert any(f"]({other})" in line for line in top), f"{name} does not link to {other}"


def test_the_code_is_the_same() -> None:
    """Every code block of the Chinese README stands in the English section, comments aside."""
    differing = [
        block
        for english, chinese in SECTIONS.items()
        for block in code(CHINESE[chinese])
        if block not in code(ENGLISH[english])
    ]
    assert not differing, "not in README.md:\n" + "\n---\n".join(differing)


def test_the_figures_are_the_same() -> None:
    """Tables have the same numbers row by row; no number is in the Chinese section alone."""
    for english, chinese in SECTIONS.items():
        assert table_rows(CHINESE[chinese]) == table_rows(ENGLISH[english]), chinese
        known = set(NUMBER.findall(ENGLISH[english]))
        strange = set(NUMBER.findall(CHINESE[chinese])) - known
        assert not strange, f"{chinese}: {sorted(strange)} not in README.md's {english!r}"


def test_links_lead_somewhere() -> None:
    """Files and headings that the READMEs link to are there."""
    for name, parts in (("README.md", ENGLISH), ("README.zh-CN.md", CHINESE)):
        text = FENCED.sub("", (ROOT / name).read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            if target.startswith("http"):
                continue
            assert not path or (ROOT / path).exists(), f"{name}: {target}"
            titles = ENGLISH if path == "README.md" else parts
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert not anchor or anchor in slugs, f"{name}: {target}"
