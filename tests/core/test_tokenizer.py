"""Token ids: the official ones, ended once, cut, divided and chunked without loss."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as RawTokenizer

from qwen3_embedding_integrations.core.prompts import WEB_SEARCH, query_prompt
from qwen3_embedding_integrations.core.tokenizer import MAX_PREFIX_TOKENS, Tokenizer
from qwen3_embedding_integrations.errors import ModelLoadError
from tests.checkpoints import END, official_tokenizer
from tests.texts import mixed_text, unicode_text

DATA = Path(__file__).parent.parent / "data"
END_ID = 151643
INSTRUCTIONS = (
    WEB_SEARCH,
    "Retrieve semantically similar text",
    "给定一个网络搜索查询，检索能够回答该查询的相关段落。",
    "x",
    "Ends in a space ",
    "Ends in a full stop.",
    "Ends in a colon:",
    "Ends in a newline\n",
    "Cafe\u0301, decomposed, and 🚀",
    "two\nlines, 2024-03-15",
    "Query:",
    f"holds {END} and <think>",
    "long " * 700,
)


@pytest.fixture(scope="module")
def tokenizer(small_checkpoint: Path) -> Tokenizer:
    return Tokenizer(small_checkpoint)


@pytest.fixture(scope="module")
def raw() -> RawTokenizer:
    return RawTokenizer.from_str(official_tokenizer().decode())


@pytest.fixture(scope="module")
def official(small_checkpoint: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(small_checkpoint)


@pytest.fixture(scope="module")
def unicode_texts() -> list[str]:
    rng = random.Random(20261121)
    return [unicode_text(rng) for _ in range(10_000)]


def edited(tmp_path: Path, edit) -> Path:
    """Return a folder whose tokenizer.json is the official one after `edit`."""
    tokenizer = json.loads(official_tokenizer())
    edit(tokenizer)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return tmp_path


def golden_ids():
    data = json.loads((DATA / "golden_ids.json").read_text(encoding="utf-8"))
    return [(text["text"], text["ids"]) for part in data["lists"] for text in part["texts"]]


def test_ids_equal_the_official_tokenizers(tokenizer, raw, official, unicode_texts):
    """10,000 texts of any Unicode get the ids that tokenizers and transformers give them."""
    ours = [ids.tolist() for ids in tokenizer.encode(unicode_texts)]
    judges = {
        "tokenizers": [encoding.ids for encoding in raw.encode_batch(unicode_texts)],
        "transformers": official(unicode_texts)["input_ids"],
    }
    for name, expected in judges.items():
        different = [i for i in range(len(ours)) if ours[i] != expected[i]]
        first = repr(unicode_texts[different[0]]) if different else ""
        assert not different, f"{len(different)} of {len(ours)} differ from {name}, first {first}"


@pytest.mark.parametrize(("text", "expected"), golden_ids())
def test_published_ids(tokenizer, text, expected):
    """The id lists published with the model are ours."""
    assert tokenizer.encode([text])[0].tolist() == expected


def test_published_counts(tokenizer):
    """25 published token counts are ours, without the end token."""
    counts = json.loads((DATA / "tokenizer_reference_counts.json").read_text(encoding="utf-8"))
    ours = [[text, len(tokenizer.encode([text])[0]) - 1] for text, _ in counts["counts"]]
    assert ours == counts["counts"]
    assert len(ours) == 25


def test_exactly_one_end_token(tokenizer):
    """A text without special tokens ends in one <|endoftext|> and holds no other."""
    rng = random.Random(1)
    texts = ["", " ", "word", "中"] + [mixed_text(rng, rng.randint(1, 300)) for _ in range(300)]
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert ids[-1] == END_ID
        assert np.count_nonzero(ids == END_ID) == 1, f"{text!r}: {ids.tolist()}"
        assert ids.dtype == np.int32


def test_an_empty_text_is_the_end_token(tokenizer):
    """Nothing but <|endoftext|> is read of an empty text."""
    assert tokenizer.encode([""])[0].tolist() == [END_ID]


def test_a_cut_is_the_official_truncation(tokenizer, official):
    """cut() gives what the official tokenizer's own truncation gives: the end token stays."""
    rng = random.Random(2)
    for _ in range(300):
        text = mixed_text(rng, rng.randint(20, 400)) if rng.random() < 0.5 else unicode_text(rng)
        ids = tokenizer.encode([text])[0]
        if len(ids) < 3:
            continue
        num_tokens = rng.randint(2, len(ids) - 1)
        cut = tokenizer.cut(ids, num_tokens)
        assert cut.tolist() == official(text, truncation=True, max_length=num_tokens)["input_ids"]
        assert (len(cut), cut[-1], cut.dtype) == (num_tokens, END_ID, np.int32)


@pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=lambda text: repr(text)[:24])
def test_prefix_and_rest_are_the_whole(tokenizer, instruction):
    """A query's ids after the reused prefix are those of prompt and query read together."""
    prompt = query_prompt(instruction)
    head = tokenizer.prompt(prompt)
    rng = random.Random(3)
    queries = [unicode_text(rng) for _ in range(500)]
    queries += [mixed_text(rng, rng.randint(1, 60)) for _ in range(200)]
    queries += [
        "",
        " ",
        "\n",
        ".",
        ":",
        "::new",
        " x",
        "x ",
        "x.",
        "x:",
        "x\n",
        "\u0338",
        "\u0301a",
        END,
    ]
    rests = tokenizer.encode([head.tail + query for query in queries])
    wholes = tokenizer.encode([prompt + query for query in queries])
    different = [
        query
        for query, rest, whole in zip(queries, rests, wholes, strict=True)
        if [*head.prefix_ids, *rest.tolist()] != whole.tolist()
    ]
    assert not different, f"{len(different)} of {len(queries)}, first {different[0]!r}"


def test_the_prefix_is_nearly_all_of_the_prompt(tokenizer):
    """Reuse is worth it: 18 of the default prompt's 19 tokens, others' all but their last two."""
    assert len(tokenizer.prompt(query_prompt(WEB_SEARCH)).prefix_ids) == 18
    for instruction in INSTRUCTIONS:
        prompt = query_prompt(instruction)
        num_tokens = len(tokenizer.encode([prompt])[0]) - 1
        num_reused = len(tokenizer.prompt(prompt).prefix_ids)
        assert num_reused >= min(num_tokens - 2, MAX_PREFIX_TOKENS), (
            f"{instruction[:30]!r}: {num_reused} of {num_tokens} tokens reused"
        )
        assert num_reused <= MAX_PREFIX_TOKENS


def test_threads_do_not_disturb_each_other(small_checkpoint, unicode_texts):
    """Eight threads that encode, cut, chunk and divide prompts get what one thread gets."""
    texts, rng = unicode_texts[:400], random.Random(4)
    long_texts = [mixed_text(rng, 1500) for _ in range(10)]

    def work(tokenizer: Tokenizer, seed: int) -> list[object]:
        order = random.Random(seed)
        results: list[object] = []
        for _ in range(12):
            some = order.sample(texts, 40)
            results.append([ids.tolist() for ids in tokenizer.encode(some)])
            text = order.choice(long_texts)
            results.append(tokenizer.cut(tokenizer.encode([text])[0], 20).tolist())
            results.append([ids.tolist() for ids in tokenizer.chunk(text, 64, head=":")])
            results.append(tokenizer.prompt(query_prompt(f"task {order.randint(0, 9)}")))
        return results

    shared, alone = Tokenizer(small_checkpoint), Tokenizer(small_checkpoint)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda seed: work(shared, seed), range(8)))
    assert together == [work(alone, seed) for seed in range(8)]


def test_saved_truncation_and_padding_are_not_obeyed(tmp_path, tokenizer):
    """A tokenizer.json saved while it cut and padded neither cuts nor pads a text."""
    raw = RawTokenizer.from_str(official_tokenizer().decode())
    raw.enable_truncation(max_length=4)
    raw.enable_padding(length=16, pad_id=END_ID, pad_token=END)
    raw.save(str(tmp_path / "tokenizer.json"))
    texts = ["one", "The capital of China is Beijing.", ""]
    ours = [ids.tolist() for ids in Tokenizer(tmp_path).encode(texts)]
    assert ours == [ids.tolist() for ids in tokenizer.encode(texts)]


def test_a_tokenizer_without_the_end_template_is_refused(tmp_path):
    """A plain Qwen3 tokenizer, which appends nothing, is refused with the revision to use."""

    def edit(tokenizer):
        tokenizer["post_processor"] = tokenizer["post_processor"]["processors"][0]

    with pytest.raises(ModelLoadError, match=r"0 <\|endoftext\|>.*exactly one.*97b0c614"):
        Tokenizer(edited(tmp_path, edit))


def test_a_tokenizer_that_doubles_the_end_token_is_refused(tmp_path):
    """A template that appends <|endoftext|> twice is refused, with the count."""

    def edit(tokenizer):
        template = tokenizer["post_processor"]["processors"][1]["single"]
        template.append(template[-1])

    with pytest.raises(ModelLoadError, match=r"2 <\|endoftext\|>.*exactly one"):
        Tokenizer(edited(tmp_path, edit))


def test_a_tokenizer_that_ends_in_another_token_is_refused(tmp_path):
    """A template that ends a text with <|im_end|> is refused."""

    def edit(tokenizer):
        text = json.dumps(tokenizer["post_processor"])
        text = text.replace(END, "<|im_end|>").replace(str(END_ID), "151645")
        tokenizer["post_processor"] = json.loads(text)

    with pytest.raises(ModelLoadError, match=r"0 <\|endoftext\|>"):
        Tokenizer(edited(tmp_path, edit))


def test_a_missing_tokenizer_is_named(tmp_path):
    """A folder without tokenizer.json is refused, and vocab.json with merges.txt is no stand-in."""
    with pytest.raises(ModelLoadError, match=r"no tokenizer\.json"):
        Tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(ModelLoadError, match=r"vocab\.json and merges\.txt but no tokenizer\.json"):
        Tokenizer(tmp_path)


def test_a_damaged_tokenizer_is_named(tmp_path):
    """A tokenizer.json cut short is refused by its path."""
    (tmp_path / "tokenizer.json").write_bytes(official_tokenizer()[:1_000_000])
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json cannot be read"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("head", ["", ":", "中文 head "])
@pytest.mark.parametrize("max_tokens", [12, 64, 200])
def test_pieces_cover_the_text_in_order(tokenizer, max_tokens, head):
    """chunk() loses, repeats and reorders no token; pieces fit, begin with `head` and end once."""
    rng = random.Random(max_tokens)
    head_ids = tokenizer.encode([head])[0][:-1].tolist()
    for num_chars in (0, 5, 60, 300, 2000, 6000):
        text = mixed_text(rng, num_chars) if num_chars else ""
        pieces = [ids.tolist() for ids in tokenizer.chunk(text, max_tokens, head=head)]
        whole = tokenizer.encode([head + text])[0].tolist()
        assert all(len(piece) <= max_tokens for piece in pieces), [len(p) for p in pieces]
        assert all(piece[-1] == END_ID and END_ID not in piece[:-1] for piece in pieces)
        assert all(piece[: len(head_ids)] == head_ids for piece in pieces[1:])
        rest = [ids for piece in pieces[1:] for ids in piece[len(head_ids) : -1]]
        assert pieces[0][:-1] + rest == whole[:-1]
        room = max_tokens - 1 - len(head_ids)
        assert len(pieces) <= 2 * len(whole) / room + 1, f"{len(pieces)} pieces of {max_tokens}"


ENGLISH = "The quick brown fox jumps over the lazy dog near the river bank{} "
CHINESE = "自然人的人身权利和财产权利受到法律的保护，任何人不得侵犯{}"


@pytest.mark.parametrize(
    ("sentence", "marks"),
    [(ENGLISH, ".!?"), (CHINESE, "。！？")],
    ids=["english", "chinese"],
)
def test_pieces_end_where_a_sentence_ends(tokenizer, raw, sentence, marks):
    """With a sentence's end in the second half of what fits, a piece ends exactly there."""
    text = "".join(sentence.format(marks[i % 3]) for i in range(40)).strip()
    pieces = tokenizer.chunk(text, 50)
    ends = [raw.decode(ids[:-1].tolist()) for ids in pieces]
    assert len(pieces) > 5
    wrong = [end for end in ends if not end.rstrip().endswith(tuple(marks))]
    assert not wrong, (
        f"{len(wrong)} of {len(ends)} pieces end inside a sentence: …{wrong[0][-40:]!r}"
    )


def test_pieces_end_where_a_paragraph_ends(tokenizer, raw):
    """A paragraph's end goes before a later sentence's end."""
    paragraph = "First sentence of it. 第二句话在这里。 A third, which ends it"
    text = "\n\n".join([paragraph] * 12)
    pieces = [raw.decode(ids[:-1].tolist()).strip() for ids in tokenizer.chunk(text, 36)]
    assert len(pieces) > 5
    wrong = [piece for piece in pieces if not piece.endswith("which ends it")]
    assert not wrong, f"{len(wrong)} of {len(pieces)} pieces end inside a paragraph: {wrong[0]!r}"


def test_a_text_without_borders_is_divided_at_tokens(tokenizer):
    """Where no sentence ends, every piece but the last is full."""
    lengths = [len(ids) for ids in tokenizer.chunk("word " * 500, 40)]
    assert set(lengths[:-1]) == {40}
    assert lengths[-1] <= 40
