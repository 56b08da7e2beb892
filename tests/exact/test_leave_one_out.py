"""Influence with the exact Hessian against leaving a row out: the closed form of ridge regression, and logistic regression refitted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from headwater.curvature import CG, Fisher
from headwater.types import Block, Layout
from tests.exact.sources import Rows, SoftmaxSource

N, WIDTH, ALPHA = 40, 6, 3.0


def ridge() -> tuple[Tensor, Tensor, Tensor]:
    """(x [N, I], y [N], theta [I]): the minimum of `sum_n (x_n.theta - y_n)^2 / 2 + alpha |theta|^2 / 2`."""
    generator = torch.Generator().manual_seed(0)
    x_NI = torch.randn(N, WIDTH, generator=generator, dtype=torch.float64)
    y_N = x_NI @ torch.randn(WIDTH, generator=generator, dtype=torch.float64) + torch.randn(N, generator=generator, dtype=torch.float64)
    return x_NI, y_N, fit_ridge(x_NI, y_N)


def fit_ridge(x_NI: Tensor, y_N: Tensor) -> Tensor:
    return torch.linalg.solve(x_NI.T @ x_NI + ALPHA * torch.eye(WIDTH, dtype=torch.float64), x_NI.T @ y_N)


@pytest.mark.parametrize("curvature", [Fisher(ALPHA / N), Fisher(ALPHA / N, joint=True), CG(ALPHA / N, tolerance=1e-12)], ids=str)
def test_ridge_influence_over_one_minus_leverage_is_leave_one_out(curvature: Fisher | CG) -> None:
    """score(q, n) / (1 - h_n) is exactly minus the change of the prediction `x_q.theta` when row n is left out and theta fitted again.

    The Hessian of the mean loss is `(1/N) sum x x'`, the second moment of the inputs; alpha / N is lambda; `g_n = (x_n.theta - y_n) x_n`.
    """
    x_NI, y_N, theta_I = ridge()
    queries_QI = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    source = Rows(x_NI, Layout((Block("theta", (WIDTH,), (WIDTH,)),)))
    gradients_NI = (x_NI @ theta_I - y_N)[:, None] * x_NI
    scores_QN = curvature.solve(curvature.fit(source), source, queries_QI).value @ gradients_NI.T / -N
    leverage_N = (x_NI @ torch.linalg.inv(x_NI.T @ x_NI + ALPHA * torch.eye(WIDTH, dtype=torch.float64)) * x_NI).sum(1)
    others = [[m for m in range(N) if m != n] for n in range(N)]
    left_out_NI = torch.stack([fit_ridge(x_NI[kept], y_N[kept]) for kept in others])
    change_QN = queries_QI @ (left_out_NI - theta_I).T
    torch.testing.assert_close(-scores_QN / (1 - leverage_N), change_QN, rtol=1e-6, atol=1e-9)
    assert float((-scores_QN - change_QN).abs().max()) > 1e-3, "without the leverage it is not exact"


# ------------------------------------------------------------------------------------------------ logistic regression

DECAY = 0.05


def fitted_logistic(source: SoftmaxSource, weights_N: Tensor) -> SoftmaxSource:
    """W at the minimum of `(1/N) sum_n weight_n L_n + decay |W|^2 / 2`, by Newton's method to rounding."""
    source = replace(source, w_VI=torch.zeros_like(source.w_VI))
    eye = DECAY * torch.eye(source.layout.size, dtype=torch.float64)
    for _ in range(30):
        rows_ND = torch.cat([rows_BD for _, rows_BD in source.rows("true")])
        gradient_D = weights_N @ rows_ND / N + DECAY * source.w_VI.flatten()
        hessians = torch.diag_embed(source.p_NV) - source.p_NV[:, :, None] * source.p_NV[:, None]
        hessian_DD = torch.einsum("n,nvw,ni,nj->viwj", weights_N, hessians, source.x_NI, source.x_NI).reshape(eye.shape) / N
        step_D = torch.linalg.solve(hessian_DD + eye, gradient_D)
        source = replace(source, w_VI=source.w_VI - step_D.view_as(source.w_VI))
    assert float(step_D.norm()) < 1e-12
    return source


def margins(source: SoftmaxSource, queries_QI: Tensor) -> Tensor:
    """[Q] log-odds of class 0: linear in W, so that nothing but W's own change is judged."""
    logits_QV = queries_QI @ source.w_VI.T
    return logits_QV[:, 0] - logits_QV[:, 1]


@pytest.fixture(scope="module")
def trained() -> tuple[SoftmaxSource, Tensor, Tensor]:
    """(the model at its minimum, queries [Q, I], scores [Q, N])."""
    source = fitted_logistic(SoftmaxSource.drawn(N, seed=3, inputs=WIDTH, classes=2), torch.ones(N, dtype=torch.float64))
    queries_QI = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients_QD = torch.stack([queries_QI, -queries_QI], dim=1).flatten(1)
    cg = CG(damping=DECAY, tolerance=1e-12)
    solve = cg.solve(cg.fit(source), source, gradients_QD)
    assert solve.status == "converged"
    rows_ND = torch.cat([rows_BD for _, rows_BD in source.rows("true")])
    return source, queries_QI, solve.value @ rows_ND.T / -N


def test_logistic_influence_is_the_derivative_of_training(trained: tuple[SoftmaxSource, Tensor, Tensor]) -> None:
    """Row n counted 1 + e times and the model trained again: the measure moves by e times the score, to 1e-6, as e goes to 0."""
    source, queries_QI, scores_QN = trained
    step = 1e-4
    for n in (0, 7, 31):
        up, down = (fitted_logistic(source, torch.ones(N).double().index_add(0, torch.tensor([n]), torch.tensor([e]).double()))
                    for e in (step, -step))  # fmt: skip
        change_Q = (margins(up, queries_QI) - margins(down, queries_QI)) / (2 * step)
        torch.testing.assert_close(scores_QN[:, n], change_Q, rtol=1e-6, atol=1e-9)


def test_logistic_influence_over_one_minus_leverage_is_near_leave_one_out(trained: tuple[SoftmaxSource, Tensor, Tensor]) -> None:
    """The first-order relation: one Newton step from the full fit. Within 5 % over all rows, where the plain score is not."""
    source, queries_QI, scores_QN = trained
    before_Q = margins(source, queries_QI)
    left_out = [fitted_logistic(source, torch.ones(N, dtype=torch.float64).index_fill(0, torch.tensor([n]), 0.0)) for n in range(N)]
    change_QN = torch.stack([margins(one, queries_QI) - before_Q for one in left_out], dim=1)
    inverse_DD = torch.linalg.inv(source.dense_gauss_newton + DECAY * torch.eye(source.layout.size, dtype=torch.float64))
    inputs_ND = torch.stack([source.x_NI, -source.x_NI], dim=1).flatten(1)
    leverage_N = source.p_NV.prod(1) * ((inputs_ND @ inverse_DD) * inputs_ND).sum(1) / N
    corrected, plain = ((found - change_QN).norm() / change_QN.norm() for found in (-scores_QN / (1 - leverage_N), -scores_QN))
    assert float(corrected) < 0.05
    assert float(plain) > 2 * float(corrected)
