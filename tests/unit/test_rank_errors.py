"""Standard errors of sketched scores, held against the spread over many draws of the sketch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from headwater.gradient.sketch import sides
from headwater.rank.errors import cosine_errors, dot_errors
from headwater.types import Block, Layout

SEEDS = 200
MIXED = (
    Block("matrix", (40, 30), (8, 6)),
    Block("tall", (50, 5), (12, 5)),  # the input side is kept whole
    Block("wide", (4, 60), (4, 12)),  # the output side is kept whole
    Block("vector", (90,), (25,)),
    Block("whole", (3, 4), (3, 4)),
)
SQUARE = (Block("one", (64, 48), (16, 16)), Block("two", (32, 64), (16, 16)))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def gradients(blocks: tuple[Block, ...], n: int, *, tokens: int, seed: int) -> dict[str, Tensor]:
    """[n, *shape] per block: a sum over tokens of g (x) a, as a layer's gradient is."""
    rng = torch.Generator().manual_seed(seed)

    def one(block: Block) -> Tensor:
        left, right = (torch.randn(n, tokens, size, generator=rng, dtype=torch.float64) for size in (*block.shape, 1)[:2])
        return (left.mT @ right).reshape(n, *block.shape)

    return {block.name: one(block) for block in blocks}


def pairs(blocks: tuple[Block, ...], *, tokens: int, alike: float, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two queries with three rows each; `alike` is how much of the query is in its rows."""
    queries, rows = gradients(blocks, 2, tokens=tokens, seed=seed), gradients(blocks, 6, tokens=tokens, seed=seed + 1)
    return queries, {name: (alike * queries[name].repeat_interleave(3, 0) + (1 - alike) * rows[name]) for name in rows}


def sketch(blocks: tuple[Block, ...], parts: dict[str, Tensor], *, seed: int) -> Tensor:
    """[n, D] as the gradient engine stores it."""
    stored = []
    for block in blocks:
        left, *right = sides(block, seed, dtype=torch.float64)
        part = parts[block.name]
        part = right[0].project(left.project(part.mT).mT) if right else left.project(part)
        stored.append(part.flatten(1))
    return torch.cat(stored, 1)


def simulate(blocks: tuple[Block, ...], queries: dict[str, Tensor], rows: dict[str, Tensor], kernel: str) -> tuple[Tensor, Tensor]:
    """([seeds, 2, 3] scores, [seeds, 2, 3] standard errors) over draws of the sketch."""
    layout = Layout(blocks)
    scores, errors = [], []
    for seed in range(SEEDS):
        queries_QD, rows_QKD = sketch(blocks, queries, seed=seed), sketch(blocks, rows, seed=seed).unflatten(0, (2, 3))
        products_QK = torch.einsum("qd,qkd->qk", queries_QD, rows_QKD)
        if kernel == "dot":
            scores.append(-products_QK / 50)
            errors.append(dot_errors(layout, queries_QD, rows_QKD, n_rows=50))
        else:
            scores.append(-products_QK / queries_QD.norm(dim=1, keepdim=True) / rows_QKD.norm(dim=2))
            errors.append(cosine_errors(layout, queries_QD, rows_QKD))
    return torch.stack(scores), torch.stack(errors)


@pytest.mark.parametrize("kernel", ["dot", "cosine"])
@pytest.mark.parametrize("alike", [0.0, 0.3, 0.7])
@pytest.mark.parametrize(("blocks", "tokens"), [(MIXED, 5), (MIXED, 20), (SQUARE, 50)], ids=["mixed-5", "mixed-20", "square-50"])
def test_the_mean_estimated_error_is_the_spread_over_draws(blocks: tuple[Block, ...], tokens: int, alike: float, kernel: str) -> None:
    """Root mean estimated variance over empirical spread, pooled over pairs: within 15 % (200 draws leave about 4 %)."""
    scores, errors = simulate(blocks, *pairs(blocks, tokens=tokens, alike=alike), kernel)
    ratio = (errors.square().mean() / scores.var(0).mean()).sqrt().item()
    assert 0.85 < ratio < 1.15, f"estimated error over spread: {ratio:.3f}"


@pytest.mark.parametrize("alike", [0.0, 0.7])
def test_the_error_that_is_shown_is_the_spread_of_that_score(alike: float) -> None:
    """Mean reported error over empirical standard deviation, of each pair by itself: within 15 % (200 draws leave 5 %)."""
    scores, errors = simulate(SQUARE, *pairs(SQUARE, tokens=50, alike=alike), "dot")
    ratios = errors.mean(0) / scores.std(0)
    assert ((ratios > 0.85) & (ratios < 1.15)).all(), ratios


@pytest.mark.parametrize("block", MIXED[1:4], ids=lambda block: block.name)
def test_blocks_that_are_drawn_on_one_side(block: Block) -> None:
    """By themselves, since a block drawn on both sides would drown them; for pairs where the wrong side would be 34 % too wide."""
    scores, errors = simulate((block,), *pairs((block,), tokens=2, alike=0.7), "dot")
    ratio = (errors.square().mean() / scores.var(0).mean()).sqrt().item()
    assert 0.85 < ratio < 1.15, f"estimated error over spread: {ratio:.3f}"


def test_a_small_score_and_a_large_one_are_told_apart() -> None:
    """Each pair has its own error: one size for all would fail where scores differ in size."""
    queries, rows = pairs(SQUARE, tokens=10, alike=0.0)
    rows = {name: part * torch.tensor([1.0, 10.0, 0.1] * 2).reshape(6, 1, 1) for name, part in rows.items()}
    scores, errors = simulate(SQUARE, queries, rows, "dot")
    ratios = (errors.square().mean(0) / scores.var(0)).sqrt()
    assert ((ratios > 0.75) & (ratios < 1.25)).all(), ratios


def test_intervals_cover() -> None:
    """The true score lies within two errors for about 95 % of draws."""
    queries, rows = pairs(SQUARE, tokens=20, alike=0.3)
    scores, errors = simulate(SQUARE, queries, rows, "dot")
    truth = -sum(torch.einsum("qoi,qkoi->qk", queries[b.name], rows[b.name].unflatten(0, (2, 3))) for b in SQUARE) / 50
    assert 0.90 < ((scores - truth).abs() < 2 * errors).double().mean() < 0.99


def test_leaving_out_the_interaction_would_show() -> None:
    """The check above has teeth: variances of row and column means alone count the interaction twice."""
    queries, rows = pairs(SQUARE, tokens=10, alike=0.0)
    layout = Layout(SQUARE)
    naive, scores = [], []
    for seed in range(SEEDS):
        queries_QD, rows_QKD = sketch(SQUARE, queries, seed=seed), sketch(SQUARE, rows, seed=seed).unflatten(0, (2, 3))
        parts = [q.unsqueeze(1) * n * 256 for q, n in zip(layout.split(queries_QD).values(), layout.split(rows_QKD).values(), strict=True)]
        naive.append(sum(x.mean(-1).var(-1) / 16 + x.mean(-2).var(-1) / 16 for x in parts))
        scores.append(torch.einsum("qd,qkd->qk", queries_QD, rows_QKD))
    assert (torch.stack(naive).mean() / torch.stack(scores).var(0).mean()).sqrt() > 1.15


@pytest.mark.parametrize("errors", [lambda *args: dot_errors(*args, n_rows=3), cosine_errors], ids=["dot", "cosine"])
def test_what_is_kept_whole_is_exact(errors: Callable[..., Tensor]) -> None:
    layout = Layout((Block("w", (3, 4), (3, 4)), Block("b", (5,), (5,))))
    found = errors(layout, torch.randn(2, 17), torch.randn(2, 3, 17))
    torch.testing.assert_close(found, torch.zeros(2, 3))


def test_a_row_that_is_the_query_has_cosine_one_in_every_draw() -> None:
    queries_QD = sketch(SQUARE, gradients(SQUARE, 2, tokens=5, seed=0), seed=0)
    torch.testing.assert_close(cosine_errors(Layout(SQUARE), queries_QD, 3 * queries_QD[:, None]), torch.zeros(2, 1), atol=1e-7, rtol=0)


def test_zeros_have_no_error_and_nan_stays_nan() -> None:
    layout, queries_QD = Layout(SQUARE), torch.randn(1, 512)
    rows_QKD = torch.stack([torch.zeros(512), torch.full((512,), torch.nan)])[None]
    for found in (dot_errors(layout, queries_QD, rows_QKD, n_rows=1), cosine_errors(layout, queries_QD, rows_QKD)):
        assert found[0, 0] == 0
        assert found[0, 1].isnan()


def test_a_sketched_score_never_claims_to_be_exact() -> None:
    """Numbers for which the unbiased estimate is negative: an interaction and nothing else."""
    layout = Layout((Block("w", (30, 20), (3, 3)),))
    checkered = torch.eye(3) - 0.3
    errors_QK = dot_errors(layout, torch.ones(1, 9), checkered.reshape(1, 1, 9) + 1e-3 * torch.arange(9.0), n_rows=1)
    assert (errors_QK > 0).all()


@pytest.mark.parametrize("stored", [(1, 4), (4, 1), (1, 1)])
def test_one_draw_has_no_spread(stored: tuple[int, int]) -> None:
    layout = Layout((Block("w", (30, 20), stored),))
    assert dot_errors(layout, torch.randn(1, layout.size), torch.randn(1, 2, layout.size), n_rows=1).isnan().all()


def test_scale_and_batch() -> None:
    """Errors scale with the scores, and a pair's error does not depend on its company."""
    layout, queries_QD, rows_QKD = Layout(SQUARE), torch.randn(3, 512), torch.randn(3, 4, 512)
    errors_QK = dot_errors(layout, queries_QD, rows_QKD, n_rows=10)
    torch.testing.assert_close(dot_errors(layout, 3 * queries_QD, rows_QKD, n_rows=20), 1.5 * errors_QK)
    torch.testing.assert_close(dot_errors(layout, queries_QD[1:2], rows_QKD[1:2, 2:3], n_rows=10), errors_QK[1:2, 2:3])
    torch.testing.assert_close(cosine_errors(layout, 3 * queries_QD, 5 * rows_QKD), cosine_errors(layout, queries_QD, rows_QKD))
