"""The sketch: the same everywhere, unbiased, and no block's map depends on the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.gradient.sketch import SketchSpec, sides, signs
from headwater.types import Block, Factors


def test_the_signs_are_pinned() -> None:
    """Stored indexes live on these bits: another stream would make old rows and new queries strangers."""
    got = (signs(4, 16, seed=0, name="layers.0.q_proj.weight", side=0) > 0).int()
    rows = ["".join(map(str, row)) for row in got.tolist()]
    assert rows == PINNED


PINNED = ["0111011010011110", "1000010100011001", "1100111000100111", "1111011001000100"]


def test_signs_have_variance_one_over_k_and_differ_by_seed_side_and_name() -> None:
    base = signs(8, 1000, seed=0, name="w", side=0)
    torch.testing.assert_close(base.abs(), torch.full_like(base, 8**-0.5))
    assert abs(float((base > 0).double().mean()) - 0.5) < 0.02
    for other in (
        signs(8, 1000, seed=1, name="w", side=0),
        signs(8, 1000, seed=0, name="w", side=1),
        signs(8, 1000, seed=0, name="v", side=0),
    ):
        assert abs(float((base * other).sum() / 1000)) < 0.2


def test_inner_products_are_unbiased() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (Factors(torch.randn(1, 6, 40, generator=generator), torch.randn(1, 6, 30, generator=generator)) for _ in range(2))
    exact = float((one.dense() * other.dense()).sum())
    block = SketchSpec(rank=4, whole_below=0).block("w", (30, 40))
    estimates = []
    for seed in range(600):
        left, right = (side.matrix_KX for side in sides(block, seed, dtype=torch.float32))
        estimates.append(float((one.map(left, right).dense() * other.map(left, right).dense()).sum()))
    error = np.std(estimates) / len(estimates) ** 0.5
    assert abs(np.mean(estimates) - exact) < 3 * error
    assert error > 0


@pytest.mark.parametrize(
    ("shape", "stored"),
    [((64, 64), (64, 64)), ((65, 64), (16, 16)), ((4, 5000), (4, 16)), ((5000,), (256,)), ((4096,), (4096,))],
)
def test_what_is_kept_of_a_block(shape: tuple[int, ...], stored: tuple[int, ...]) -> None:
    assert SketchSpec(rank=16, whole_below=4096).block("w", shape) == Block("w", shape, stored)


def test_rank_none_keeps_everything() -> None:
    assert SketchSpec(rank=None).block("w", (500, 700)).stored == (500, 700)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 5))
def test_one_hot_and_part_are_special_cases_of_project(k: int, n: int, seed: int) -> None:
    (side,) = sides(Block("w", (n,), (min(k, n),)), seed, dtype=torch.float64)
    ids = torch.arange(n)
    torch.testing.assert_close(side.one_hot(ids), side.project(torch.eye(n, dtype=torch.float64)))
    x = torch.randn(3, n, dtype=torch.float64)
    cut = n // 2
    torch.testing.assert_close(side.part(x[:, :cut], start=0) + side.part(x[:, cut:], start=cut), side.project(x))
