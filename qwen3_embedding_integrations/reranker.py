"""Qwen3Reranker: a query and documents to scores, sync and async."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .core.config import RerankerConfig, check_instruction, check_range
from .errors import InputError
from .handle import Handle
from .waiting import aresults_of, results_of, submit_in_thread

if TYPE_CHECKING:
    from .core.calls import Call
    from .core.inputs import InputRules
    from .core.loaded import LoadedModel
    from .core.pairs import PairInputs, PairTokenizer

Scores = npt.NDArray[np.float32]


class RankedDocument(NamedTuple):
    """A document and what a reranker thinks of it."""

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  its place in what was passed
    score: float  # in [0, 1]
    document: str


class RerankerStats(NamedTuple):
    """What a reranker has done; `computed`, forwards and retries count the whole engine."""

    pairs: int
    tokens: int  # as if each pair had been read by itself
    computed: int  # tokens that went through the model: what pairs share went once
    truncated: int
    forwards: int
    retries: int


class Scored(NamedTuple):
    """The scores of a call, (N,) float32, and what was read for them."""

    scores: Scores
    num_tokens: int  # as if each pair had been read by itself
    num_truncated: int  # documents


class Qwen3Reranker(Handle[RerankerConfig]):
    """Qwen3-Reranker: how well each document answers a query, from 0 to 1.

    A score is the probability of "yes" beside "no", as in the model card's Transformers usage, for
    the same prompt to the byte; special tokens in a text are read as text. What documents of a
    query share is computed once. Loads the model; when the constructor returns, it is ready. Every
    method may be called from any thread or event loop. Raises ConfigError, ModelLoadError.

        with Qwen3Reranker() as reranker:
            best = reranker.rerank(query, documents, top_n=10)
    """

    def __init__(self, config: RerankerConfig | str | None = None) -> None:
        from .core.loading import load_reranker

        config = RerankerConfig.of(config)
        self._own(config, load_reranker(config.engine))

    def _init(self, config: RerankerConfig, loaded: LoadedModel[PairTokenizer]) -> None:
        from .core.inputs import InputRules

        super()._init(config, loaded)
        self._rules = InputRules(self.max_length, config.on_too_long, "embed")
        self._num_pairs = self._num_tokens = self._num_truncated = 0

    def score(
        self,
        query: str,
        documents: Sequence[str],
        *,
        instruction: str | None = None,
        show_progress: bool | None = None,
    ) -> Scores:
        """Return one score per document, (N,) float32 in [0, 1], in the order given.

        A document is right for the query as `instruction`, else the config's, says. A document
        too long for `max_length` is cut, with a warning; the query and the frame never are.
        `show_progress=None` draws a bar on a terminal when the call takes long. Raises InputError
        for a text that cannot be read, EngineError when the device fails.
        """
        return _scores(self._submit_query(query, documents, instruction), show_progress)

    async def ascore(
        self, query: str, documents: Sequence[str], *, instruction: str | None = None
    ) -> Scores:
        """Return what `score` returns, without blocking the event loop."""
        job = await submit_in_thread(self._submit_query, query, documents, instruction)
        return job.inputs.restore(await aresults_of(job))

    async def ascore_counted(
        self,
        query: str,
        documents: Sequence[str],
        *,
        instruction: str | None = None,
        on_too_long: Literal["truncate", "error"] | None = None,
        max_tokens: int | None = None,
    ) -> Scored:
        """Return what `score` returns, with what was read for it.

        `on_too_long` stands for the config's; more than `max_tokens` in all are an InputError.
        """
        rules = self._rules.with_too_long(on_too_long, ("truncate", "error"))
        arguments = query, documents, instruction, rules, max_tokens
        job = await submit_in_thread(self._submit_query, *arguments)
        scores = job.inputs.restore(await aresults_of(job))
        return Scored(scores, job.inputs.num_tokens, job.inputs.num_truncated)

    def score_pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        instruction: str | None = None,
        show_progress: bool | None = None,
    ) -> Scores:
        """Return one score per (query, document), (N,) float32 in [0, 1], in the order given.

        Many queries, each with its documents, in any order: all go to the device as one call.
        Raises as `score`.
        """
        return _scores(self._submit_pairs(pairs, instruction), show_progress)

    async def ascore_pairs(
        self, pairs: Sequence[tuple[str, str]], *, instruction: str | None = None
    ) -> Scores:
        """Return what `score_pairs` returns, without blocking the event loop."""
        job = await submit_in_thread(self._submit_pairs, pairs, instruction)
        return job.inputs.restore(await aresults_of(job))

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
    ) -> list[RankedDocument]:
        """Return the `top_n` best documents, or all, best first; equal scores in the order given.

        Raises as `score`, and ConfigError for a `top_n` below 1.
        """
        check_top_n(top_n)
        scores = self.score(query, documents, instruction=instruction)
        return _ranked(documents, scores, top_n)

    async def arerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
    ) -> list[RankedDocument]:
        """Return what `rerank` returns, without blocking the event loop."""
        check_top_n(top_n)
        scores = await self.ascore(query, documents, instruction=instruction)
        return _ranked(documents, scores, top_n)

    def stats(self) -> RerankerStats:
        """Return the counts of pairs, tokens, truncated documents, forwards and retries so far."""
        loaded = self._loaded
        with self._counts_lock:
            pairs, tokens, truncated = self._num_pairs, self._num_tokens, self._num_truncated
        return RerankerStats(
            pairs,
            tokens,
            sum(one.num_tokens for one in loaded.computed),
            truncated,
            loaded.engine.num_forwards,
            loaded.engine.num_retries,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        from .sharing import shared_reranker

        return shared_reranker, (self.config,)  # weights do not travel: the other side loads them

    def __repr__(self) -> str:
        return f"Qwen3Reranker({self.config.model!r}, {self._loaded.config.device!r})"

    def _submit_query(
        self,
        query: str,
        documents: Sequence[str],
        instruction: str | None,
        rules: InputRules | None = None,
        max_tokens: int | None = None,
    ) -> _Job:
        from .core.pairs import check_documents, check_query

        if not isinstance(query, str):
            raise TypeError(
                f"query is a {type(query).__name__}; pass one str, and many queries to score_pairs"
            )
        check_query(query)
        check_documents(documents)
        query_of = np.zeros(len(documents), np.intp)
        return self._submit([query], query_of, documents, instruction, rules, max_tokens)

    def _submit_pairs(self, pairs: Sequence[tuple[str, str]], instruction: str | None) -> _Job:
        from .core.pairs import check_documents, check_query

        for index, pair in enumerate(pairs):
            if isinstance(pair, str) or len(pair) != 2:
                raise InputError(
                    f"pairs[{index}] is {pair!r:.80}; every element must be (query, document)",
                    index=index,
                )
            check_query(pair[0], f"pairs[{index}][0]", index)
        documents = [document for _, document in pairs]
        check_documents(documents)
        numbers: dict[str, int] = {}
        query_of = [numbers.setdefault(query, len(numbers)) for query, _ in pairs]
        return self._submit([*numbers], np.array(query_of, np.intp), documents, instruction)

    def _submit(
        self,
        queries: list[str],
        query_of: npt.NDArray[np.intp],
        documents: Sequence[str],
        instruction: str | None,
        rules: InputRules | None = None,
        max_tokens: int | None = None,
    ) -> _Job:
        from .core.pairs import prepare_pairs

        if instruction is None:
            instruction = self.config.instruction
        else:
            check_instruction(instruction, has_bare_form=False)
        inputs = prepare_pairs(
            self._loaded.tokenizer,
            queries,
            query_of,
            documents,
            instruction=instruction,
            rules=rules or self._rules,
        )
        if max_tokens is not None and inputs.num_tokens > max_tokens:
            raise InputError(
                f"the documents have {inputs.num_tokens} tokens with query and frame, "
                f"{max_tokens} are allowed in one call; divide them among several"
            )
        call = self._loaded.engine.submit_groups(inputs.groups)
        with self._counts_lock:
            self._num_pairs += len(documents)
            self._num_tokens += inputs.num_tokens
            self._num_truncated += inputs.num_truncated
        return _Job(inputs, call)


class _Job(NamedTuple):
    """A call under way and how its results become the answer."""

    inputs: PairInputs
    call: Call


def check_top_n(top_n: int | None) -> None:
    """Raise ConfigError unless `top_n` is None or an int from 1."""
    if top_n is not None:
        check_range("top_n", top_n, 1, 1_000_000)


def _scores(job: _Job, show_progress: bool | None) -> Scores:
    return job.inputs.restore(results_of(job, show_progress))


def _ranked(documents: Sequence[str], scores: Scores, top_n: int | None) -> list[RankedDocument]:
    best_first: list[int] = np.argsort(-scores, kind="stable")[:top_n].tolist()
    return [RankedDocument(i, float(scores[i]), documents[i]) for i in best_first]
