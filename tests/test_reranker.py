"""Qwen3Reranker: the official scores, whatever shares a forward, and nothing cut but documents."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import os
import pickle
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen3_embedding_integrations import (
    ConfigError,
    EngineClosedError,
    InputError,
    ModelLoadError,
    Qwen3Reranker,
    RankedDocument,
    RerankerConfig,
    TextTooLongError,
    quantize_model,
    shared_encoder,
    shared_reranker,
)
from qwen3_embedding_integrations.core.linear import has_packed_products
from qwen3_embedding_integrations.core.prompts import WEB_SEARCH
from tests.checkpoints import SHAPE_06B, SHAPE_SMALL, random_tensors, write_reranker
from tests.oracle import GOLDEN, reference_scores, reranker_ids
from tests.texts import mixed_text

ATOL = 1e-4  # what the official path in batches with padding is from itself, and what is asked
EXACT = 2e-6  # what sharing and packing may move a float32 score
QUERY = "What is the capital of China?"
MINI = SHAPE_SMALL | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
ODD_QUERIES = [
    QUERY,
    "two\n\nlines\n",
    "<Document>: not one\n<Query>: nor this",
    "🚀👩‍👩‍👧‍👦 :",
    "合同在什么情况下无效？",
    " \u0301",
]


def documents_of_all_lengths(seed: int, num_documents: int) -> list[str]:
    rng = random.Random(seed)
    return ["", *(mixed_text(rng, rng.randint(1, 900)) for _ in range(num_documents - 1))]


def assert_close(ours: np.ndarray, expected: np.ndarray, atol: float) -> None:
    assert ours.shape == expected.shape
    assert ours.dtype == np.float32
    assert ((ours >= 0) & (ours <= 1)).all()
    difference = float(np.abs(ours - expected).max())
    assert difference <= atol, f"max difference {difference:.2e}, allowed {atol:.0e}"


@pytest.fixture
def mini(tmp_path: Path) -> Path:
    """Write a reranker small enough to be written for each test."""
    return write_reranker(tmp_path / "mini", MINI)


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return documents_of_all_lengths(31, 24)


@pytest.fixture(scope="module")
def scores(reranker: Qwen3Reranker, documents: list[str]) -> np.ndarray:
    return reranker.score(QUERY, documents)


# The scores


@pytest.mark.parametrize("query", ODD_QUERIES, ids=repr)
def test_scores_are_the_official_ones(reranker, reranker_checkpoint, documents, query):
    """Scores of a query equal the card's: AutoModelForCausalLM, padded on the left, to 1e-4."""
    pairs = [(query, document) for document in documents]
    expected = reference_scores(reranker_checkpoint, pairs, WEB_SEARCH)
    assert expected.std() > 0.02, "the scores must differ, or any order would pass"
    assert_close(reranker.score(query, documents), expected, ATOL)


def test_an_untied_output_layer_is_read(tmp_path):
    """With an output layer of its own, as the 8B has, scores are the official ones."""
    folder = write_reranker(tmp_path / "untied", MINI, is_tied=False)
    documents = documents_of_all_lengths(32, 8)
    expected = reference_scores(folder, [(QUERY, one) for one in documents], WEB_SEARCH)
    with Qwen3Reranker(RerankerConfig(model=str(folder), dtype="float32")) as reranker:
        assert_close(reranker.score(QUERY, documents), expected, ATOL)


def test_an_instruction_changes_the_scores_to_the_official_ones(reranker, reranker_checkpoint):
    """An instruction given with the call, in any language, is read in the default's place."""
    documents = documents_of_all_lengths(33, 6)
    instruction = "判断文件是否为该案件适用的法律条文。"
    pairs = [(QUERY, document) for document in documents]
    expected = reference_scores(reranker_checkpoint, pairs, instruction)
    ours = reranker.score(QUERY, documents, instruction=instruction)
    assert_close(ours, expected, ATOL)
    assert np.abs(ours - reranker.score(QUERY, documents)).max() > 0.01
    config = RerankerConfig(
        model=str(reranker_checkpoint), dtype="float32", instruction=instruction
    )
    with Qwen3Reranker(config) as other:
        assert_close(other.score(QUERY, documents), expected, ATOL)


def test_true_shape(tmp_path_factory):
    """At the 0.6B model's true widths, in four layers, scores are the official ones to 1e-4."""
    shape = SHAPE_06B | {"num_hidden_layers": 4}
    folder = write_reranker(tmp_path_factory.mktemp("shape_06b") / "reranker", shape)
    try:
        rng = random.Random(34)
        documents = [mixed_text(rng, n) for n in (1, 20, 60, 240)]
        pairs = [(QUERY, document) for document in documents]
        expected = reference_scores(folder, pairs, WEB_SEARCH)
        assert expected.std() > 0.02, expected
        gc.collect()
        with Qwen3Reranker(RerankerConfig(model=str(folder), dtype="float32")) as reranker:
            assert_close(reranker.score(QUERY, documents), expected, ATOL)
            assert_close(reranker.score(QUERY, documents[-1:]), expected[-1:], ATOL)
    finally:
        shutil.rmtree(folder)


@pytest.mark.reranker_weights
def test_published_scores():
    """The real weights give the published scores: computed in 16 bits, so to a few thousandths."""
    model = os.environ["QWEN3_RERANKER_WEIGHTS"]
    with Qwen3Reranker(RerankerConfig(model=model, dtype="float32")) as reranker:
        for case, atol in ((GOLDEN["scored"], 5e-3), (GOLDEN["scored_in_8_bits"], 2e-2)):
            ours = reranker.score(case["query"], case["documents"])
            assert_close(ours, np.array(case["scores"], np.float32), atol)


# What is shared


def test_the_shared_prefix_is_exact(reranker, documents, scores):
    """Scores with the query's part computed once are those of whole prompts, nothing shared."""
    loaded = reranker._loaded
    whole = loaded.tokenizer.encode_alone(WEB_SEARCH, QUERY, documents)
    expected = loaded.engine.submit(whole).future.result()[:, 0]
    assert_close(scores, expected, EXACT)
    head = len(loaded.tokenizer.head(WEB_SEARCH))
    rests = [ids[head:] for ids in whole]
    behind_head = loaded.engine.submit(rests, loaded.tokenizer.head(WEB_SEARCH)).future.result()
    assert_close(behind_head[:, 0], expected, EXACT)


def test_alone_and_in_any_company(reranker, documents, scores):
    """A document's score is the same alone, shuffled, and among other queries' pairs."""
    alone = np.concatenate([reranker.score(QUERY, [document]) for document in documents])
    assert_close(alone, scores, EXACT)
    order = random.Random(35).sample(range(len(documents)), len(documents))
    shuffled = reranker.score(QUERY, [documents[i] for i in order])
    assert_close(shuffled, scores[order], EXACT)


@pytest.mark.parametrize("max_batch_tokens", [1, 300])
def test_any_budget_gives_the_same_scores(reranker_checkpoint, documents, scores, max_batch_tokens):
    """However many tokens share a forward, the scores are the same."""
    config = RerankerConfig(
        model=str(reranker_checkpoint), dtype="float32", max_batch_tokens=max_batch_tokens
    )
    with Qwen3Reranker(config) as other:
        assert_close(other.score(QUERY, documents), scores, EXACT)


def test_many_queries_in_one_call(reranker, reranker_checkpoint):
    """Pairs in any order, queries with one document and with many: each gets its own score."""
    rng = random.Random(36)
    pairs = [(query, mixed_text(rng, 80)) for query in ODD_QUERIES[:3] for _ in range(14)]
    pairs += [(f"query {i}", mixed_text(rng, 80)) for i in range(12)]
    rng.shuffle(pairs)
    ours = reranker.score_pairs(pairs)
    assert_close(ours, reference_scores(reranker_checkpoint, pairs, WEB_SEARCH), ATOL)
    one_by_one = [reranker.score(query, [document])[0] for query, document in pairs]
    assert_close(ours, np.array(one_by_one), EXACT)


def test_tokens_computed(mini):
    """100 documents of 100 tokens under a 150-token frame: the shared part goes through once.

    Of 25,000 tokens 150 + 10,000 must be computed at least, and the suffix, which comes after
    the document, 100 times. With documents of 50 tokens less than a third is left.
    """
    with Qwen3Reranker(RerankerConfig(model=str(mini), dtype="float32")) as reranker:
        tokenizer = reranker._loaded.tokenizer
        num_suffix = len(tokenizer.suffix_ids)
        query = "word" + " word" * (150 - num_suffix - len(tokenizer.head(WEB_SEARCH)) - 4)
        [ids] = tokenizer.encode_queries([query])
        num_shared = len(tokenizer.head(WEB_SEARCH)) + len(ids)
        assert num_shared + num_suffix == 150, num_shared
        for num_tokens, factor in ((100, 2.25), (50, 3.0)):
            before = reranker.stats()
            documents = [f"{i:03}" + " word" * (num_tokens - 4) for i in range(100)]
            assert {len(one) for one in tokenizer.encode_documents(documents)} == {num_tokens}
            reranker.score(query + " now" * (num_tokens == 50), documents)
            after = reranker.stats()
            unshared, computed = after.tokens - before.tokens, after.computed - before.computed
            extra = int(num_tokens == 50)  # " now", which makes it another query
            assert unshared == 100 * (150 + extra + num_tokens)
            assert computed == num_shared + extra + 100 * (num_tokens + num_suffix)
            assert unshared / computed >= factor, f"{unshared / computed:.2f} times fewer"


def test_a_query_asked_again_is_not_computed_again(reranker):
    """The next call with the same query finds its keys and values, whatever the documents."""
    query, rng = "How is glass made, and of what?", random.Random(37)
    documents = [mixed_text(rng, 50) for _ in range(40)]
    reranker.score(query, documents[:20])
    before = reranker.stats().computed
    reranker.score(query, documents[20:])
    own = reranker._loaded.tokenizer.encode_documents(documents[20:])
    num_suffix = len(reranker._loaded.tokenizer.suffix_ids)
    assert reranker.stats().computed - before == sum(map(len, own)) + 20 * num_suffix


# Too long


@pytest.mark.parametrize("max_length", [100, 128])
def test_the_document_is_cut_and_never_the_frame(
    reranker_checkpoint, documents, max_length, caplog
):
    """Long documents are cut as the official path cuts them, with a warning that names them."""
    config = RerankerConfig(model=str(reranker_checkpoint), dtype="float32", max_length=max_length)
    some = documents[:12]
    pairs = [(QUERY, document) for document in some]
    whole = reranker_ids(reranker_checkpoint, pairs, WEB_SEARCH)
    too_long = [i for i, ids in enumerate(whole) if len(ids) > max_length]
    assert 2 < len(too_long) < 12, too_long
    expected = reference_scores(reranker_checkpoint, pairs, WEB_SEARCH, max_length=max_length)
    with Qwen3Reranker(config) as reranker, caplog.at_level(logging.WARNING):
        assert_close(reranker.score(QUERY, some), expected, ATOL)
        assert reranker.stats().truncated == len(too_long)
        assert reranker.stats().tokens == sum(min(len(ids), max_length) for ids in whole)
    [record] = caplog.records
    message = record.getMessage()
    assert message.startswith(
        f"{len(too_long)} of 12 documents were cut to max_length={max_length}"
    )
    assert message.endswith("indices " + ", ".join(map(str, too_long)))


def test_too_long_can_be_an_error(reranker_checkpoint):
    """on_too_long="error" names index, tokens and limit; a pair of exactly the limit is read."""
    config = RerankerConfig(
        model=str(reranker_checkpoint), dtype="float32", max_length=100, on_too_long="error"
    )
    with Qwen3Reranker(config) as reranker:
        frame = len(reranker._loaded.tokenizer.encode_alone(WEB_SEARCH, QUERY, ["word"])[0])
        fits = "word" + " word" * (100 - frame)
        assert reranker.score(QUERY, [fits]).shape == (1,)
        with pytest.raises(
            TextTooLongError, match=r'text 1 has 101 .* is 100; .*="truncate"$'
        ) as e:
            reranker.score(QUERY, [fits, fits + " word"])
        assert (e.value.index, e.value.num_tokens) == (1, 101)


def test_a_query_that_leaves_no_room_is_an_error(reranker_checkpoint):
    """The query is never cut: one that fills max_length is refused with its tokens."""
    config = RerankerConfig(model=str(reranker_checkpoint), dtype="float32", max_length=100)
    with Qwen3Reranker(config) as reranker:
        with pytest.raises(InputError, match=r"takes \d+ tokens .* max_length is 100: no room"):
            reranker.score("word " * 60, ["a document"])
        assert reranker.score("word", ["a document"]).shape == (1,)


def test_a_max_length_beyond_the_model_is_an_error(mini):
    """What the model cannot read is refused when the reranker is made."""
    with pytest.raises(ConfigError, match=r"max_length is 50000, .* reads 40960"):
        Qwen3Reranker(RerankerConfig(model=str(mini), max_length=50000))


# Ranking


def test_rerank_is_best_first(reranker, documents, scores):
    """rerank returns index, score and document by falling score; top_n cuts the end off."""
    ranked = reranker.rerank(QUERY, documents)
    assert sorted(one.index for one in ranked) == [*range(len(documents))]
    assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)
    for one in ranked:
        assert isinstance(one, RankedDocument)
        assert (type(one.index), type(one.score)) == (int, float)
        assert one.document == documents[one.index]
        assert one.score == pytest.approx(scores[one.index], abs=EXACT)
    assert reranker.rerank(QUERY, documents, top_n=3) == ranked[:3]
    assert reranker.rerank(QUERY, documents, top_n=1000) == ranked
    index, score, document = ranked[0]
    assert (index, score, document) == (ranked[0].index, ranked[0].score, ranked[0].document)


def test_equal_documents_keep_their_order(reranker):
    """Documents with equal scores stay in the order given."""
    ranked = reranker.rerank(QUERY, ["same"] * 9)
    assert [one.index for one in ranked] == [*range(9)]


def test_no_documents(reranker):
    """An empty list has no scores and no ranking."""
    empty = reranker.score(QUERY, [])
    assert (empty.shape, empty.dtype) == ((0,), np.float32)
    assert reranker.score_pairs([]).shape == (0,)
    assert reranker.rerank(QUERY, []) == []


@pytest.mark.parametrize("top_n", [0, -1, 2.0, True, "3"])
def test_an_impossible_top_n_is_an_error(reranker, top_n):
    """top_n is an int from 1, or None."""
    with pytest.raises(ConfigError, match=r"top_n is"):
        reranker.rerank(QUERY, ["a"], top_n=top_n)


# Bad texts


@pytest.mark.parametrize(
    ("query", "documents", "error", "message"),
    [
        ("", ["a"], InputError, "query is blank"),
        (" \n", ["a"], InputError, "query is blank"),
        (["a"], ["a"], TypeError, "query is a list; pass one str.*score_pairs"),
        (None, ["a"], TypeError, "query is a NoneType"),
        ("\ud800", ["a"], InputError, r"query holds a lone surrogate \(U\+D800"),
        ("a", "a document", TypeError, r"documents is a str; pass a list: \[document\]"),
        ("a", {"a": 1}, TypeError, "documents is a dict"),
        ("a", ["a", None], InputError, r"documents\[1\] is None"),
        ("a", ["a", "\udfff"], InputError, r"documents\[1\] holds a lone surrogate"),
    ],
)
def test_bad_texts_are_refused(reranker, query, documents, error, message):
    """Each bad text has an error that names it, and nothing is computed."""
    before = reranker.stats()
    with pytest.raises(error, match=message):
        reranker.score(query, documents)
    with pytest.raises(error, match=message):
        asyncio.run(reranker.arerank(query, documents))
    assert reranker.stats() == before


def test_bad_pairs_are_refused(reranker):
    """A pair that is none, or holds a bad text, is named by its place."""
    good = (QUERY, "a document")
    for bad, message in (
        ("ab", r"pairs\[1\] is 'ab'; every element must be \(query, document\)"),
        (("a", "b", "c"), r"pairs\[1\]"),
        ((" ", "b"), r"pairs\[1\]\[0\] is blank"),
        (("a", 7), r"documents\[1\] is 7, a int"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            reranker.score_pairs([good, bad])
        assert caught.value.index == 1


def test_a_blank_instruction_is_refused(reranker):
    """A prompt without an instruction is none the model was trained on."""
    with pytest.raises(ConfigError, match=r"instruction is blank.*give a sentence$"):
        reranker.score(QUERY, ["a"], instruction=" ")


# Threads and coroutines


def test_threads_get_their_own_scores(reranker, documents):
    """Sixteen threads with queries of their own get what each would get alone."""
    queries = [f"{query} ({i})" for i in range(4) for query in ODD_QUERIES[:4]]
    some = documents[:10]
    expected = [reranker.score(query, some) for query in queries]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda query: reranker.score(query, some), queries))
    for ours, alone in zip(together, expected, strict=True):
        assert_close(ours, alone, EXACT)


async def test_awaiting_gives_the_same(reranker, documents, scores):
    """The awaitable twins, many at once, return what the plain methods return."""
    some, pairs = documents[:6], [(QUERY, one) for one in documents[:6]]
    answers = await asyncio.gather(
        *(reranker.ascore(QUERY, some) for _ in range(8)), reranker.ascore_pairs(pairs)
    )
    for ours in answers:
        assert_close(ours, scores[:6], EXACT)
    ranked = await reranker.arerank(QUERY, some, top_n=2)
    assert [one.index for one in ranked] == [*np.argsort(-scores[:6])[:2]]


async def test_a_cancelled_call_harms_no_other(reranker, documents, scores):
    """A caller who leaves takes back what has not run; the next is answered."""
    leaving = asyncio.create_task(reranker.ascore("left", documents * 4))
    await asyncio.sleep(0.01)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert_close(await reranker.ascore(QUERY, documents), scores, EXACT)


# Models


def test_an_embedding_model_is_no_reranker():
    """An embedding model is refused by its modules.json, with what loads it."""
    with pytest.raises(ModelLoadError, match=r"embedding model, not a reranker.*Qwen3Encoder"):
        Qwen3Reranker("tiny")


def test_an_embedding_model_without_modules_is_no_reranker(tmp_path, small_checkpoint):
    """Without a modules.json, its tokenizer tells: it appends a token to each text."""
    folder = shutil.copytree(small_checkpoint, tmp_path / "bare")
    (folder / "modules.json").unlink()
    with pytest.raises(ModelLoadError, match=r"appends a token to each text.*Qwen3Encoder"):
        Qwen3Reranker(str(folder))


def test_a_missing_output_layer_is_named(mini):
    """Without the output layer that config.json promises there is nothing to score with."""
    config = mini / "config.json"
    config.write_text(config.read_text().replace('embeddings": true', 'embeddings": false'))
    with pytest.raises(ModelLoadError, match=r"has no lm_head\.weight"):
        Qwen3Reranker(str(mini))


def test_sentence_transformers_files_tell_the_two_apart(mini):
    """A modules.json with LogitScore is a reranker's; any other module after it is refused."""
    modules = mini / "modules.json"
    prefix = "sentence_transformers.cross_encoder.modules.logit_score"
    modules.write_text(f'[{{"type": "a.Transformer"}}, {{"type": "{prefix}.LogitScore"}}]')
    with Qwen3Reranker(str(mini)) as reranker:
        assert reranker.score(QUERY, ["a"]).shape == (1,)
    with pytest.raises(ModelLoadError, match=r"is a reranker, not an embedding.*Qwen3Reranker"):
        shared_encoder(str(mini))
    modules.write_text('[{"type": "a.Transformer"}, {"type": "b.Dense"}]')
    with pytest.raises(ModelLoadError, match=r"modules\.json has Dense"):
        Qwen3Reranker(str(mini))


def test_another_architecture_is_refused(mini):
    """A sequence classifier is refused as no Qwen3 reranker, with its name."""
    config = mini / "config.json"
    config.write_text(config.read_text().replace("ForCausalLM", "ForSequenceClassification"))
    with pytest.raises(ModelLoadError, match=r"not a Qwen3 reranker.*SequenceClassification"):
        Qwen3Reranker(str(mini))


needs_int8 = pytest.mark.skipif(not has_packed_products(), reason="needs x86 and oneDNN")


@needs_int8
def test_int8_scores_are_near(reranker_checkpoint, documents, scores):
    """int8 weights move a score of random weights by little, and keep the order's gist."""
    config = RerankerConfig(model=str(reranker_checkpoint), quantization="int8")
    with Qwen3Reranker(config) as reranker:
        ours = reranker.score(QUERY, documents)
    assert np.abs(ours - scores).max() < 0.05, np.abs(ours - scores).max()
    assert np.corrcoef(ours, scores)[0, 1] > 0.99


@needs_int8
@pytest.mark.parametrize("is_tied", [True, False])
def test_a_quantized_folder_is_a_reranker(tmp_path, is_tied):
    """quantize writes a reranker's folder too, its own output layer included."""
    folder = write_reranker(tmp_path / "source", MINI, is_tied=is_tied)
    quantize_model(str(folder), tmp_path / "int8")
    documents = documents_of_all_lengths(38, 6)
    config = RerankerConfig(model=str(folder), quantization="int8")
    with Qwen3Reranker(config) as at_load, Qwen3Reranker(str(tmp_path / "int8")) as stored:
        assert_close(stored.score(QUERY, documents), at_load.score(QUERY, documents), EXACT)


def test_half_precision_weights_are_near(reranker_checkpoint, documents, scores):
    """bfloat16 weights, which the checkpoint has, are the same model."""
    config = RerankerConfig(model=str(reranker_checkpoint), dtype="bfloat16")
    with Qwen3Reranker(config) as reranker:
        assert np.abs(reranker.score(QUERY, documents) - scores).max() < 0.02


def test_nan_is_an_error(tmp_path):
    """NaN never comes out as a score."""
    from safetensors.torch import save_file

    from qwen3_embedding_integrations import NonFiniteOutputError

    folder = write_reranker(tmp_path / "nan", MINI)
    tensors = {f"model.{name}": one for name, one in random_tensors(MINI).items()}
    tensors["model.norm.weight"][:] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    config = RerankerConfig(model=str(folder), dtype="float32")
    with (
        Qwen3Reranker(config) as reranker,
        pytest.raises(NonFiniteOutputError, match=r"1 of 1 scores"),
    ):
        reranker.score(QUERY, ["a"])


# One copy per process


def test_rerankers_share_the_weights(mini):
    """Instruction and lengths ask for no second copy; the objects and their counts differ."""
    first = shared_reranker(RerankerConfig(model=str(mini), dtype="float32"))
    assert shared_reranker(RerankerConfig(model=str(mini), dtype="float32")) is first
    second = shared_reranker(
        RerankerConfig(model=str(mini), dtype="float32", max_length=200, instruction="Find laws")
    )
    assert second is not first
    first.score(QUERY, ["a", "b"])
    assert second.stats()[:2] == (0, 0)
    assert second.stats().forwards == first.stats().forwards == 1
    first.close()
    assert second.is_closed
    again = shared_reranker(RerankerConfig(model=str(mini), dtype="float32"))
    assert again is not first
    assert again.score(QUERY, ["a"]).shape == (1,)
    again.close()


def test_a_shared_encoder_is_never_a_shared_reranker(mini):
    """The same folder asked for both ways is refused the wrong way, whichever came first."""
    with pytest.raises(ModelLoadError, match=r"load it with Qwen3Reranker"):
        shared_encoder(str(mini))
    reranker = shared_reranker(str(mini))
    with pytest.raises(ModelLoadError, match=r"load it with Qwen3Reranker"):
        shared_encoder(str(mini))
    assert reranker.score(QUERY, ["a"]).shape == (1,)
    reranker.close()


def test_a_pickled_reranker_is_the_shared_one(mini):
    """Copies and pickles carry the options, not the weights."""
    reranker = shared_reranker(str(mini))
    assert pickle.loads(pickle.dumps(reranker)) is reranker
    assert copy.deepcopy(reranker) is copy.copy(reranker) is reranker
    assert "mini" in repr(reranker)
    reranker.close()


def test_a_closed_reranker_refuses(mini):
    """After close every call is an EngineClosedError; closing again is harmless."""
    with Qwen3Reranker(str(mini)) as reranker:
        assert not reranker.is_closed
    reranker.close()
    assert reranker.is_closed
    with pytest.raises(EngineClosedError):
        reranker.score(QUERY, ["a"])


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 63}, "max_length is 63; choose a number from 64"),
        ({"on_too_long": "chunk_mean"}, "on_too_long is 'chunk_mean'; choose one of 'truncate'"),
        ({"instruction": ""}, "instruction is blank"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"dimensions": 64}, "unknown option 'dimensions'"),
        ({"max_len": 64}, "did you mean 'max_length'"),
    ],
)
def test_impossible_options_are_errors(options, message):
    """A wrong name or value fails when the options are made, with what is allowed."""
    with pytest.raises(ConfigError, match=message):
        RerankerConfig.from_options(**options)


def test_a_config_survives_its_dict():
    """to_dict and from_options give an equal config; a name or nothing is a config too."""
    config = RerankerConfig(model="a/b", max_length=512, on_too_long="error", dtype="float32")
    assert RerankerConfig.from_options(**config.to_dict()) == config
    assert RerankerConfig.of(None).model == "Qwen/Qwen3-Reranker-0.6B"
    assert RerankerConfig.of("a/b") == RerankerConfig(model="a/b")
    with pytest.raises(ConfigError, match=r"give RerankerConfig\(...\) or a model's name"):
        RerankerConfig.of(7)
