"""The sketch benchmark on a model of one layer: what is kept whole agrees with itself, and error bars of the wrong size are found out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import sketch
from benchmarks.indexing import model
from benchmarks.workload import structured_rows, trained_model
from transformers import LlamaConfig, LlamaForCausalLM

WHOLE = sketch.Sketch(None, "float32")
SKETCHES = (*sketch.COVERED, WHOLE)


@pytest.fixture
def work() -> sketch.Workload:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=4096, hidden_size=80, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0)
    return sketch.Workload.make(LlamaForCausalLM(config), structured_rows(16), structured_rows(3, seed=1))


def test_agreement_and_coverage(work: sketch.Workload) -> None:
    found = sketch.measure(work, SKETCHES)
    small, whole = found["dot_spearman"]
    assert whole.startswith("whole/float32")
    assert found["dot_spearman"][whole] > 0.99 > found["dot_spearman"][small] > 0.3
    assert found["ekfac_stored_spearman"][whole] > 0.8 > found["ekfac_stored_spearman"][small] > 0.2
    assert {name: len(shares) for name, shares in found["coverage"].items()} == {small: 2}
    assert min(found["coverage"][small]) > 0.85


def test_errors_of_half_the_size_cover_less(work: sketch.Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    index, queries = work.live()
    dot_QN = index.products("gradient_whole", queries.take("gradient_whole", range(3))).double().numpy() / -len(index)
    true_size: Callable[..., Any] = sketch.dot_errors
    with work.index(sketch.COVERED[0], 0) as (stored, asked):
        scores_QN = sketch.GradDot().score({}, stored, asked).values_QN
        covered = sketch.coverage(stored, asked, scores_QN, dot_QN)
        monkeypatch.setattr(sketch, "dot_errors", lambda *args, **options: true_size(*args, **options) / 2)
        assert sketch.coverage(stored, asked, scores_QN, dot_QN) < 0.85 < covered


def test_the_effective_dimension_of_white_noise_is_its_size() -> None:
    """Two independent blocks of 300 white numbers: the product of two such vectors is as large as its projection's error at 600 numbers."""
    rng = np.random.default_rng(0)
    h_QD, g_ND = rng.normal(size=(20, 600)), rng.normal(size=(4000, 600))
    squares_QB, squares_NB = (torch.from_numpy(np.square(x).reshape(-1, 2, 300).sum(2)) for x in (h_QD, g_ND))
    dimension_Q = sketch.effective_dimension(squares_QB, squares_NB, h_QD @ g_ND.T)
    np.testing.assert_allclose(dimension_Q, 600, rtol=0.1)
    np.testing.assert_allclose(sketch.bound(dimension_Q, 600), 0.5**0.5, rtol=0.02)


def test_the_language_is_drawn_by_its_seed_and_has_successors() -> None:
    rows, others = structured_rows(60), structured_rows(60, seed=1)
    assert all((row.tokens == again.tokens).all() for row, again in zip(rows, structured_rows(60), strict=True))
    assert any(row.n_tokens != other.n_tokens for row, other in zip(rows, others, strict=True))
    seen = {pair for row in others for pair in zip(row.tokens[:-1].tolist(), row.tokens[1:].tolist(), strict=True)}
    again = [pair in seen for row in rows for pair in zip(row.tokens[:-1].tolist(), row.tokens[1:].tolist(), strict=True)]
    assert np.mean(again) > 0.2, "random pairs of 4,094 tokens would recur once in thousands"


def test_training_moves_the_weights_and_can_be_repeated() -> None:
    one, two = (trained_model(steps=2, batch=2, length=16) for _ in range(2))
    for name, weight in one.state_dict().items():
        torch.testing.assert_close(weight, two.state_dict()[name], rtol=0, atol=0)
    assert not torch.equal(one.get_parameter("lm_head.weight"), model().get_parameter("lm_head.weight"))
