"""Which texts share a forward."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from qwen3_embedding_integrations.core.batching import plan_batches

LENGTHS = st.lists(st.integers(1, 60), max_size=80)
BUDGETS = st.integers(1, 150)


@given(LENGTHS, BUDGETS)
def test_every_row_stands_in_exactly_one_batch(lengths, budget):
    """A plan holds each text once: none lost, none encoded twice."""
    rows = [int(row) for batch in plan_batches(lengths, budget) for row in batch]
    assert sorted(rows) == list(range(len(lengths)))


@given(LENGTHS, BUDGETS)
def test_no_batch_is_over_budget_but_a_single_long_text(lengths, budget):
    """A batch of two or more texts holds at most the budget's tokens."""
    for batch in plan_batches(lengths, budget):
        total = sum(lengths[row] for row in batch)
        assert len(batch) == 1 or total <= budget, f"{len(batch)} texts of {total} > {budget}"


@given(LENGTHS, BUDGETS)
def test_longest_texts_come_first(lengths, budget):
    """Lengths never grow along the plan, so neighbours in length share a forward."""
    planned = [lengths[row] for batch in plan_batches(lengths, budget) for row in batch]
    assert planned == sorted(lengths, reverse=True)


@given(LENGTHS, BUDGETS)
def test_a_batch_ends_only_when_the_next_text_does_not_fit(lengths, budget):
    """No batch could have taken the first text of the next one."""
    plan = plan_batches(lengths, budget)
    for batch, following in pairwise(plan):
        total = sum(lengths[row] for row in batch) + lengths[following[0]]
        assert total > budget, f"{total} tokens would have fitted in {budget}"


def test_no_texts_need_no_batch():
    """An empty call plans no forward."""
    assert plan_batches([], 100) == []
