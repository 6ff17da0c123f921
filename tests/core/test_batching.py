"""Which texts share a forward."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qwen3_embedding_integrations.core.batching import pack_groups, plan_batches

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


@given(st.lists(st.tuples(LENGTHS, st.integers(0, 20)), max_size=5), BUDGETS)
def test_groups_keep_their_prefix_and_their_rows(groups, budget):
    """Each sequence of each group is packed once, behind its own prefix, its row told."""
    sequences, prefixes, given_groups = [], [], []
    for i, (lengths, num_prefix) in enumerate(groups):
        prefix_ids = tuple(range(num_prefix))
        ids = [np.full(n, 100 * i + j, np.int32) for j, n in enumerate(lengths)]
        given_groups.append((ids, prefix_ids))
        sequences += ids
        prefixes += [prefix_ids] * len(ids)
    seen = []
    for batch, rows in pack_groups(given_groups, budget):
        assert len(batch) == 1 or batch.num_keys <= budget
        for row, one in zip(rows, np.split(batch.input_ids, batch.cu_seqlens[1:-1]), strict=True):
            assert one.tolist() == sequences[row].tolist()
            assert batch.prefix_ids == prefixes[row]
            seen.append(int(row))
    assert sorted(seen) == list(range(len(sequences)))
