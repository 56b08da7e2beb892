"""LiSSA's recommended settings: they rest on the eigenvalues there are, and they do what they promise."""

from __future__ import annotations

import pytest
import torch

from headwater.curvature import LiSSA
from headwater.curvature.recommend import DECAY, recommend
from headwater.index.memory import MemoryIndex
from headwater.types import Block, Layout

N, D = 120, 24


def rows() -> MemoryIndex:
    generator = torch.Generator().manual_seed(1)
    gradient_ND = torch.randn(N, D, generator=generator) * torch.logspace(0.5, -0.5, D)
    return MemoryIndex([str(i) for i in range(N)], Layout((Block("w", (D,), (D,)),)), "loss", {"gradient": gradient_ND})


def test_it_rests_on_the_eigenvalues_that_there_are() -> None:
    source = rows()
    g_ND = source.take("gradient", range(N)).double()
    largest = float(torch.linalg.eigvalsh(g_ND.T @ g_ND / N)[-1])
    advice = recommend(source)
    by_rows = {choice.batch_rows: choice for choice in advice.choices}
    assert by_rows[N].batch_eigenvalue == pytest.approx(largest, rel=0.02)
    nearest = (g_ND.square().sum(1) - by_rows[1].batch_eigenvalue).abs().min()
    assert float(nearest) < 1e-6 * by_rows[1].batch_eigenvalue, "a batch of one row has the row's squared length"
    eigenvalues = [by_rows[size].batch_eigenvalue for size in sorted(by_rows)]
    assert eigenvalues == sorted(eigenvalues, reverse=True), "the larger the batch, the nearer to the whole"
    assert advice.damping_least == pytest.approx(0.1 * float(g_ND.square().mean()))


def test_every_choice_has_a_scale_above_its_batches_and_steps_enough() -> None:
    advice = recommend(rows())
    for choice in advice.choices:
        assert choice.scale > choice.batch_eigenvalue + advice.damping_least
        assert choice.steps * advice.damping_least / choice.scale >= DECAY
        assert (choice.steps - 1) * advice.damping_least / choice.scale < DECAY
    assert advice.chosen.cost_rows == min(choice.cost_rows for choice in advice.choices)
    assert advice.decay >= DECAY


def test_what_it_recommends_comes_near_the_dense_solve() -> None:
    source, b_KD = rows(), torch.randn(4, D, generator=torch.Generator().manual_seed(2))
    advice = recommend(source)
    solve = advice.lissa.solve(advice.lissa.fit(source), source, b_KD)
    g_ND = source.take("gradient", range(N)).double()
    exact_KD = torch.linalg.solve(g_ND.T @ g_ND / N + advice.damping_least * torch.eye(D, dtype=torch.float64), b_KD.double().T).T
    scores_KN, exact_KN = solve.value.double() @ g_ND.T, exact_KD @ g_ND.T
    correlations = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(scores_KN, exact_KN, strict=True)]
    assert min(correlations) > 0.95
    assert solve.facts["decay"] >= DECAY


def test_the_paper_s_thousand_steps_serve_a_damping_that_is_said() -> None:
    """With that damping as a number, a thousand steps of the same batch are what is recommended."""
    source = rows()
    advice = recommend(source)
    enough = advice.damping_for(1000)
    again = {choice.batch_rows: choice for choice in recommend(source, damping=enough).choices}[advice.chosen.batch_rows]
    assert again.steps == pytest.approx(1000, rel=0.05)
    assert f"effective damping: lambda itself, {advice.damping_least:.4g}" in str(advice)
    assert f"enough for a lambda of {enough:.4g} or more" in str(advice)


def test_batches_are_averaged_and_all_rows_are_not() -> None:
    advice = recommend(rows())
    assert advice.chosen.batch_rows < N
    assert advice.lissa == LiSSA(max_steps=advice.chosen.steps, batch_rows=advice.chosen.batch_rows, average=True)
