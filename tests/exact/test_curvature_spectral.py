"""Arnoldi and Nystrom: exact where they reach the rank, between zero and the curvature elsewhere, and what they do with the rest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headwater.curvature import CG, Arnoldi, Fisher, Nystrom
from headwater.curvature.nystrom import nystrom_pairs
from headwater.curvature.spectral import lanczos
from headwater.types import DataError, State
from tests.exact.sources import BLOCKS, Rows, SoftmaxSource, dense_fisher, dense_solve, random_rows, vectors


def approximation(state: State) -> Tensor:
    """[D, D] `U diag(mu) U'`."""
    return state["vectors"].T @ torch.diag(state["values"]) @ state["vectors"]


@pytest.mark.parametrize("n", [9, 60])
def test_both_are_the_curvature_where_they_reach_its_rank(n: int) -> None:
    source = random_rows(n)
    for curvature in (Nystrom(rank=39), Arnoldi(steps=39, rank=39)):
        state = curvature.fit(source)
        torch.testing.assert_close(approximation(state), dense_fisher(source), rtol=1e-7, atol=1e-8)
        basis = state["vectors"] @ state["vectors"].T
        torch.testing.assert_close(basis, torch.eye(len(basis), dtype=torch.float64))


def test_nystrom_equals_the_dense_solve_and_arnoldi_its_part_in_the_range() -> None:
    """What no row reaches is divided by lambda by the one and dropped by the other."""
    source, b_KD = random_rows(9), vectors(3)
    nystrom, arnoldi = Nystrom(rank=20), Arnoldi()
    state = nystrom.fit(source)
    expected_KD = dense_solve(dense_fisher(source), state["damping"], BLOCKS, b_KD)
    torch.testing.assert_close(nystrom.solve(state, source, b_KD).value, expected_KD)
    in_range = torch.linalg.svd(source.rows_ND, full_matrices=False).Vh
    found = arnoldi.solve(arnoldi.fit(source), source, b_KD).value
    torch.testing.assert_close(found, expected_KD @ in_range.T @ in_range, rtol=1e-6, atol=1e-8)


def test_the_damping_is_that_of_the_whole_row() -> None:
    source = random_rows(20)
    expected_L = 0.1 * dense_fisher(source).diagonal().mean().expand(3)
    for curvature in (Nystrom(), Arnoldi(), Fisher(joint=True)):
        torch.testing.assert_close(curvature.fit(source)["damping"], expected_L)


@pytest.mark.parametrize("rank", [1, 4, 12])
def test_arnoldi_finds_the_largest_eigenvalues(rank: int) -> None:
    source = random_rows(60)
    state = Arnoldi(steps=30, rank=rank).fit(source)
    values, vectors_DD = torch.linalg.eigh(dense_fisher(source))
    torch.testing.assert_close(state["values"], values.flip(0)[:rank], rtol=1e-6, atol=1e-8)
    overlaps = (state["vectors"] @ vectors_DD.flip(1)[:, :rank]).abs().diagonal()
    torch.testing.assert_close(overlaps, torch.ones(rank, dtype=torch.float64), rtol=1e-4, atol=1e-4)


def test_an_inner_product_over_the_top_pairs_is_the_formula() -> None:
    source, b_KD, arnoldi = random_rows(60), vectors(2), Arnoldi(steps=39, rank=5)
    values, turns = torch.linalg.eigh(dense_fisher(source))
    top_5D = turns.flip(1)[:, :5].T
    damping = 0.1 * dense_fisher(source).diagonal().mean()
    expected_KD = ((b_KD @ top_5D.T) / (values.flip(0)[:5] + damping)) @ top_5D
    torch.testing.assert_close(arnoldi.solve(arnoldi.fit(source), source, b_KD).value, expected_KD, rtol=1e-6, atol=1e-8)


def test_lanczos_stays_orthogonal_and_ends_where_its_subspace_is_used_up() -> None:
    """Without the second orthogonalisation, sixty steps on a clustered spectrum bring copies of the same eigenvalue."""
    turn = torch.linalg.qr(torch.randn(80, 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    matrix = turn @ torch.diag(torch.logspace(4, -4, 80, dtype=torch.float64)) @ turn.T
    values, vectors_RD = lanczos(lambda v: v @ matrix, torch.ones(80, dtype=torch.float64), 60)
    torch.testing.assert_close(vectors_RD @ vectors_RD.T, torch.eye(len(values), dtype=torch.float64), rtol=0.0, atol=1e-10)
    torch.testing.assert_close(values[:20], torch.logspace(4, -4, 80, dtype=torch.float64)[:20], rtol=1e-6, atol=0.0)
    three = turn @ torch.diag(torch.tensor([3.0, 2.0, 1.0] + [0.0] * 77, dtype=torch.float64)) @ turn.T
    values, _ = lanczos(lambda v: v @ three, torch.ones(80, dtype=torch.float64), 60)
    torch.testing.assert_close(values, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("seed", range(3))
def test_nystrom_never_exceeds_the_curvature(seed: int) -> None:
    """`0 <= C_nystrom <= C`, nearer with more vectors (Frangella et al. 2023, section 2.2)."""
    source, errors = random_rows(60), []
    for rank in (2, 6, 18):
        difference = dense_fisher(source) - approximation(Nystrom(rank=rank, seed=seed).fit(source))
        assert float(torch.linalg.eigvalsh(difference)[0]) > -1e-8
        errors.append(float(difference.norm()))
    assert errors[0] > errors[1] > errors[2]


def test_nystrom_is_stable_where_more_vectors_are_drawn_than_there_is_rank() -> None:
    """W'CW is singular then; in float32 its Cholesky factor would fail without the shift."""
    source = random_rows(4)
    matrix = dense_fisher(source)
    w_RD = torch.linalg.qr(vectors(30).T).Q.T
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-2)):
        values, vectors_RD = nystrom_pairs(w_RD.to(dtype), w_RD.to(dtype) @ matrix.to(dtype))
        found = vectors_RD.double().T @ torch.diag(values.double()) @ vectors_RD.double()
        assert float((found - matrix).norm()) < tolerance * float(matrix.norm())
        assert int((values > 1e-4 * values[0]).sum()) == 4


def test_what_is_no_curvature_is_refused() -> None:
    w_RD = torch.linalg.qr(vectors(5).T).Q.T
    for image in (-w_RD, w_RD * torch.nan):
        with pytest.raises(DataError, match="not positive, or not finite"):
            nystrom_pairs(w_RD, image)


def test_both_on_a_live_model() -> None:
    source = SoftmaxSource.drawn(40, seed=1)
    b_KD = vectors(2, source.layout)
    for curvature in (Nystrom(damping=0.3), Arnoldi(damping=0.3)):
        state = curvature.fit(source)
        torch.testing.assert_close(approximation(state), source.dense_gauss_newton, rtol=1e-6, atol=1e-9)
        assert curvature.solve(state, source, b_KD).residual_K is None, "it would take passes"
    exact = CG(damping=0.3, tolerance=1e-10)
    nystrom = Nystrom(damping=0.3)
    expected_KD = exact.solve(exact.fit(source), source, b_KD).value
    torch.testing.assert_close(nystrom.solve(nystrom.fit(source), source, b_KD).value, expected_KD, rtol=1e-6, atol=1e-8)


def test_a_seed_decides_the_draw() -> None:
    source = random_rows(60)
    first, again, other = (approximation(Nystrom(rank=3, seed=seed).fit(source)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_rows_without_any_curvature() -> None:
    """All gradients zero: nothing is learned about any direction, and a damping by number still answers."""
    source = Rows(torch.zeros(6, 39, dtype=torch.float64), BLOCKS)
    nystrom = Nystrom(damping=0.5)
    torch.testing.assert_close(nystrom.solve(nystrom.fit(source), source, vectors(2)).value, vectors(2) / 0.5)
    arnoldi = Arnoldi(damping=0.5)
    assert bool((arnoldi.solve(arnoldi.fit(source), source, vectors(2)).value == 0).all())
