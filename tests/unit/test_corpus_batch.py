from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwater.corpus import collate, plan_batches
from headwater.types import Example, UsageError

LENGTHS = st.lists(st.integers(1, 300), max_size=60)


@given(lengths=LENGTHS, budget=st.integers(1, 2000), max_rows=st.none() | st.integers(1, 8))
def test_a_plan_keeps_its_promises(lengths, budget, max_rows):
    batches = plan_batches(lengths, token_budget=budget, max_rows=max_rows)
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        cells = len(batch) * max(lengths[i] for i in batch)
        assert len(batch) == 1 or cells <= budget
        assert cells - sum(lengths[i] for i in batch) <= 0.1 * cells
        assert max_rows is None or len(batch) <= max_rows
    flat = [(-lengths[i], i) for batch in batches for i in batch]
    assert flat == sorted(flat)


@given(lengths=LENGTHS.filter(bool), budget=st.integers(1, 2000))
def test_a_batch_ends_only_where_the_next_row_would_break_a_promise(lengths, budget):
    batches = plan_batches(lengths, token_budget=budget)
    for batch, following in pairwise(batches):
        more = [lengths[i] for i in [*batch, following[0]]]
        cells = len(more) * max(more)
        assert cells > budget or cells - sum(more) > 0.1 * cells


def test_the_rows_of_a_log_normal_corpus_fill_their_batches():
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(80), 0.6, 2000), 16, 256).astype(int)
    batches = plan_batches(lengths, token_budget=2048)
    padding = 1 - lengths.sum() / sum(len(batch) * max(lengths[batch]) for batch in batches)
    assert padding < 0.02
    assert len(batches) < 1.15 * lengths.sum() / 2048


def test_a_batch_may_fill_its_budget_exactly():
    assert plan_batches([10, 10, 10], token_budget=20) == [[0, 1], [2]]


def test_budgets_below_one_are_refused():
    with pytest.raises(UsageError, match="token_budget 0"):
        plan_batches([1], token_budget=0)
    with pytest.raises(UsageError, match="max_rows 0"):
        plan_batches([1], token_budget=1, max_rows=0)


def example(tokens, targets, **fields):
    mask = np.isin(np.arange(len(tokens)), targets)
    return Example(id=str(tokens), tokens=np.array(tokens), loss_mask=mask, **fields)


def test_collate_pads_on_the_right():
    batch = collate([example([5, 6, 7], [2]), example([8], []), example([1, 2], [1])], pad_id=9)
    torch.testing.assert_close(batch.tokens_BT, torch.tensor([[5, 6, 7], [8, 9, 9], [1, 2, 9]]))
    torch.testing.assert_close(batch.loss_mask_BT, torch.tensor([[False, False, True], [False] * 3, [False, True, False]]))
    torch.testing.assert_close(batch.lengths_B, torch.tensor([3, 1, 2]))
    torch.testing.assert_close(batch.last_prompt_B, torch.tensor([1, 0, 0]))
    assert batch.ids == ("[5, 6, 7]", "[8]", "[1, 2]")
    assert batch.labels_B is None
    assert batch.alternative is None


def test_collate_takes_labels_and_alternatives_that_all_rows_have():
    other = example([3, 3, 3], [1, 2])
    batch = collate([example([1, 2], [1], label=1, alternative=other), example([1], [], label=0, alternative=other)], pad_id=0)
    assert batch.labels_B is not None
    assert batch.alternative is not None
    torch.testing.assert_close(batch.labels_B, torch.tensor([1, 0]))
    assert batch.alternative.tokens_BT.shape == (2, 3)
    assert collate([example([1, 2], [1], alternative=other), example([1], [])], pad_id=0).alternative is None
    with pytest.raises(UsageError, match="1 of 2 rows"):
        collate([example([1, 2], [1], label=1), example([1], [])], pad_id=0)
