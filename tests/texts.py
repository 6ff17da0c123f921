"""Texts to test with, the same in every run: Chinese, English, code, emoji, and any Unicode."""

from __future__ import annotations

import random

FRAGMENTS = (
    "民法调整平等主体的自然人、法人和非法人组织之间的人身关系和财产关系。",
    "自然人的人身权利、财产权利受法律保护，任何组织或者个人不得侵犯。",
    "如果忘记了账户密码，可以用手机号重置；还是不行，请联系客服。",
    "The capital of China is Beijing. ",
    "Gravity is a force that attracts two bodies towards each other, isn't it? ",
    "Refunds are paid within 14 days — to the card you paid with (see Appendix B). ",
    "def reverse(items: list[int]) -> list[int]:\n    return items[::-1]\n\n",
    "SELECT name, COUNT(*) FROM orders WHERE total >= 4821.50 GROUP BY name;\n",
    "🚀🔥👍🏽 👩‍👩‍👧‍👦 ",
    "Café naïve résumé — 東京、서울, Привет, мир! ",
    "\n\n",
    "x_{i+1} = x_i - η∇f(x_i); ",
)
# Ranges of every kind the tokenizer treats in its own way.
ALPHABETS = (
    (0x20, 0x7E), (0x61, 0x7A), (0x30, 0x39), (0x00, 0x1F), (0x7F, 0xFF), (0x300, 0x36F),
    (0x400, 0x4FF), (0x590, 0x6FF), (0x900, 0x97F), (0x1100, 0x11FF), (0x2000, 0x206F),
    (0x20D0, 0x20FF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF),
    (0xFE00, 0xFE0F), (0xFF00, 0xFFEF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0xE0001, 0xE007F),
    (0xFFFE, 0x10FFFF),
)  # fmt: skip
ODDITIES = (
    " ", "  ", "\n", "\r\n", "\t", "\u3000", "\u00a0", "\u200b", "\ufeff", "e\u0301",
    "\u1112\u1161\u11ab", "'s", "'LL", "...", "::", "👩‍👧", "\x00",
    "<|endoftext|>", "<|im_end|>", "<think>", "</tool_call>",
)  # fmt: skip


def mixed_text(rng: random.Random, num_chars: int) -> str:
    """Return about `num_chars` characters of Chinese, English, code and emoji."""
    parts: list[str] = []
    while sum(map(len, parts)) < num_chars:
        parts.append(rng.choice(FRAGMENTS))
    return "".join(parts)[:num_chars].strip() or "x"


def unicode_text(rng: random.Random, *, most_parts: int = 12) -> str:
    """Return any text that can be encoded: every range, controls, marks, special tokens."""
    parts: list[str] = []
    for _ in range(rng.randint(0, most_parts)):
        if rng.random() < 0.3:
            parts.append(rng.choice(ODDITIES))
        else:
            first, last = rng.choice(ALPHABETS)
            parts.append("".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 8))))
    return "".join(parts)
