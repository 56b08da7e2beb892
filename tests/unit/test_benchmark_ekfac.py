"""The EK-FAC benchmark at a size that takes seconds: its own truths against each other, and that every figure is there."""

from __future__ import annotations

import pytest
import torch
from benchmarks import ekfac

from headwater.progress import quiet

SMALL = ekfac.Size(rows=16, steps=8, removals=3, subsets=3, queries=3)


@pytest.fixture(scope="module")
def toy() -> ekfac.Toy:
    with quiet():
        return ekfac.Toy.trained(SMALL, 0)


def test_its_gauss_newton_matrix_is_that_of_the_operator(toy: ekfac.Toy) -> None:
    source = toy.source()
    v_KD = torch.randn(2, source.layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with quiet():
        matrix_DD = ekfac.gauss_newton(toy)
    torch.testing.assert_close(v_KD @ matrix_DD, source.gauss_newton(v_KD), rtol=1e-6, atol=1e-8 * float(matrix_DD.abs().max()))


def test_a_proximal_optimum_is_where_its_damped_gradient_is_zero(toy: ekfac.Toy) -> None:
    """With a huge damping the measure moves by the plain gradient product over lambda / N, and weights are as before afterwards."""
    source, damping = toy.source(), 1e4
    before = [parameter.detach().clone() for parameter in toy.session.model.parameters()]
    moved_QM = ekfac.pbrf(toy, source.layout, torch.full((source.layout.size,), damping, dtype=torch.float64))
    queries_QD = ekfac.gradients(toy.session, source.layout, toy.queries, ekfac.measures.get("response_log_probability"))
    rows_MD = source.take(ekfac.removed(toy))
    torch.testing.assert_close(
        moved_QM, queries_QD @ rows_MD.T / len(toy.rows) / damping, rtol=1e-2, atol=5e-3 * float(moved_QM.abs().max())
    )
    assert all(torch.equal(old, new) for old, new in zip(before, toy.session.model.parameters(), strict=True))


def test_matrices_are_cut_to_their_nearest_of_a_rank(toy: ekfac.Toy) -> None:
    layout = toy.source().layout
    x_QD = torch.randn(2, layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ekfac.low_rank(x_QD, layout, ekfac.WIDTH), x_QD)
    ranks = {int(torch.linalg.matrix_rank(one[0])) for one in layout.split(ekfac.low_rank(x_QD, layout, 3)).values() if one.dim() == 3}
    assert ranks == {3}


def test_every_figure_is_there(toy: ekfac.Toy) -> None:
    with quiet():
        result = ekfac.measure(SMALL, seeds=[0])
    assert set(result["pbrf"]) == {"ekfac", "kfac", "diagonal", "dot", "exact_blocks", "exact_full"}
    assert all(-1 <= value <= 1 for truth in ("exact_blocks", "exact_full", "pbrf") for value in result[truth].values())
    assert result["exact_blocks"]["ekfac"] > 0.5
    assert len(result["accepted"]) == 6
