"""Conjugate gradients against a dense solve: several right-hand sides, a start, a preconditioner, and how each of them ends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headwater.curvature import CG
from headwater.curvature.conjugate import conjugate_gradients
from headwater.types import UsageError
from tests.exact.sources import BLOCKS, SoftmaxSource, dense_fisher, dense_solve, random_rows, vectors


def positive(n: int = 20, *, condition: float = 1e3, seed: int = 0) -> Tensor:
    """[n, n] symmetric with eigenvalues from 1 to `condition`."""
    turn = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q
    return turn @ torch.diag(torch.logspace(0, torch.tensor(condition).log10().item(), n, dtype=torch.float64)) @ turn.T


def right_hand_sides(k: int, n: int = 20) -> Tensor:
    return torch.randn(k, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Counted:
    """A matrix as an operator that notes how many vectors it was given each time."""

    def __init__(self, matrix_DD: Tensor) -> None:
        self.matrix_DD, self.calls = matrix_DD, list[int]()

    def __call__(self, v_KD: Tensor) -> Tensor:
        self.calls.append(len(v_KD))
        return v_KD @ self.matrix_DD


def test_several_right_hand_sides() -> None:
    matrix, b_KD = positive(), right_hand_sides(4)
    solve = conjugate_gradients(lambda v: v @ matrix, b_KD, tolerance=1e-12)
    torch.testing.assert_close(solve.value, torch.linalg.solve(matrix, b_KD.T).T)
    assert solve.status == "converged"
    assert solve.residual_K is not None
    torch.testing.assert_close(solve.residual_K, (solve.value @ matrix - b_KD).norm(dim=1) / b_KD.norm(dim=1))


def test_a_solved_one_is_left_alone() -> None:
    """An eigenvector takes one step, zeros none; neither is multiplied again, and neither changes what the others get."""
    matrix = positive()
    easy_D = torch.linalg.eigh(matrix).eigenvectors[:, 3]
    operator, b_KD = Counted(matrix), torch.stack([right_hand_sides(1)[0], easy_D, torch.zeros(20, dtype=torch.float64)])
    solve = conjugate_gradients(operator, b_KD)
    assert operator.calls[:3] == [2, 1, 1], "a step of two, the eigenvector's true residual, and the one that is left"
    assert set(operator.calls[1:]) == {1}
    assert bool((solve.value[2] == 0).all())
    alone = conjugate_gradients(lambda v: v @ matrix, b_KD[:1])
    torch.testing.assert_close(solve.value[:1], alone.value)
    assert solve.steps == alone.steps


def test_it_needs_no_more_steps_than_distinct_eigenvalues() -> None:
    turn = torch.linalg.eigh(positive()).eigenvectors
    matrix = turn @ torch.diag(torch.tensor([1.0] * 7 + [5.0] * 8 + [90.0] * 5, dtype=torch.float64)) @ turn.T
    assert conjugate_gradients(lambda v: v @ matrix, right_hand_sides(3), tolerance=1e-10).steps == 3


def test_a_preconditioner_saves_steps_and_changes_no_solution() -> None:
    matrix, b_KD = positive(condition=1e6), right_hand_sides(3)
    plain = conjugate_gradients(lambda v: v @ matrix, b_KD, tolerance=1e-10)
    near = torch.linalg.inv(matrix + 0.5 * torch.eye(20, dtype=torch.float64))
    helped = conjugate_gradients(lambda v: v @ matrix, b_KD, precondition=lambda r: r @ near, tolerance=1e-10)
    exact = conjugate_gradients(lambda v: v @ matrix, b_KD, precondition=lambda r: torch.linalg.solve(matrix, r.T).T)
    assert exact.steps == 1
    assert exact.steps < helped.steps < plain.steps / 2
    torch.testing.assert_close(helped.value, plain.value, rtol=1e-6, atol=1e-8)


def test_a_start_is_gone_on_from() -> None:
    matrix, b_KD = positive(), right_hand_sides(3)
    solved = torch.linalg.solve(matrix, b_KD.T).T
    assert conjugate_gradients(lambda v: v @ matrix, b_KD, x0=solved).steps == 0
    start = solved.clone()
    start[1] = 0
    found = conjugate_gradients(lambda v: v @ matrix, b_KD, x0=start, tolerance=1e-10)
    torch.testing.assert_close(found.value, solved)
    assert bool((start[1] == 0).all()), "the start is not changed in place"


def test_a_limit_of_steps_says_so() -> None:
    matrix, b_KD = positive(), right_hand_sides(2)
    solve = conjugate_gradients(lambda v: v @ matrix, b_KD, max_steps=3, tolerance=1e-12)
    assert (solve.status, solve.steps) == ("max_steps", 3)
    torch.testing.assert_close(solve.residual_K, (solve.value @ matrix - b_KD).norm(dim=1) / b_KD.norm(dim=1))


def test_where_rounding_ends_it_the_status_does_not_claim_the_tolerance() -> None:
    """float32 with a condition of 1e6: the recursion's own residual falls for ever, the true one does not."""
    matrix = positive(condition=1e6).float()
    solve = conjugate_gradients(lambda v: v @ matrix, right_hand_sides(2).float(), tolerance=1e-9, max_steps=10_000)
    assert solve.status == "max_steps"
    assert solve.steps < 10_000, "given up long before, since starting again no longer helps"
    assert solve.residual_K is not None
    assert float(solve.residual_K.min()) > 1e-9


def test_restarting_from_the_true_residual_reaches_what_one_run_does_not() -> None:
    """An operator whose rounding is planted: one run's recursion believes in 1e-9 while the truth is a thousand times that."""
    matrix, b_KD, noise = positive(condition=1e4), right_hand_sides(1), torch.Generator().manual_seed(0)

    def rounded(v_KD: Tensor) -> Tensor:
        image_KD = v_KD @ matrix
        return image_KD * (1 + 1e-6 * torch.randn(image_KD.shape, generator=noise, dtype=torch.float64))

    solve = conjugate_gradients(rounded, b_KD, tolerance=1e-5, max_steps=2000)
    assert solve.status == "converged"
    assert float((solve.value @ matrix - b_KD).norm() / b_KD.norm()) < 2e-5


def test_an_operator_that_is_not_positive_is_told() -> None:
    matrix = positive()
    bad = matrix - 50 * torch.eye(20, dtype=torch.float64)
    solve = conjugate_gradients(lambda v: v @ bad, right_hand_sides(3))
    assert solve.status == "diverged"
    assert bool(torch.isfinite(solve.value).all())


def test_an_operator_that_overflows_is_told() -> None:
    solve = conjugate_gradients(lambda v: v * torch.inf, right_hand_sides(2))
    assert solve.status == "diverged"
    assert bool((solve.value == 0).all()), "the iterate it had"


# ------------------------------------------------------------------------------------------------------ the curvature


@pytest.mark.parametrize("n", [9, 60])
def test_cg_equals_the_dense_solve_of_stored_rows(n: int) -> None:
    source, b_KD, cg = random_rows(n, dtype=torch.float32), vectors(3, dtype=torch.float32), CG(tolerance=1e-10)
    state = cg.fit(source)
    solve = cg.solve(state, source, b_KD)
    expected_KD = dense_solve(dense_fisher(source), state["damping"], BLOCKS, b_KD)
    assert (solve.status, solve.residual_of) == ("converged", "fisher")
    torch.testing.assert_close(solve.value.double(), expected_KD, rtol=1e-5, atol=1e-6 * float(expected_KD.abs().max()))


def test_cg_equals_the_dense_solve_of_a_live_model() -> None:
    """The Gauss-Newton matrix, damped by the mean square of rows whose labels are drawn from the model."""
    source = SoftmaxSource.drawn(30, seed=4)
    b_KD, cg = vectors(2, source.layout), CG(tolerance=1e-12)
    state = cg.fit(source)
    sampled_ND = torch.cat([rows_BD for _, rows_BD in source.rows("sampled")])
    torch.testing.assert_close(state["damping"], 0.1 * sampled_ND.square().mean().reshape(1))
    solve = cg.solve(state, source, b_KD)
    torch.testing.assert_close(solve.value, dense_solve(source.dense_gauss_newton, state["damping"], source.layout, b_KD))
    assert (solve.status, solve.residual_of) == ("converged", "ggn")


def test_the_mean_of_sampled_squares_is_the_gauss_newton_matrix_s_mean_eigenvalue() -> None:
    """In expectation: over many draws of labels, within 5 standard errors."""
    draws = torch.stack([CG(damping="mean_eigenvalue").fit(_redrawn(seed))["damping"][0] for seed in range(200)])
    expected = SoftmaxSource.drawn(30, seed=4).dense_gauss_newton.diagonal().mean()
    error = draws.std() / len(draws) ** 0.5
    assert float((draws.mean() - expected).abs()) < 5 * float(error)
    assert float(error) < 0.05 * float(expected)


def _redrawn(seed: int) -> SoftmaxSource:
    source = SoftmaxSource.drawn(30, seed=4)
    sampled_N = torch.multinomial(source.p_NV, 1, generator=torch.Generator().manual_seed(seed)).flatten()
    return SoftmaxSource(source.x_NI, source.y_N, sampled_N, source.w_VI, source.layout)


def test_a_number_for_damping_costs_no_pass() -> None:
    class NoPass(SoftmaxSource):
        def rows(self, labels):  # type: ignore[no-untyped-def]
            raise AssertionError("a pass over the rows")

    source = SoftmaxSource.drawn(5, seed=0)
    found = CG(damping=0.5).fit(NoPass(source.x_NI, source.y_N, source.sampled_N, source.w_VI, source.layout))
    assert found["damping"].tolist() == [0.5]


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UsageError, match="cg: max_steps is 0, expected 1 or more"):
        CG(max_steps=0)


def test_it_stops_when_it_is_told_to_and_says_so() -> None:
    matrix_DD, b_KD = positive(), right_hand_sides(2)
    told = iter([False, False, True])
    solve = conjugate_gradients(lambda v_KD: v_KD @ matrix_DD, b_KD, stop=lambda: next(told))
    assert (solve.status, solve.steps) == ("max_steps", 2)
    assert solve.residual_K is not None
    torch.testing.assert_close(solve.residual_K, (solve.value @ matrix_DD - b_KD).norm(dim=1) / b_KD.norm(dim=1))
