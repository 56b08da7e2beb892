"""LiSSA with small batches: the mean of the last half of its iterates has most of their noise no more."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from headwater.curvature import LiSSA
from headwater.index.memory import MemoryIndex
from headwater.types import Block, Layout

N, D, DAMPING = 60, 20, 0.3


def rows(*, loudest: float = 1.0) -> MemoryIndex:
    """Rows with a wide spectrum; one may be much longer than the others."""
    generator = torch.Generator().manual_seed(3)
    gradient_ND = torch.randn(N, D, generator=generator) * torch.logspace(0, -1, D)
    gradient_ND[7] *= loudest
    return MemoryIndex([str(i) for i in range(N)], Layout((Block("w", (D,), (D,)),)), "loss", {"gradient": gradient_ND})


def queries() -> Tensor:
    return torch.randn(3, D, generator=torch.Generator().manual_seed(4))


def error(source: MemoryIndex, config: LiSSA, state: Mapping[str, Tensor] | None = None) -> float:
    """Relative distance to the dense solve."""
    g_ND, b_KD = source.take("gradient", range(N)).double(), queries()
    exact_KD = torch.linalg.solve(g_ND.T @ g_ND / N + DAMPING * torch.eye(D, dtype=torch.float64), b_KD.double().T).T
    found_KD = config.solve(state or config.fit(source), source, b_KD).value.double()
    return float((found_KD - exact_KD).norm() / exact_KD.norm())


@pytest.mark.parametrize("batch_rows", [1, 4])
def test_the_mean_is_nearer_than_the_last_iterate(batch_rows: int) -> None:
    """Both have converged but for noise (J lambda / s is above 30); over five seeds."""
    means, lasts = (
        [error(rows(), LiSSA(damping=DAMPING, max_steps=600, batch_rows=batch_rows, average=average, seed=seed)) for seed in range(5)]
        for average in (True, False)
    )
    assert max(means) < 0.15
    assert sum(means) < 0.6 * sum(lasts)


def test_the_residual_given_is_that_of_the_mean() -> None:
    source, config = rows(), LiSSA(damping=DAMPING, max_steps=400, batch_rows=2, average=True)
    solve = config.solve(config.fit(source), source, queries().double())
    g_ND = source.take("gradient", range(N)).double()
    residual_KD = queries().double() - solve.value @ (g_ND.T @ g_ND / N + DAMPING * torch.eye(D, dtype=torch.float64))
    assert solve.residual_K is not None
    torch.testing.assert_close(solve.residual_K, residual_KD.norm(dim=1) / queries().double().norm(dim=1))
    assert solve.status == "max_steps"


def test_nothing_of_a_run_that_diverged_is_in_the_mean() -> None:
    """The long row throws the iterates far off until the scale has doubled often enough; the mean is of what comes after."""
    source = rows(loudest=9.0)
    config = LiSSA(damping=DAMPING, max_steps=6000, batch_rows=1, average=True)
    state = config.fit(source)
    solve = config.solve(state, source, queries())
    assert solve.facts["scale"] >= 4 * float(state["scale"])
    assert solve.facts["decay"] > 3
    assert error(source, config, state) < 0.3


def test_too_few_steps_to_start_again_give_no_nan() -> None:
    source = rows()
    config = LiSSA(damping=DAMPING, max_steps=5, batch_rows=1, average=True)
    state = {**config.fit(source), "scale": torch.tensor([1e-30], dtype=torch.float64)}
    solve = config.solve(state, source, queries())
    assert bool(torch.isfinite(solve.value).all())
    assert solve.status == "diverged"
